"""Where the Redis module lies on this machine.

    redis-server --loadmodule "$(python -m redis_infer.module_path)"

The wheel carries the module beside this file. ``REDIS_INFER_MODULE`` names another
build of it, for instance one with sanitizers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

FILE_NAME = "redis_infer.so"


class ModuleNotBuiltError(FileNotFoundError):
    """The package holds no compiled module."""


def module_path() -> Path:
    """The absolute path of the Redis module.

    Raises:
        ModuleNotBuiltError: ``REDIS_INFER_MODULE`` names no file, or the package was not
            installed from a wheel (for example when it is imported from a source tree).
    """
    forced = os.environ.get("REDIS_INFER_MODULE")
    if forced:
        path = Path(forced).resolve()
        if not path.is_file():
            raise ModuleNotBuiltError(f"REDIS_INFER_MODULE names '{forced}', which is no file")
        return path
    for folder in _package_folders():
        path = folder / FILE_NAME
        if path.is_file():
            return path
    raise ModuleNotBuiltError(
        f"{FILE_NAME} is missing from {Path(__file__).resolve().parent}: install the package with "
        "'pip install .', or set REDIS_INFER_MODULE to the module that you built"
    )


def _package_folders() -> Iterator[Path]:
    """This folder, then the others of the package: an editable install has two."""
    yield Path(__file__).resolve().parent
    package = sys.modules.get(__package__ or "")
    for entry in getattr(package, "__path__", ()):
        yield Path(entry).resolve()


def main() -> int:
    try:
        print(module_path())
    except ModuleNotBuiltError as error:
        print(f"redis_infer: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
