"""What the wheel installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution
from pathlib import Path

import pytest

import redis_infer
from redis_infer.module_path import ModuleNotBuiltError, module_path


def test_the_wheel_fits_every_python_3_of_its_platform() -> None:
    wheel = distribution("redis-infer").read_text("WHEEL") or ""
    tags = [line.partition(": ")[2] for line in wheel.splitlines() if line.startswith("Tag: ")]
    system = sysconfig.get_platform().split("-")[0]  # in a tag also manylinux
    assert tags and all(re.match(f"py3-none-(many)?{system}", t) for t in tags)
    assert "Root-Is-Purelib: false" in wheel


def test_the_wheel_holds_the_package_the_module_and_the_licence_only() -> None:
    files = {str(file) for file in distribution("redis-infer").files or []}
    assert {"redis_infer/py.typed", "redis_infer/redis_infer.so"} <= files
    assert any(f.endswith("licenses/LICENSE") for f in files)
    others = {
        f
        for f in files
        if not f.startswith(("redis_infer/", "redis_infer-")) and not f.endswith("bin/redis-infer")
    }
    assert not others


def test_the_version_is_that_of_the_build() -> None:
    cmake = Path(__file__).parents[2] / "CMakeLists.txt"
    assert f"project(redis_infer VERSION {redis_infer.__version__} " in cmake.read_text()


def test_module_path_prints_an_absolute_path() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "redis_infer.module_path"],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    path = Path(run.stdout.strip())
    assert path.is_absolute() and path.is_file()
    assert path.read_bytes()[:4] in (b"\x7fELF", b"\xcf\xfa\xed\xfe")


def test_the_module_is_executable_as_redis_demands() -> None:
    assert os.access(module_path(), os.X_OK)


def test_a_missing_module_is_said_on_standard_error(tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing.so")
    run = subprocess.run(
        [sys.executable, "-m", "redis_infer.module_path"],
        capture_output=True,
        text=True,
        check=False,
        env={"REDIS_INFER_MODULE": missing},
    )
    assert run.returncode == 1
    assert run.stdout == ""
    assert missing in run.stderr and "Traceback" not in run.stderr


def test_a_package_without_the_module_says_how_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REDIS_INFER_MODULE", raising=False)
    monkeypatch.setattr("redis_infer.module_path._package_folders", lambda: iter([tmp_path]))
    with pytest.raises(ModuleNotBuiltError, match="pip install"):
        module_path()


def test_another_build_of_the_module_can_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "mine.so"
    own.touch()
    monkeypatch.setenv("REDIS_INFER_MODULE", str(own))
    assert module_path() == own
