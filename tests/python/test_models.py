"""Fetching model files. pip runs for real, against a package index made in the test."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import multiprocessing
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from redis_infer import models

CONTENT = b"GGUF" + bytes(range(256)) * 20_000
MODEL = models.KnownModel(
    name="tiny",
    file_name="tiny.gguf",
    source=models.FromPyPI("tiny-model", "1.0", "tiny_model/tiny.gguf"),
    size_bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    description="made by a test",
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and pip configured to see only this test's folder of wheels."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("REDIS_INFER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setitem(models.KNOWN_MODELS, "tiny", MODEL)
    return tmp_path / "home"


def publish(
    tmp_path: Path,
    content: bytes,
    member: str = "tiny_model/tiny.gguf",
    compression: int = zipfile.ZIP_STORED,
) -> None:
    info = "tiny_model-1.0.dist-info"
    path = tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", compression) as wheel:
        wheel.writestr(member, content)
        wheel.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
            "Requires-Dist: a-package-that-is-nowhere\n",
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


def test_pull_takes_the_file_out_of_the_wheel_without_its_dependencies(
    home: Path, tmp_path: Path
) -> None:
    publish(tmp_path, CONTENT)
    path = models.pull("tiny")
    assert path == home / "models" / "tiny.gguf" == models.path("tiny")
    assert path.read_bytes() == CONTENT
    assert not list((home / "downloads").iterdir())


def test_progress_ends_at_the_whole_file(home: Path, tmp_path: Path) -> None:
    publish(tmp_path, CONTENT)
    steps: list[tuple[str, int, int]] = []
    models.pull("tiny", lambda *step: steps.append(step))
    assert steps[0] == ("download", 0, 0)
    assert steps[-1] == ("extract", len(CONTENT), len(CONTENT))


def test_a_second_pull_asks_no_index(home: Path, tmp_path: Path) -> None:
    publish(tmp_path, CONTENT)
    models.pull("tiny")
    (tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl").unlink()
    assert models.pull("tiny").read_bytes() == CONTENT


def test_a_download_that_was_not_extracted_is_not_fetched_again(home: Path, tmp_path: Path) -> None:
    publish(tmp_path, CONTENT)
    (home / "downloads").mkdir(parents=True)
    wheel = tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl"
    wheel.rename(home / "downloads" / wheel.name)
    assert models.pull("tiny").read_bytes() == CONTENT


def test_a_truncated_download_is_fetched_again(home: Path, tmp_path: Path) -> None:
    publish(tmp_path, CONTENT)
    wheel = tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl"
    (home / "downloads").mkdir(parents=True)
    (home / "downloads" / wheel.name).write_bytes(wheel.read_bytes()[:1000])
    assert models.pull("tiny").read_bytes() == CONTENT


def test_another_file_than_the_registry_describes_is_refused_and_not_kept(
    home: Path, tmp_path: Path
) -> None:
    publish(tmp_path, CONTENT[:-1] + b"!")
    with pytest.raises(models.ModelError, match=r"PyPI tiny-model 1\.0 delivered .* SHA-256"):
        models.pull("tiny")
    assert [p.name for p in (home / "models").iterdir()] == [".tiny.gguf.lock"]
    publish(tmp_path, CONTENT)
    assert models.pull("tiny").read_bytes() == CONTENT


def test_a_damaged_wheel_is_refused_and_not_kept(home: Path, tmp_path: Path) -> None:
    publish(tmp_path, CONTENT, compression=zipfile.ZIP_DEFLATED)
    wheel = tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl"
    damaged = bytearray(wheel.read_bytes())
    damaged[30 + len("tiny_model/tiny.gguf")] |= 6  # a type of block that there is not
    wheel.write_bytes(damaged)
    with pytest.raises(models.ModelError, match="invalid block type"):
        models.pull("tiny")
    publish(tmp_path, CONTENT)
    assert models.pull("tiny").read_bytes() == CONTENT


def test_a_file_that_changed_on_disk_is_noticed(home: Path, tmp_path: Path) -> None:
    publish(tmp_path, CONTENT)
    path = models.pull("tiny")
    path.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(models.ModelError, match="remove it and pull again"):
        models.pull("tiny")


def test_a_wheel_without_the_file_says_so(home: Path, tmp_path: Path) -> None:
    publish(tmp_path, CONTENT, member="tiny_model/other.gguf")
    with pytest.raises(models.ModelError, match=r"does not hold tiny_model/tiny\.gguf"):
        models.pull("tiny")


def test_pips_own_reason_reaches_the_user(home: Path) -> None:
    with pytest.raises(models.ModelError, match=r"could not download tiny-model==1\.0: ERROR"):
        models.pull("tiny")


def test_processes_that_pull_at_once_get_one_good_file(home: Path, tmp_path: Path) -> None:
    publish(tmp_path, CONTENT)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        paths = pool.map(models.pull, ["tiny"] * 3)
    assert len(set(paths)) == 1
    assert paths[0].read_bytes() == CONTENT
    assert sorted(p.name for p in paths[0].parent.iterdir()) == [".tiny.gguf.lock", "tiny.gguf"]


def test_a_model_that_is_there_is_taken_from_a_cache_that_cannot_be_written_to(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, CONTENT)
    path = models.pull("tiny")

    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(models, "_locked", refuse)
    assert models.pull("tiny") == path
    path.write_bytes(b"!")
    with pytest.raises(models.ModelError, match="remove it and pull again"):
        models.pull("tiny")


@pytest.mark.parametrize(
    ("shown", "version"),
    [
        ("pip 24.0 from /x (python 3.11)", (24, 0)),
        ("pip 25.1b1 from /x", (25, 1)),
        ("pip 26.dev0 from /x", (26, 0)),
        ("pip 25.3.1 from /x", (25, 3)),
    ],
)
def test_versions_of_pip_before_a_release_are_read_too(
    monkeypatch: pytest.MonkeyPatch, shown: str, version: tuple[int, int]
) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, shown, "")

    monkeypatch.setattr(subprocess, "run", run)
    assert models._pip_version() == version


def test_what_the_hub_delivers_is_put_together_where_the_models_lie(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "another file system"
    elsewhere.mkdir()
    home.mkdir()
    (home / "models").symlink_to(elsewhere)

    def download(_repository: str, file: str, *, local_dir: Path, **_: object) -> str:
        assert elsewhere in (local_dir / file).resolve().parents, "a move would be to another one"
        local_dir.mkdir(parents=True, exist_ok=True)
        (local_dir / file).write_bytes(CONTENT)
        return str(local_dir / file)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=download))
    path = models.pull("qwen3-4b")
    assert path == home / "models" / "Qwen3-4B-Q4_K_M.gguf" and path.read_bytes() == CONTENT


@pytest.mark.parametrize("own", ["~nobody-of-that-name/x", None])
def test_without_a_home_directory_a_folder_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, own: str | None
) -> None:
    def nobody(*_: object) -> NoReturn:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("REDIS_INFER_HOME", raising=False)
    if own is not None:
        monkeypatch.setenv("REDIS_INFER_HOME", own)
    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(models.ModelError, match="name one with REDIS_INFER_HOME=/path"):
        models.directory()


def test_a_model_not_pulled_yet_says_how(home: Path) -> None:
    with pytest.raises(models.ModelError, match="redis-infer models pull tiny"):
        models.path("tiny")


def test_an_unknown_name_lists_the_known_ones(home: Path) -> None:
    with pytest.raises(models.ModelError, match="smollm2-135m-instruct"):
        models.pull("tinny")


def test_a_hub_that_cannot_be_reached_is_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def fail(*_: object, **__: object) -> str:
        raise OSError("no route to host\nand a long tail")

    monkeypatch.setattr(hub, "hf_hub_download", fail)
    with pytest.raises(models.ModelError, match=r"no route to host$"):
        models.pull("qwen3-4b")


def test_the_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_INFER_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models.directory() == tmp_path / "redis-infer" / "models"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert models.directory() == tmp_path / "me/.cache/redis-infer/models"


def test_every_known_model_has_its_own_file_and_a_checkable_source() -> None:
    files = [model.file_name for model in models.KNOWN_MODELS.values()]
    assert len(set(files)) == len(files)
    assert models.DEFAULT_MODEL in models.KNOWN_MODELS
    for name, model in models.KNOWN_MODELS.items():
        assert model.name == name
        if isinstance(model.source, models.ConvertedFromPyPI):
            assert all(len(sha256) == 64 for sha256 in model.source.sha256.values())
        else:
            assert isinstance(model.source, models.FromHub) or len(model.sha256 or "") == 64


def test_the_default_model_is_what_its_registry_entry_says(model_path: Path) -> None:
    model = models.known(models.DEFAULT_MODEL)
    assert model_path.stat().st_size == model.size_bytes
    with model_path.open("rb") as file:
        assert file.read(4) == b"GGUF"
    assert dataclasses.replace(model, sha256=None).path == model_path
