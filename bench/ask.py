"""How long a question to a corpus takes: about 1,000 tokens of context, the common prefix known.

    python bench/ask.py [--runs 3] [--max-tokens 64]

Each question is new to the server, so that only the corpus' prefix is in the cache. Printed are
the parts of the way: the question's vector, the search, the first token, the whole answer.
"""

from __future__ import annotations

import argparse
import statistics
import sysconfig
import tempfile
import time
from pathlib import Path

from redis_infer import Corpus, Infer, models
from redis_infer.ingest import ingest
from redis_infer.server import Server

FILES = ["base64.py", "cmd.py", "csv.py", "queue.py", "shlex.py", "string.py", "textwrap.py"]
QUESTIONS = [
    "How is a long line broken?",
    "How does a thread wait for an item?",
    "How are bytes written as text?",
    "Which quotes does a shell know?",
    "How is a dollar sign written in a template?",
    "What happens to an unknown command?",
    "Which character separates the columns?",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=64)
    arguments = parser.parse_args()

    model, embedder = models.pull(models.DEFAULT_MODEL), models.pull("all-minilm-l6-v2")
    with tempfile.TemporaryDirectory() as folder, Server(model_dir=model.parent) as server:
        for name in FILES:
            source = Path(sysconfig.get_paths()["stdlib"]) / name
            (Path(folder) / name).write_bytes(source.read_bytes())
        infer = Infer(server.client(socket_timeout=None))
        infer.load("gen", model)
        infer.load("emb", embedder)
        ingest(infer, folder, "bench", model="gen", embed_model="emb")
        corpus = Corpus(infer, "bench")
        corpus.ask("What is this?", max_tokens=1)

        rows = []
        for run in range(arguments.runs):
            for question in QUESTIONS:
                begin = time.perf_counter()
                answer = corpus.ask(
                    f"{question} ({run})",
                    top_n=6,
                    budget=1000,
                    max_tokens=arguments.max_tokens,
                    ignore_eos=True,
                )
                whole_us = (time.perf_counter() - begin) * 1e6
                g = answer.generation
                context = sum(source.tokens_used or 0 for source in answer.sources)
                rows.append(
                    (context, g.cached_tokens, g.embed_us, g.search_us, g.first_token_us, whole_us)
                )
        context, cached, *times = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"context {context:.0f} tokens, {cached:.0f} of the prompt known (medians)")
        for what, us in zip(("vector", "search", "first token", "whole"), times, strict=True):
            print(f"{what:12} {us / 1000:8.1f} ms")


if __name__ == "__main__":
    main()
