"""Language-model inference inside Redis.

import redis
from redis_infer import Infer

infer = Infer(redis.Redis())
infer.load("smol", "SmolLM2-135M-Instruct.Q4_1.gguf")
print(infer.generate("smol", [{"role": "user", "content": "Why is the sky blue?"}]).text)
"""

from importlib.metadata import PackageNotFoundError, version

from .client import AsyncInfer, Infer
from .commands import GenerateOptions, RagOptions, pack_tokens, unpack_tokens
from .corpus import Answer, AsyncCorpus, Corpus, CorpusInfo, Hit
from .errors import (
    BadTokensError,
    BusyError,
    ContextError,
    CorpusError,
    InferError,
    ModuleMissingError,
    NoKeyError,
    NoModelError,
    RequestCancelledError,
    TokenizerError,
    VectorSetsMissingError,
    WrongTypeError,
)
from .results import (
    Generation,
    ModelInfo,
    Piece,
    RagGeneration,
    Score,
    SkippedSource,
    Source,
)
from .streaming import AsyncStream, Stream

try:
    __version__ = version("redis-infer")
except PackageNotFoundError:  # imported from a source tree
    __version__ = "0+source"

__all__ = [
    "Answer",
    "AsyncCorpus",
    "AsyncInfer",
    "AsyncStream",
    "BadTokensError",
    "BusyError",
    "ContextError",
    "Corpus",
    "CorpusError",
    "CorpusInfo",
    "GenerateOptions",
    "Generation",
    "Hit",
    "Infer",
    "InferError",
    "ModelInfo",
    "ModuleMissingError",
    "NoKeyError",
    "NoModelError",
    "Piece",
    "RagGeneration",
    "RagOptions",
    "RequestCancelledError",
    "Score",
    "SkippedSource",
    "Source",
    "Stream",
    "TokenizerError",
    "VectorSetsMissingError",
    "WrongTypeError",
    "__version__",
    "pack_tokens",
    "unpack_tokens",
]
