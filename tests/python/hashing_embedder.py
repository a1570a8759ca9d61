"""An embedder without a model: the words of a text, hashed. Texts that share words are near."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from redis_infer.results import FloatArray

DIMENSIONS = 64


def embed(texts: Sequence[str]) -> FloatArray:
    """[n, DIMENSIONS], normalized."""
    vectors = np.full((len(texts), DIMENSIONS), 1e-3, np.float32)
    for row, text in zip(vectors, texts, strict=True):
        for word in re.findall(r"\w+", text.lower()):
            digest = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
            row[digest % DIMENSIONS] += 1.0 if digest >> 32 & 1 else -1.0
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def other(texts: Sequence[str]) -> FloatArray:
    """Another model of the same size."""
    return embed([f"{text} more words of quite another kind" for text in texts])[:, ::-1].copy()
