"""Checks a wheel: files, size, tag, what its module needs, and that another build is the same.

    python ci/check_wheel.py WHEEL [ANOTHER BUILD OF IT]

Needs auditwheel on Linux.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

MAX_BYTES = 1_000_000
OLDEST_GLIBC = (2, 28)  # manylinux_2_28: RHEL 8, Debian 10, Ubuntu 20.04


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as wheel:
        return {i.filename: wheel.read(i) for i in wheel.infolist() if not i.is_dir()}


def check_files(files: dict[str, bytes]) -> list[str]:
    allowed = re.compile(
        r"redis_infer/([\w/]+\.py|py\.typed|redis_infer\.so|sidecar/client/\w+\.[ch])"
        r"|redis_infer-[^/]+\.dist-info/(METADATA|WHEEL|RECORD|entry_points\.txt|licenses/LICENSE)"
    )
    faults = [f"holds '{name}'" for name in files if not allowed.fullmatch(name)]
    needed = ["redis_infer/redis_infer.so", "redis_infer/py.typed", "redis_infer/__init__.py"]
    needed.append("redis_infer/sidecar/client/client.c")
    return faults + [f"lacks '{name}'" for name in needed if name not in files]


def check_platform(path: Path) -> list[str]:
    """The policies that auditwheel finds, of which the oldest glibc counts."""
    if not sys.platform.startswith("linux"):
        return []
    shown = subprocess.run(
        [sys.executable, "-m", "auditwheel", "show", str(path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    tags = {(int(a), int(b)) for a, b in re.findall(r'"manylinux_(\d+)_(\d+)_', shown)}
    print(shown.strip())
    if not tags:
        return ["auditwheel names no manylinux policy"]
    if min(tags) > OLDEST_GLIBC:
        return [f"needs glibc {min(tags)}, newer than {OLDEST_GLIBC}"]
    return []


def check_same(files: dict[str, bytes], others: dict[str, bytes]) -> list[str]:
    names = sorted(files.keys() | others.keys())
    return [f"'{n}' differs between the builds" for n in names if files.get(n) != others.get(n)]


def main() -> int:
    path = Path(sys.argv[1])
    files = contents(path)
    faults = check_files(files)
    size = path.stat().st_size
    if size > MAX_BYTES:
        faults.append(f"has {size} bytes, more than {MAX_BYTES}")
    if not path.name.split("-", 2)[2].startswith("py3-none-"):
        faults.append("is not tagged py3-none")
    faults += check_platform(path)
    for other in sys.argv[2:]:
        faults += check_same(files, contents(Path(other)))
    for fault in faults:
        print(f"{path.name} {fault}", file=sys.stderr)
    if not faults:
        print(f"{path.name}: {len(files)} files, {size} bytes, as it should be")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
