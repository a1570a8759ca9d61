"""Arguments and replies of the commands, without a server."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis.exceptions import (
    ClusterCrossSlotError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)

from redis_infer import SkippedSource, Source, commands, errors, pack_tokens, unpack_tokens

FIELDS = {
    "text": "héllo".encode(),
    "tokens": struct.pack("<3I", 1, 0x80, 0xFFFFFFFF),
    "finish_reason": b"length",
    "prompt_tokens": 7,
    "cached_tokens": 4,
    "output_tokens": 3,
    "admit_us": 11,
    "queue_us": 12,
    "first_token_us": 1000,
    "total_us": 5000,
}


def as_resp3(fields: dict[str, Any]) -> dict[bytes, Any]:
    return {name.encode(): value for name, value in fields.items()}


def as_resp2(fields: dict[str, Any]) -> list[Any]:
    return [part for name, value in fields.items() for part in (name.encode(), value)]


def test_keys_come_before_tokens_and_are_counted() -> None:
    command = commands.generate("m", ["a", b"b"], [1, 2])
    assert command.args == (
        *("INFER.GENERATE", "m", 2, "a", b"b"),
        *("TOKENS", b"\x01\0\0\0\x02\0\0\0"),
    )


def test_a_single_key_is_not_taken_apart() -> None:
    assert commands.generate("m", "key", None).args[2:] == (1, "key")


def test_every_option_becomes_its_own_words() -> None:
    command = commands.generate(
        "m",
        "k",
        None,
        max_tokens=5,
        temperature=0.5,
        top_k=40,
        top_p=0.9,
        min_p=0.05,
        repeat_penalty=1.1,
        seed=0,
        stop=["\n", "END"],
        ignore_eos=True,
        logprobs=0,
        no_cache=True,
        timeout_ms=100,
        store="out",
    )
    assert command.args[4:] == (
        *("MAXTOKENS", 5, "TEMPERATURE", 0.5, "TOPK", 40, "TOPP", 0.9, "MINP", 0.05),
        *("REPEAT", 1.1, "SEED", 0, "STOP", 2, "\n", "END", "IGNOREEOS"),
        *("LOGPROBS", 0, "NOCACHE", "TIMEOUT", 100, "STORE", "out"),
    )


def test_one_stop_text_is_one_text() -> None:
    assert commands.generate("m", "k", None, stop="END").args[-3:] == ("STOP", 1, "END")


def test_no_stop_texts_leave_the_option_out() -> None:
    assert "STOP" not in commands.generate("m", "k", None, stop=[]).args


def test_an_option_that_is_none_is_left_out() -> None:
    options = dict.fromkeys(commands.GenerateOptions.__annotations__)
    command = commands.generate("m", "k", None, **options)  # type: ignore[arg-type]
    assert command.args == commands.generate("m", "k", None).args


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(TypeError, match="'maxtokens'"):
        commands.generate("m", "k", None, maxtokens=3)  # type: ignore[call-arg]


def test_inputs_of_one_length_may_be_one_array() -> None:
    rows = [[1, 2, 3], [4, 5, 6]]
    expected = commands.embed("m", ["k"], rows).args
    assert commands.embed("m", ["k"], np.array(rows)).args == expected
    (command,) = commands.embed_batches("m", ["k"], np.array(rows))
    assert command.args == expected


def test_a_prompt_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no prompt"):
        commands.generate("m", (), None)


@pytest.mark.parametrize("form", [as_resp2, as_resp3])
def test_a_generation_reads_the_same_from_both_protocols(form: Any) -> None:
    result = commands.generate("m", "k", None).parse(form(FIELDS))
    assert result.text == "héllo"
    assert result.tokens.tolist() == [1, 0x80, 0xFFFFFFFF]
    assert result.tokens.dtype == np.uint32
    assert (result.finish_reason, result.prompt_tokens, result.cached_tokens) == ("length", 7, 4)
    assert (result.admit_us, result.queue_us, result.total_us) == (11, 12, 5000)
    assert result.decode_tokens_per_s == pytest.approx(2 / 0.004)
    assert result.logprobs is None


def test_decode_speed_needs_a_second_token() -> None:
    fields = FIELDS | {"tokens": b"\1\0\0\0", "output_tokens": 1}
    assert commands.generate("m", "k", None).parse(as_resp3(fields)).decode_tokens_per_s is None


def test_every_option_of_rag_becomes_its_own_words() -> None:
    command = commands.rag(
        "m",
        "v",
        [1],
        vector=[1.0, -2.0],
        top_n=3,
        filter=".n > 1",
        epsilon=0.2,
        ef=50,
        attribute="key",
        budget=100,
        before="b",
        between=b"-",
        after="a",
        skip_bad=True,
        max_tokens=5,
        stop="END",
        store="out",
    )
    assert command.args == (
        *("INFER.RAG", "m", "v", "FP32", struct.pack("<2f", 1.0, -2.0), "TOPN", 3),
        *("FILTER", ".n > 1", "EPSILON", 0.2, "EF", 50, "ATTR", "key", "BUDGET", 100),
        *("BEFORE", "b", "BETWEEN", b"-", "AFTER", "a", "SKIPBAD", "TOKENS", b"\x01\0\0\0"),
        *("MAXTOKENS", 5, "STOP", 1, "END", "STORE", "out"),
    )


def test_the_query_of_rag_is_one_of_three() -> None:
    assert commands.rag("m", "v", None, element=b"e").args[3:] == ("ELE", b"e")
    embed = commands.rag("m", "v", None, embed=("e", [2])).args
    assert embed[3:] == ("EMBED", "e", b"\x02\0\0\0")
    for queries in ({}, {"element": "e", "vector": [1.0]}):
        with pytest.raises(ValueError, match="give one query"):
            commands.rag("m", "v", None, **queries)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one dimension, not 2"):
        commands.rag("m", "v", None, vector=np.zeros((1, 2)))
    with pytest.raises(TypeError, match="rag has no option 'top'"):
        commands.rag("m", "v", None, element="e", top=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="generate has no option 'top_n'"):
        commands.generate("m", "k", None, top_n=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("form", [as_resp2, as_resp3])
def test_a_reply_of_rag_names_its_sources(form: Any) -> None:
    fields = FIELDS | {
        "sources": [[b"a#1", b"0.9375" if form is as_resp2 else 0.9375, 7], [b"b\xff", 0.5, 0]],
        "skipped": [[b"c", b"NOKEY key 'x' of element 'c' does not exist"]],
        "search_us": 100,
        "gather_us": 20,
    }
    result = commands.rag("m", "v", None, element="e").parse(form(fields))
    assert result.sources == [Source("a#1", 0.9375, 7), Source("b\udcff", 0.5, 0)]
    assert result.skipped == [SkippedSource("c", "NOKEY key 'x' of element 'c' does not exist")]
    assert (result.search_us, result.gather_us, result.embed_us) == (100, 20, None)
    assert (result.text, result.prompt_tokens) == ("héllo", 7)


@pytest.mark.parametrize("form", [as_resp2, as_resp3])
def test_a_score_with_alternatives_has_a_row_for_each_position(form: Any) -> None:
    reply = form(
        {
            "logprobs": struct.pack("<2f", -0.5, -1.5),
            "top_ids": struct.pack("<6I", 1, 2, 3, 4, 5, 6),
            "top_logprobs": struct.pack("<6f", -1, -2, -3, -4, -5, -6),
        }
    )
    result = commands.score("m", "k", None, top=3).parse(reply)
    assert result.mean_nll == pytest.approx(1.0)
    assert result.top_ids is not None and result.top_logprobs is not None
    assert result.top_ids.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert result.top_logprobs.tolist() == [[-1, -2, -3], [-4, -5, -6]]


@pytest.mark.parametrize("form", [as_resp2, as_resp3])
def test_model_properties_are_text_and_numbers(form: Any) -> None:
    reply = form({"name": b"smol", "context": 8192})
    assert commands.info("smol").parse(reply) == {"name": "smol", "context": 8192}
    assert commands.models().parse([reply]) == [{"name": "smol", "context": 8192}]


@pytest.mark.parametrize("path", [b"/m\xff/x.gguf", "/m\udcff/x.gguf", Path("/m\udcff/x.gguf")])
@pytest.mark.parametrize("form", [as_resp2, as_resp3])
def test_a_path_may_have_any_bytes(form: Any, path: Any) -> None:
    command = commands.load("m", path)
    assert command.args[3] == b"/m\xff/x.gguf"
    info = command.parse(form({"name": b"m", "path": b"/m\xff/x.gguf"}))
    assert os.fsencode(info["path"]) == b"/m\xff/x.gguf"


def test_tokens_survive_packing() -> None:
    tokens = np.array([0, 1, 0x80, 0xD800, 0xFFFFFFFF], np.uint32)
    assert pack_tokens(tokens) == struct.pack("<5I", *tokens.tolist())
    assert unpack_tokens(pack_tokens(tokens)).tolist() == tokens.tolist()
    assert unpack_tokens(pack_tokens([])).size == 0


def test_tokens_in_another_byte_order_or_stride_pack_alike() -> None:
    tokens = np.arange(10, dtype=np.uint32)
    assert pack_tokens(tokens.astype(">i8")) == pack_tokens(tokens)
    assert pack_tokens(tokens[::2]) == pack_tokens([0, 2, 4, 6, 8])


@pytest.mark.parametrize(
    ("tokens", "error", "says"),
    [
        ([1, -2], ValueError, "token id -2"),
        ([1 << 32], ValueError, "token id 4294967296"),
        ([1 << 64], ValueError, "token id 18446744073709551616"),
        ([1, 1 << 63, -1], ValueError, "token id 9223372036854775808"),
        ([1 << 64, 1.5], TypeError, "float64|object"),
        ([[1], [2]], ValueError, "not in 2"),
        ([1.5], TypeError, "float64"),
        (b"\1\0\0\0", TypeError, "frombuffer"),
    ],
)
def test_what_is_no_token_array_is_refused(tokens: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        pack_tokens(tokens)


def test_a_blob_of_odd_length_names_its_source() -> None:
    with pytest.raises(ValueError, match=r"key 'k' holds 5 bytes"):
        commands.load_tokens("k").parse(b"12345")


def test_a_missing_token_key_is_none() -> None:
    assert commands.load_tokens("k").parse(None) is None


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("NOMODEL no model is loaded as 'x'", errors.NoModelError),
        ("NOKEY key 'x' does not exist", errors.NoKeyError),
        ("WRONGTYPE key 'x' holds a list", errors.WrongTypeError),
        ("BADTOKENS key 'x' holds 10 bytes", errors.BadTokensError),
        ("CONTEXT 9000 tokens", errors.ContextError),
        ("BUSY the queue is full", errors.BusyError),
        ("CANCELLED by INFER.CANCEL", errors.RequestCancelledError),
        ("unknown command 'INFER.GENERATE', with args", errors.ModuleMissingError),
        ("unknown command 'VCARD', with args", errors.VectorSetsMissingError),
        ("this server has no Vector Sets (VSIM), which", errors.VectorSetsMissingError),
    ],
)
def test_an_error_code_chooses_the_class(message: str, kind: type[errors.InferError]) -> None:
    error = errors.from_response(ResponseError(message))
    assert type(error) is kind
    assert isinstance(error, ResponseError)


@pytest.mark.parametrize("error", [ResponseError("unknown option 'X'"), NoPermissionError("no")])
def test_other_errors_stay_what_they_are(error: ResponseError) -> None:
    assert errors.from_response(error) is error


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        (
            "OOM STREAM 's': command not allowed",
            OutOfMemoryError,
            "STREAM 's': command not allowed",
        ),
        ("READONLY STREAM is a write", ReadOnlyError, "STREAM is a write"),
        ("NOPERM STREAM 's'", NoPermissionError, "STREAM 's'"),
        ("CROSSSLOT key 'k'", ClusterCrossSlotError, "key 'k'"),
        ("ERR no memory", ResponseError, "no memory"),
        ("MISCONF STREAM 's'", ResponseError, "MISCONF STREAM 's'"),
        ("NOMODEL it was unloaded", errors.NoModelError, "NOMODEL it was unloaded"),
    ],
)
def test_an_error_in_a_stream_is_the_one_that_a_reply_gives(
    line: str, kind: type[Exception], message: str
) -> None:
    error = errors.from_line(line)
    assert type(error) is kind
    assert str(error) == message
