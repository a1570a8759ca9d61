"""The module against transformers in float32: the default model on six texts, and small
random models of every architecture, variant and tensor type."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType as Type

from redis_infer import Infer, golden
from redis_infer.reference import NoReferenceError, Reference, ReferenceModel
from redis_infer.results import FloatArray, Score, TokenArray
from redis_infer.server import Server
from redis_infer.tokenizer import Tokenizer
from small_models import Shape, write_model
from small_vocab import TEXTS

STORED = Path(__file__).parent / "data" / "smollm2_reference.npz"

# llama.cpp's agreement with the same file on texts of these kinds is 96.7 % and 0.0028; its
# rounding of matrix inputs alone costs about that. See docs/accuracy.md.
MIN_TOP1 = 0.967
MAX_KL = 0.0014

# ---- the default model ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts(model_path: Path) -> dict[str, TokenArray]:
    return golden.read_texts(TEXTS, Tokenizer.from_gguf(model_path))


@pytest.fixture(scope="module")
def references(model_path: Path, texts: dict[str, TokenArray]) -> dict[str, Reference]:
    return golden.read_references(STORED, model_path, texts)


def test_the_default_model_agrees_with_transformers_on_six_texts(
    loaded: Infer, texts: dict[str, TokenArray], references: dict[str, Reference]
) -> None:
    assert len(texts) == 6
    assert max(map(len, texts.values())) >= 1500
    results = {
        name: golden.agreement(references[name], loaded.score("smol", tokens, top=golden.SCORE_TOP))
        for name, tokens in texts.items()
    }
    mean = golden.mean(list(results.values()))
    report = golden.table(results)
    print(report)
    assert mean.top1 >= MIN_TOP1, report
    assert mean.kl <= MAX_KL, report
    assert all(abs(result.nll_change) <= 0.01 for result in results.values()), report


def test_the_stored_reference_is_what_transformers_computes(
    model_path: Path, texts: dict[str, TokenArray], references: dict[str, Reference]
) -> None:
    """On the beginning of a text: a prediction depends only on what is before it."""
    n = 96
    stored, fresh = references["chat"], ReferenceModel(model_path).predict(texts["chat"][:n])
    np.testing.assert_allclose(fresh.logprobs, stored.logprobs[: n - 1], atol=1e-3)
    np.testing.assert_allclose(fresh.top_logprobs, stored.top_logprobs[: n - 1], atol=1e-3)
    assert (fresh.top_ids == stored.top_ids[: n - 1]).mean() > 0.99  # near ties may swap


def test_a_stored_reference_of_another_model_or_text_is_refused(
    model_path: Path, texts: dict[str, TokenArray], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="other tokens of the text 'chat'"):
        golden.read_references(STORED, model_path, texts | {"chat": texts["chat"][:-1]})
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="another model"):
        golden.read_references(STORED, other, texts)


def has_rustc() -> bool:
    """rustup's rustc may be there without a compiler behind it."""
    rustc = shutil.which("rustc")
    return (
        rustc is not None
        and subprocess.run([rustc, "--version"], capture_output=True, check=False).returncode == 0
    )


@pytest.mark.skipif(not has_rustc(), reason="no rustc")
def test_a_rust_function_completed_from_a_token_key_compiles(
    loaded: Infer, model_path: Path, tmp_path: Path
) -> None:
    head = "fn add(a: i32, b: i32) -> i32 {"
    loaded.store_tokens("code", Tokenizer.from_gguf(model_path).encode(head))
    generation = loaded.generate("smol", keys="code", max_tokens=64, stop=["\n}"])
    assert generation.finish_reason == "stop"
    source = tmp_path / "add.rs"
    source.write_text(head + generation.text + "\n}\n", "utf-8")
    run = subprocess.run(
        ["rustc", "--crate-type=lib", "--emit=metadata", "--out-dir", tmp_path, source],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, source.read_text("utf-8") + run.stderr


# ---- small random models ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Infer]:
    """A server whose model directory tests may fill."""
    with Server(model_dir=tmp_path_factory.mktemp("models"), threads=2) as server:
        yield Infer(server.client())


def model_dir(infer: Infer) -> Path:
    return Path(infer._client.config_get("infer.model-dir")["infer.model-dir"])


def all_logprobs(score: Score, n_vocab: int) -> FloatArray:
    """[n-1, n_vocab] From a score whose alternatives are the whole vocabulary."""
    assert score.top_ids is not None and score.top_logprobs is not None
    assert score.top_ids.shape[1] == n_vocab
    result = np.full(score.top_ids.shape, np.nan, np.float32)
    np.put_along_axis(result, score.top_ids.astype(np.int64), score.top_logprobs, 1)
    assert not np.isnan(result).any()
    return result


def score_and_reference(
    infer: Infer,
    shape: Shape,
    kind: Type,
    *,
    reference_shape: Shape | None = None,
    seed: int = 0,
) -> tuple[FloatArray, FloatArray]:
    """Of each token after each position: our log-probability, and the reference's logit."""
    directory = model_dir(infer)
    path = write_model(directory / "small.gguf", shape, kind, seed)
    tokens = np.random.default_rng(7 + seed).integers(2, shape.n_vocab, 150).astype(np.uint32)
    infer.load("small", path)
    try:
        ours = all_logprobs(infer.score("small", tokens, top=shape.n_vocab), shape.n_vocab)
    finally:
        infer.unload("small")
    if reference_shape is not None:
        path = write_model(directory / "other.gguf", reference_shape, kind, seed)
    return ours, ReferenceModel(path).logits(tokens)[:-1]


def log_softmax(logits: FloatArray) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def largest_error(ours: FloatArray, logits: FloatArray) -> float:
    """As a share of the logits' range. Log-probabilities are logits but for a constant."""
    return float(np.abs(ours - log_softmax(logits)).max() / np.ptp(logits))


LLAMA = Shape()
VARIANTS = {
    "llama": LLAMA,
    "llama untied": Shape(tied=False),
    "llama rope_freqs": Shape(rope_freqs=True, rope_base=500000.0),
    "llama hidden 72 like SmolLM2's 576, 3 heads a group": Shape(
        n_embd=72, n_head=9, n_head_kv=3, head_dim=8, n_ff=192, rope_base=100000.0
    ),
    "llama 4 heads a group": Shape(n_head=8, n_head_kv=2, head_dim=8),
    "qwen2 bias, 7 heads a group": Shape(
        "qwen2", n_embd=112, n_head=7, n_head_kv=1, n_ff=148, bias=True, rope_base=1e6
    ),
    "qwen2 untied": Shape("qwen2", n_head_kv=2, bias=True, tied=False),
    "qwen3 heads larger than hidden / heads": Shape(
        "qwen3", n_head=4, n_head_kv=2, head_dim=32, qk_norm=True, rope_base=1e6
    ),
    "qwen3 untied, smaller heads": Shape("qwen3", head_dim=8, qk_norm=True, tied=False),
}


@pytest.mark.parametrize("kind", [Type.F32, Type.F16], ids=lambda kind: kind.name)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_computes_the_reference_logits(
    small: Infer, variant: str, kind: Type
) -> None:
    shape = VARIANTS[variant]
    ours, logits = score_and_reference(small, shape, kind)
    assert largest_error(ours, logits) <= 1e-3


@pytest.mark.parametrize(
    "kind",
    [
        Type.BF16,
        Type.Q8_0,
        Type.Q4_0,
        Type.Q4_1,
        Type.Q5_0,
        Type.Q5_1,
        Type.Q2_K,
        Type.Q3_K,
        Type.Q4_K,
        Type.Q5_K,
        Type.Q6_K,
    ],
    ids=lambda kind: kind.name,
)
def test_every_type_predicts_like_the_reference(small: Infer, kind: Type) -> None:
    shape = Shape(n_embd=256, n_head=8, n_head_kv=2, head_dim=32, n_ff=512, tied=False)
    kl, same = [], []
    for seed in range(3):  # near ties of one model's 149 predictions move its top-1 by 3 %
        ours, logits = score_and_reference(small, shape, kind, seed=seed)
        theirs = log_softmax(logits)
        assert theirs.max(-1).mean() > np.log(10 / shape.n_vocab)  # far from uniform
        kl.append((np.exp(theirs) * (theirs - ours)).sum(-1).mean())
        same.append((ours.argmax(-1) == theirs.argmax(-1)).mean())
    assert np.mean(kl) <= 0.0005
    assert np.mean(same) >= 0.96


@pytest.mark.parametrize(
    "ignored", [{"rope_freqs": False}, {"rope_base": 9000.0}, {"n_layer": 1}], ids=str
)
def test_the_bound_notices_a_part_of_the_model_that_is_ignored(
    small: Infer, ignored: dict[str, float]
) -> None:
    shape = dataclasses.replace(LLAMA, rope_freqs=True)
    ours, logits = score_and_reference(
        small, shape, Type.F32, reference_shape=dataclasses.replace(shape, **ignored)
    )
    assert largest_error(ours, logits) > 5e-3


def test_what_transformers_cannot_compute_exactly_has_no_reference(tmp_path: Path) -> None:
    path = write_model(
        tmp_path / "x.gguf", dataclasses.replace(LLAMA, architecture="phi2"), Type.F32
    )
    with pytest.raises(NoReferenceError, match="'phi2'"):
        ReferenceModel(path)
