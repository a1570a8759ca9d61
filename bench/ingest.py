"""How fast a folder of code becomes a corpus: MB of text a second, with and without embedding.

    python bench/ingest.py [--files 1000] [--embed-files 100] [--runs 3]

The text is this Python's own library. Without embedding: vectors are random, which costs next to
nothing to make and is the hardest case for the graph of the vector set, so what is
measured is walking, hashing, cutting, tokenizing, storing, and building that graph; also as
CPU time, which other users of the machine change less. Then the same folder again, where nothing
has changed. In all: fewer files, with all-MiniLM-L6-v2 through INFER.EMBED.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import sysconfig
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from redis_infer import Corpus, Infer, models
from redis_infer.ingest import ingest, tree
from redis_infer.results import FloatArray
from redis_infer.server import Server

DIMENSIONS = 384


def random_vectors(texts: Sequence[str]) -> FloatArray:
    rows = [np.random.default_rng(zlib.crc32(t.encode())).normal(size=DIMENSIONS) for t in texts]
    return np.array(rows, np.float32)


def cpu_seconds(infer: Infer) -> npt.NDArray[np.float64]:
    """Of this process and of the server's."""
    used = infer._client.info("cpu")
    return np.array([time.process_time(), used["used_cpu_user"] + used["used_cpu_sys"]])


def copy_library(n_files: int, folder: Path) -> None:
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = (
        file
        for file in tree.files(library)
        if file.path.endswith(".py") and "site-packages" not in file.path
    )
    for file in itertools.islice(sources, n_files):
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(library / file.path, folder / file.path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--embed-files", type=int, default=100)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()

    model, embedder = models.pull(models.DEFAULT_MODEL), models.pull("all-minilm-l6-v2")
    with (
        tempfile.TemporaryDirectory() as many,
        tempfile.TemporaryDirectory() as few,
        Server(model_dir=model.parent) as server,
    ):
        infer = Infer(server.client(socket_timeout=None))
        infer.load("gen", model)
        infer.load("emb", embedder)
        copy_library(arguments.files, Path(many))
        copy_library(arguments.embed_files, Path(few))

        speeds, again, cpu = [], [], []
        for _ in range(arguments.runs):
            before = cpu_seconds(infer)
            report = ingest(
                infer, many, "bench", model="gen", embed_model="random", embed=random_vectors
            )
            own = report.seconds - report.embed_seconds  # making random vectors
            speeds.append(report.text_bytes / 1e6 / own)
            used = cpu_seconds(infer) - before
            cpu.append(used / (report.text_bytes / 1e6))
            begin = time.perf_counter()
            ingest(infer, many, "bench", model="gen", embed_model="random", embed=random_vectors)
            again.append(time.perf_counter() - begin)
            Corpus(infer, "bench").drop()
        print(
            f"without embedding: {statistics.median(speeds):.2f} MB/s "
            f"(of {', '.join(f'{speed:.2f}' for speed in speeds)}); {report.added} files, "
            f"{report.text_bytes / 1e6:.1f} MB, {report.chunks} chunks, {report.tokens} tokens"
        )
        client, server_cpu = np.median(cpu, axis=0)
        print(f"CPU time:          {client:.2f} s/MB client, {server_cpu:.2f} s/MB server")
        print(f"nothing changed:   {statistics.median(again):.2f} s for all files")
        if arguments.embed_files:
            before = cpu_seconds(infer)
            report = ingest(infer, few, "bench", model="gen", embed_model="emb")
            client, server_cpu = (cpu_seconds(infer) - before) / (report.text_bytes / 1e6)
            print(
                f"in all:            {report.text_bytes / 1e6 / report.seconds:.3f} MB/s, "
                f"{report.chunks / report.seconds:.0f} chunks/s; {report.added} files, "
                f"{report.text_bytes / 1e6:.1f} MB, {report.embed_seconds:.1f} of "
                f"{report.seconds:.1f} s for vectors; "
                f"CPU time {client:.2f} s/MB client, {server_cpu:.2f} s/MB server"
            )


if __name__ == "__main__":
    main()
