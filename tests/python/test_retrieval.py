"""Whether a question finds the right file, with the real embedding model.

The code base is a part of Python's own library that hardly changes and is everywhere: the files
of ``data/questions.json``, each with a question that it answers. The questions name neither
file nor function.
"""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from redis_infer import Corpus, Infer
from redis_infer.ingest import ingest
from redis_infer.results import FloatArray

QUESTIONS: dict[str, str] = json.loads(
    (Path(__file__).parent / "data/questions.json").read_text(encoding="utf-8")
)
STDLIB = Path(sysconfig.get_paths()["stdlib"])
TOP = 4


@pytest.fixture
def library(tmp_path: Path) -> Path:
    for name in QUESTIONS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((STDLIB / name).read_bytes())
    return tmp_path


def test_questions_find_the_right_file_and_no_worse_than_an_exact_search(
    embedding: Infer, library: Path
) -> None:
    vectors: list[FloatArray] = []
    owners: list[str] = []

    def embed(texts: Sequence[str]) -> FloatArray:
        found = embedding.embed("minilm", texts, truncate=True)
        vectors.extend(found)
        owners.extend(text.split(" ")[0] for text in texts)
        return found

    ingest(embedding, library, "library", model="smol", embed_model="minilm", embed=embed)
    exact = np.stack(vectors)
    corpus = Corpus(embedding, "library")
    queries = embedding.embed("minilm", list(QUESTIONS.values()))
    right, right_exactly = [], []
    for path, query in zip(QUESTIONS, queries, strict=True):
        right.append(path in {hit.path for hit in corpus.search(query, TOP)})
        nearest = np.argsort(-(exact @ query))[:TOP]
        right_exactly.append(path in {owners[i] for i in nearest})
    assert len(QUESTIONS) >= 30
    assert np.mean(right) >= 0.8
    assert sum(right) >= sum(right_exactly)
