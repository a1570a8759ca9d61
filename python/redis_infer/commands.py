"""The commands as data: their arguments, and how their replies are read.

Nothing here talks to a server, so the synchronous and the asynchronous client share all of
it. Replies come undecoded: maps as dicts with bytes keys (RESP3) or as flat lists (RESP2).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt

from .results import (
    FloatArray,
    Generation,
    ModelInfo,
    RagGeneration,
    RequestInfo,
    Score,
    SkippedSource,
    Source,
    TokenArray,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")

Key = str | bytes
Argument = str | bytes | int | float
Tokens = Sequence[int] | npt.NDArray[np.integer[Any]]
"""Token ids in one dimension: a numpy array of integers, a list of ints."""

TokenBatch = Sequence[Tokens] | npt.NDArray[np.integer[Any]]
"""Token ids of several texts: a sequence of them, or an array [n_texts, n_tokens]."""


Vector = Sequence[float] | npt.NDArray[np.floating[Any]]
"""[dimensions]"""


@dataclass(frozen=True)
class Command(Generic[T]):
    args: tuple[Argument, ...]
    parse: Callable[[Any], T]


class GenerateOptions(TypedDict, total=False):
    """Options of generate; one that is not given has the server's default."""

    max_tokens: int
    """Most tokens to generate (128)."""
    temperature: float
    """0 (the default) always takes the likeliest token; 1 samples from the model's distribution."""
    top_k: int
    """Sample among the k likeliest; 0: among all."""
    top_p: float
    """Sample among the likeliest that together have this probability."""
    min_p: float
    """Leave out tokens less likely than this share of the likeliest one."""
    repeat_penalty: float
    """Above 1: tokens seen recently become less likely."""
    seed: int
    """The same seed gives the same tokens."""
    stop: str | Sequence[str]
    """Texts that end the generation; they are not part of the text."""
    ignore_eos: bool
    """Do not stop at the model's end-of-text tokens."""
    logprobs: int
    """Return each token's log-probability, and this many alternatives (0: none)."""
    no_cache: bool
    """Neither use nor keep the keys and values of a common beginning."""
    timeout_ms: int
    """Stop after this time with finish_reason "timeout"."""
    store: Key
    """Also store the generated tokens under this key."""
    stream: Key
    """Also add each token to this Redis stream as it is made; see :meth:`Infer.follow`."""
    stream_maxlen: int
    """Keep so many of the stream's newest entries."""
    stream_ttl_ms: int
    """Let the stream expire so long after its last entry."""


class RagOptions(GenerateOptions, total=False):
    """Options of rag: those of generate, and these. Keys are read inside the server."""

    top_n: int
    """Elements to search for (4)."""
    filter: str
    """An expression over the elements' attributes, as of VSIM: ``.lang == "python"``."""
    epsilon: float
    """Only elements with a score of at least 1 - epsilon."""
    ef: int
    """How widely the graph is searched: more is slower and finds more."""
    attribute: str
    """The attribute that holds an element's token key ("tokens")."""
    budget: int
    """Most tokens of elements and what is between them; default: what the context holds."""
    before: Key
    """A token key: the prompt's beginning."""
    between: Key
    """A token key: comes between two elements."""
    after: Key
    """A token key: comes after the last element, and before ``prompt``."""
    skip_bad: bool
    """Go on without elements whose tokens cannot be read, and report them in ``skipped``."""


# ---- models ----


def load(
    name: str,
    path: str | bytes | os.PathLike[str],
    *,
    context: int | None = None,
    kv_memory: int | None = None,
) -> Command[ModelInfo]:
    args: list[Argument] = ["INFER.MODEL", "LOAD", name, os.fsencode(path)]
    _put(args, "CONTEXT", context)
    _put(args, "KVMEMORY", kv_memory)
    return Command(tuple(args), as_info)


def unload(name: str) -> Command[None]:
    return Command(("INFER.MODEL", "UNLOAD", name), lambda _reply: None)


def models() -> Command[list[ModelInfo]]:
    return Command(("INFER.MODEL", "LIST"), lambda reply: [as_info(entry) for entry in reply])


def info(name: str) -> Command[ModelInfo]:
    return Command(("INFER.MODEL", "INFO", name), as_info)


# ---- prompts ----


def generate(
    model: str, keys: Key | Iterable[Key], tokens: Tokens | None, **options: Unpack[GenerateOptions]
) -> Command[Generation]:
    return Command(_generate(model, keys, tokens, options), _parse_generation)


def submit(
    model: str, keys: Key | Iterable[Key], tokens: Tokens | None, **options: Unpack[GenerateOptions]
) -> Command[int]:
    return Command((*_generate(model, keys, tokens, options), "ASYNC"), int)


def _generate(
    model: str, keys: Key | Iterable[Key], tokens: Tokens | None, options: GenerateOptions
) -> tuple[Argument, ...]:
    args: list[Argument] = ["INFER.GENERATE", model, *_prompt(keys, tokens)]
    _put_options(args, "generate", GenerateOptions, options)
    return tuple(args)


def rag(
    model: str,
    vset: Key,
    tokens: Tokens | None,
    *,
    element: Key | None = None,
    vector: Vector | None = None,
    embed: tuple[str, Tokens] | None = None,
    **options: Unpack[RagOptions],
) -> Command[RagGeneration]:
    """One of element, vector and embed (model and tokens) is the query."""
    args: list[Argument] = ["INFER.RAG", model, vset]
    if element is not None:
        args += ["ELE", element]
    if vector is not None:
        args += ["FP32", pack_vector(vector)]
    if embed is not None:
        args += ["EMBED", embed[0], pack_tokens(embed[1])]
    if (element is not None) + (vector is not None) + (embed is not None) != 1:
        raise ValueError("give one query: an element, a vector, or a query and embed_model")
    _put(args, "TOPN", options.get("top_n"))
    _put(args, "FILTER", options.get("filter"))
    _put(args, "EPSILON", options.get("epsilon"))
    _put(args, "EF", options.get("ef"))
    _put(args, "ATTR", options.get("attribute"))
    _put(args, "BUDGET", options.get("budget"))
    _put(args, "BEFORE", options.get("before"))
    _put(args, "BETWEEN", options.get("between"))
    _put(args, "AFTER", options.get("after"))
    if options.get("skip_bad"):
        args.append("SKIPBAD")
    if tokens is not None:
        args += ["TOKENS", pack_tokens(tokens)]
    _put_options(args, "rag", RagOptions, options)
    return Command(tuple(args), _parse_rag)


def score(
    model: str, keys: Key | Iterable[Key], tokens: Tokens | None, *, top: int | None = None
) -> Command[Score]:
    args: list[Argument] = ["INFER.SCORE", model, *_prompt(keys, tokens)]
    _put(args, "TOP", top)
    return Command(tuple(args), _parse_score)


def embed(
    model: str,
    keys: Key | Iterable[Key],
    inputs: TokenBatch,
    *,
    timeout_ms: int | None = None,
) -> Command[FloatArray]:
    names = [keys] if isinstance(keys, (str, bytes)) else list(keys)
    args: list[Argument] = ["INFER.EMBED", model, len(names), *names]
    if len(inputs):  # an array has no truth value
        blobs = [pack_tokens(tokens) for tokens in inputs]
        lengths = np.array([len(blob) // 4 for blob in blobs], "<u4")
        args += ["TOKENS", b"".join(blobs), "LENGTHS", lengths.tobytes()]
    elif not names:
        raise ValueError("there is nothing to embed: give texts, token ids or keys")
    _put(args, "TIMEOUT", timeout_ms)
    return Command(tuple(args), _parse_vectors)


MAX_EMBED_INPUTS = 4096
"""Texts of one command. The server takes more; but each command's reply waits for all of them."""


def embed_batches(
    model: str,
    keys: Sequence[Key],
    inputs: TokenBatch,
    *,
    timeout_ms: int | None = None,
) -> Iterator[Command[FloatArray]]:
    """Commands for any number of inputs: keys first."""
    for begin in range(0, max(len(keys) + len(inputs), 1), MAX_EMBED_INPUTS):
        end = begin + MAX_EMBED_INPUTS
        some = inputs[max(begin - len(keys), 0) : max(end - len(keys), 0)]
        yield embed(model, keys[begin:end], some, timeout_ms=timeout_ms)


def requests() -> Command[list[RequestInfo]]:
    return Command(("INFER.REQUESTS",), lambda reply: [as_info(entry) for entry in reply])


def cancel(request_id: int) -> Command[bool]:
    return Command(("INFER.CANCEL", request_id), bool)


# ---- token keys ----


def store_tokens(key: Key, tokens: Tokens, *, expire_s: int | None = None) -> Command[None]:
    args: list[Argument] = ["SET", key, pack_tokens(tokens)]
    _put(args, "EX", expire_s)
    return Command(tuple(args), lambda _reply: None)


def load_tokens(key: Key) -> Command[TokenArray | None]:
    return Command(
        ("GET", key), lambda reply: None if reply is None else unpack_tokens(reply, f"key {key!r}")
    )


def pack_tokens(tokens: Tokens) -> bytes:
    """Token ids as the module reads them: little-endian uint32, no header.

    Raises:
        TypeError: they are not integers.
        ValueError: they are not one-dimensional, or one does not fit 32 bits.
    """
    if isinstance(tokens, (bytes, bytearray, memoryview)):
        raise TypeError(
            "bytes are neither text nor token ids: decode them, or use numpy.frombuffer(b, '<u4')"
        )
    array = np.asarray(tokens)
    if array.ndim != 1:
        raise ValueError(f"token ids come in one dimension, not in {array.ndim}")
    if array.size and array.dtype.kind not in "iu":
        # Of a list with integers that fit none of numpy's types it makes objects or floats.
        if array.dtype.kind in "Of" and all(isinstance(token, int) for token in tokens):
            _check_32_bits(tokens)
        raise TypeError(f"token ids are integers, not {array.dtype}")
    if array.size and (int(array.min()) < 0 or int(array.max()) > 0xFFFFFFFF):
        _check_32_bits(array)
    return array.astype("<u4").tobytes()


def _check_32_bits(tokens: Tokens) -> None:
    for token in tokens:
        if not 0 <= int(token) <= 0xFFFFFFFF:
            raise ValueError(f"token id {token} does not fit 32 bits without a sign")


def pack_vector(vector: Vector) -> bytes:
    """A vector as VADD and VSIM take it: FP32, little-endian.

    Raises:
        ValueError: it is not one-dimensional.
    """
    array = np.asarray(vector, "<f4")
    if array.ndim != 1:
        raise ValueError(f"a vector has one dimension, not {array.ndim}")
    return array.tobytes()


def unpack_tokens(blob: bytes, what: str = "the reply") -> TokenArray:
    """The reverse of :func:`pack_tokens`; the array is a copy that may be written to."""
    if len(blob) % 4:
        raise ValueError(f"{what} holds {len(blob)} bytes, not a whole number of uint32 tokens")
    return np.frombuffer(blob, dtype="<u4").astype(np.uint32)


# ---- inside ----


def _put(args: list[Argument], word: str, value: Argument | None) -> None:
    if value is not None:
        args += [word, value]


def key_list(keys: Key | Iterable[Key]) -> list[Key]:
    return [keys] if isinstance(keys, (str, bytes)) else list(keys)


def _put_options(
    args: list[Argument], name: str, kind: type, options: GenerateOptions | RagOptions
) -> None:
    """Appends what GenerateOptions has; ``kind`` says what may be there beside it."""
    unknown = options.keys() - kind.__annotations__.keys()
    if unknown:
        raise TypeError(f"{name} has no option '{sorted(unknown)[0]}'")
    _put(args, "MAXTOKENS", options.get("max_tokens"))
    _put(args, "TEMPERATURE", options.get("temperature"))
    _put(args, "TOPK", options.get("top_k"))
    _put(args, "TOPP", options.get("top_p"))
    _put(args, "MINP", options.get("min_p"))
    _put(args, "REPEAT", options.get("repeat_penalty"))
    _put(args, "SEED", options.get("seed"))
    stop = options.get("stop")
    texts = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if texts:
        args += ["STOP", len(texts), *texts]
    if options.get("ignore_eos"):
        args.append("IGNOREEOS")
    _put(args, "LOGPROBS", options.get("logprobs"))
    if options.get("no_cache"):
        args.append("NOCACHE")
    _put(args, "TIMEOUT", options.get("timeout_ms"))
    _put(args, "STORE", options.get("store"))
    _put(args, "STREAM", options.get("stream"))
    _put(args, "MAXLEN", options.get("stream_maxlen"))
    _put(args, "TTL", options.get("stream_ttl_ms"))


def _prompt(keys: Key | Iterable[Key], tokens: Tokens | None) -> list[Argument]:
    names = key_list(keys)
    args: list[Argument] = [len(names), *names]
    if tokens is not None:
        args += ["TOKENS", pack_tokens(tokens)]
    elif not names:
        raise ValueError("there is no prompt: give text, messages, token ids or keys")
    return args


def as_map(reply: Any) -> dict[str, Any]:
    """A map reply of either protocol, its keys as text, its values untouched."""
    if isinstance(reply, dict):
        pairs: Iterable[tuple[Any, Any]] = reply.items()
    else:
        pairs = zip(reply[::2], reply[1::2], strict=True)
    return {_text(name): value for name, value in pairs}


def as_hash(reply: Any) -> dict[bytes, bytes]:
    """The fields of HGETALL, of either protocol, untouched."""
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


def as_info(reply: Any) -> dict[str, Any]:
    """A map whose values are numbers and text; ``path`` is good for opening the file."""
    fields = as_map(reply)
    for name, value in fields.items():
        if isinstance(value, bytes):
            fields[name] = os.fsdecode(value) if name == "path" else _text(value)
    return fields


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", errors="replace")


def _floats(blob: bytes) -> FloatArray:
    return np.frombuffer(blob, dtype="<f4").astype(np.float32)


def parse_top(fields: dict[str, Any], rows: int) -> tuple[TokenArray | None, FloatArray | None]:
    """top_ids and top_logprobs, [rows, alternatives]."""
    if "top_ids" not in fields:
        return None, None
    ids = unpack_tokens(fields["top_ids"])
    columns = ids.size // rows if rows else 0
    return ids.reshape(rows, columns), _floats(fields["top_logprobs"]).reshape(rows, columns)


def _parse_generation(reply: Any) -> Generation:
    return Generation(**_generation_fields(as_map(reply)))


def _parse_rag(reply: Any) -> RagGeneration:
    fields = as_map(reply)
    return RagGeneration(
        **_generation_fields(fields),
        sources=[Source(_name(e), float(score), n) for e, score, n in fields["sources"]],
        skipped=[SkippedSource(_name(e), _text(error)) for e, error in fields["skipped"]],
        search_us=fields["search_us"],
        gather_us=fields["gather_us"],
        embed_us=fields.get("embed_us"),
    )


def _name(element: bytes) -> str:
    return element.decode("utf-8", errors="surrogateescape")


def _generation_fields(fields: dict[str, Any]) -> dict[str, Any]:
    tokens = unpack_tokens(fields["tokens"])
    logprobs = _floats(fields["logprobs"]) if "logprobs" in fields else None
    top_ids, top_logprobs = parse_top(fields, tokens.size)
    return {
        "text": _text(fields["text"]),
        "tokens": tokens,
        "finish_reason": _text(fields["finish_reason"]),
        "prompt_tokens": fields["prompt_tokens"],
        "cached_tokens": fields["cached_tokens"],
        "output_tokens": fields["output_tokens"],
        "admit_us": fields["admit_us"],
        "queue_us": fields["queue_us"],
        "first_token_us": fields["first_token_us"],
        "total_us": fields["total_us"],
        "logprobs": logprobs,
        "top_ids": top_ids,
        "top_logprobs": top_logprobs,
    }


def _parse_vectors(reply: Any) -> FloatArray:
    fields = as_map(reply)
    vectors = fields["vectors"]
    return _floats(b"".join(vectors)).reshape(len(vectors), fields["dimensions"])


def _parse_score(reply: Any) -> Score:
    fields = as_map(reply)
    logprobs = _floats(fields["logprobs"])
    top_ids, top_logprobs = parse_top(fields, logprobs.size)
    return Score(logprobs, top_ids, top_logprobs)
