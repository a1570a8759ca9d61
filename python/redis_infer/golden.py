"""How well the module agrees with transformers in float32, on the same weights and tokens.

    python -m redis_infer.golden --model FILE [--texts DIR] [--kernels NAME]

For each text, the server's INFER.SCORE is compared with the reference:

- top-1: how often the likeliest next token is the same, in per cent of the positions.
- KL: the mean over all positions of the Kullback-Leibler divergence KL(reference || ours) in
  nats, over 21 outcomes: each of the reference's 20 likeliest tokens, and "any other
  token". The probabilities are those of the whole vocabulary, not renormalized. (The last
  outcome makes it a divergence, never negative; the sum over 20 tokens alone is not.)
- NLL: the mean negative log-likelihood of the text, in nats, by the reference and by ours.

A chat (``*.json``, a list of messages) is rendered with the model's template; any other text
(``*.txt``) is taken as it is, after the beginning-of-text token where the model wants one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import redis

from .client import Infer
from .module_path import ModuleNotBuiltError
from .results import FloatArray, Score, TokenArray
from .server import Server, ServerError
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from .reference import Reference

TEXTS = Path("tests/python/data/texts")
"""Where the project's own texts lie in its source tree."""

SCORE_TOP = 256
"""Alternatives asked of INFER.SCORE: enough that the reference's 20 are among them."""

_SMALLEST = 1e-9  # a probability below is rounding error of the sum over 20


@dataclass(frozen=True)
class Agreement:
    """Ours against the reference, on one text or as the mean over texts."""

    n_tokens: int
    top1: float
    """Share of the positions, 0 to 1."""
    kl: float
    """Nats."""
    nll_reference: float
    nll_ours: float

    @property
    def nll_change(self) -> float:
        """Relative to the reference."""
        return self.nll_ours / self.nll_reference - 1


def agreement(reference: Reference, score: Score) -> Agreement:
    """Compares the predictions for one text; ``score`` was made with ``top``."""
    assert score.top_ids is not None and score.top_logprobs is not None
    p = reference.top_logprobs.astype(np.float64)
    q = _logprobs_of(reference.top_ids, score.top_ids, score.top_logprobs).astype(np.float64)
    rest_p = np.maximum(1 - np.exp(p).sum(1), _SMALLEST)
    rest_q = np.maximum(1 - np.exp(q).sum(1), _SMALLEST)
    kl = (np.exp(p) * (p - q)).sum(1) + rest_p * np.log(rest_p / rest_q)
    return Agreement(
        n_tokens=len(p) + 1,
        top1=float((reference.top_ids[:, 0] == score.top_ids[:, 0]).mean()),
        kl=float(kl.mean()),
        nll_reference=-float(reference.logprobs.mean(dtype=np.float64)),
        nll_ours=score.mean_nll,
    )


def _logprobs_of(ids: TokenArray, top_ids: TokenArray, top_logprobs: FloatArray) -> FloatArray:
    """[rows, k] The values of ``ids`` [rows, k] in ``top_*`` [rows, n].

    An id that is not among them is at most as likely as the last one, and is taken for that.
    """
    order = np.argsort(top_ids, axis=1)
    ordered = np.take_along_axis(top_ids, order, 1)
    at = np.stack([np.searchsorted(row, wanted) for row, wanted in zip(ordered, ids, strict=True)])
    at = np.take_along_axis(order, np.minimum(at, top_ids.shape[1] - 1), 1)
    found = np.take_along_axis(top_ids, at, 1) == ids
    return np.where(found, np.take_along_axis(top_logprobs, at, 1), top_logprobs[:, -1:])


def mean(agreements: Sequence[Agreement]) -> Agreement:
    """The mean over texts, each counting the same."""
    return Agreement(
        n_tokens=sum(a.n_tokens for a in agreements),
        top1=float(np.mean([a.top1 for a in agreements])),
        kl=float(np.mean([a.kl for a in agreements])),
        nll_reference=float(np.mean([a.nll_reference for a in agreements])),
        nll_ours=float(np.mean([a.nll_ours for a in agreements])),
    )


def read_texts(folder: Path, tokenizer: Tokenizer) -> dict[str, TokenArray]:
    """The tokens of each text of a folder, by file name without suffix.

    Raises:
        FileNotFoundError: there is no text in it.
    """
    texts = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json":
            chat = tokenizer.render_chat(
                json.loads(path.read_text("utf-8")), add_generation_prompt=False
            )
            texts[path.stem] = tokenizer.encode(chat)
        elif path.suffix == ".txt":
            texts[path.stem] = tokenizer.encode(
                path.read_text("utf-8"), add_special=True, parse_special=False
            )
    if not texts:
        raise FileNotFoundError(f"{folder} holds no *.txt and no *.json")
    return texts


# ---- stored references: half a megabyte for what takes transformers a minute and a gigabyte ----


def write_references(
    path: Path, model: Path, texts: Mapping[str, TokenArray], references: Mapping[str, Reference]
) -> None:
    """Stores predictions with the model's SHA-256 and the tokens that they belong to."""
    arrays: dict[str, np.ndarray] = {"model_sha256": np.array(_sha256(model))}
    for name, reference in references.items():
        arrays[f"{name}.tokens"] = texts[name]
        arrays[f"{name}.logprobs"] = reference.logprobs
        arrays[f"{name}.top_ids"] = reference.top_ids
        arrays[f"{name}.top_logprobs"] = reference.top_logprobs
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def read_references(
    path: Path, model: Path, texts: Mapping[str, TokenArray]
) -> dict[str, Reference]:
    """Stored predictions for these texts.

    Raises:
        ValueError: they were made with another model or from other tokens.
    """
    from .reference import Reference

    with np.load(path) as arrays:
        if str(arrays["model_sha256"]) != _sha256(model):
            raise ValueError(f"{path} was made with another model than {model}")
        for name, tokens in texts.items():
            if f"{name}.tokens" not in arrays or not np.array_equal(
                arrays[f"{name}.tokens"], tokens
            ):
                raise ValueError(f"{path} was made from other tokens of the text '{name}'")
        return {
            name: Reference(
                arrays[f"{name}.logprobs"],
                arrays[f"{name}.top_ids"],
                arrays[f"{name}.top_logprobs"],
            )
            for name in texts
        }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# ---- the command ----


def table(agreements: Mapping[str, Agreement]) -> str:
    """One line a text, and their mean."""
    lines = [f"{'text':<12} {'tokens':>6} {'top-1 %':>8} {'KL':>9} {'NLL ref':>8} {'NLL':>8}"]
    for name, a in {**agreements, "mean": mean(list(agreements.values()))}.items():
        lines.append(
            f"{name:<12} {a.n_tokens:>6} {100 * a.top1:>8.2f} {a.kl:>9.6f} "
            f"{a.nll_reference:>8.4f} {a.nll_ours:>8.4f}"
        )
    return "\n".join(lines)


def _predict(model: Path, texts: Mapping[str, TokenArray]) -> dict[str, Reference]:
    from .reference import ReferenceModel

    reference_model = ReferenceModel(model)
    return {name: reference_model.predict(tokens) for name, tokens in texts.items()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m redis_infer.golden",
        description="Compares the module with transformers in float32 on the same weights.",
    )
    parser.add_argument("--model", type=Path, required=True, help="the GGUF file of a decoder")
    parser.add_argument(
        "--texts", type=Path, default=TEXTS, help="a folder of *.txt and *.json (%(default)s)"
    )
    parser.add_argument(
        "--kernels",
        help="the kernel table: scalar, avx2, avxvnni, avx512, amx, neon, neon-dotprod or "
        "neon-i8mm; default: the best that the processor has",
    )
    parser.add_argument("--threads", type=int, help="compute threads of the server")
    stored = parser.add_mutually_exclusive_group()
    stored.add_argument(
        "--references", type=Path, help="take the reference's predictions from this file"
    )
    stored.add_argument(
        "--write", type=Path, help="only compute the reference's predictions, into this file"
    )
    return parser.parse_args()


def main() -> int:
    arguments = _arguments()
    try:
        model: Path = arguments.model.resolve(strict=True)
        texts = read_texts(arguments.texts, Tokenizer.from_gguf(model))
        if arguments.write:
            write_references(arguments.write, model, texts, _predict(model, texts))
            return 0
        if arguments.references:
            references = read_references(arguments.references, model, texts)
        else:
            references = _predict(model, texts)
        if arguments.kernels:
            os.environ["REDIS_INFER_KERNELS"] = arguments.kernels
        with Server(model_dir=model.parent, threads=arguments.threads) as server:
            infer = Infer(server.client())
            infer.load("golden", model)
            agreements = {
                name: agreement(references[name], infer.score("golden", tokens, top=SCORE_TOP))
                for name, tokens in texts.items()
            }
    except (OSError, ValueError, ServerError, ModuleNotBuiltError, redis.RedisError) as error:
        print(f"golden: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(
            f"golden: {error}: the reference needs pip install 'redis-infer[golden]'",
            file=sys.stderr,
        )
        return 1
    print(table(agreements))
    return 0


if __name__ == "__main__":
    sys.exit(main())
