"""Bad input: each has a coded error that names it, and leaves the server as it was."""

from __future__ import annotations

import contextlib
import random
import re

import pytest
import redis

from module_support import MODEL, PROMPT, VOCABULARY, assert_idle, error_of, generate, pack

pytestmark = pytest.mark.usefixtures("loaded")

GENERATE = "INFER.GENERATE"
SCORE = "INFER.SCORE"


def fill(client: redis.Redis) -> None:
    client.set("good", pack(PROMPT))
    client.set("odd", b"\1\0\0\0" * 2 + b"\1\0")
    client.set("outside", pack([1, 2, VOCABULARY, 3]))
    client.set("empty", b"")
    client.set("huge", pack([1] * 9000))
    client.rpush("list", 1)
    client.hset("hash", "a", 1)
    client.sadd("set", 1)
    client.zadd("zset", {"a": 1})
    client.xadd("stream", {"a": 1})
    client.set("12", "1234")  # kept as an integer by Redis: four bytes, one token far outside


BAD = {
    "missing key": ((GENERATE, MODEL, 1, "none"), r"NOKEY .*'none'"),
    "second key missing": ((GENERATE, MODEL, 2, "good", "none"), r"NOKEY .*'none'"),
    "key name that is no text": (
        (GENERATE, MODEL, 1, b"\r\n\xff\\"),
        r"NOKEY .*'\\x0d\\x0a\\xff\\\\'",
    ),
    "list": ((GENERATE, MODEL, 1, "list"), r"WRONGTYPE .*'list' holds a list"),
    "hash": ((GENERATE, MODEL, 1, "hash"), r"WRONGTYPE .*'hash' holds a hash"),
    "set": ((GENERATE, MODEL, 1, "set"), r"WRONGTYPE .*'set' holds a set"),
    "sorted set": ((GENERATE, MODEL, 1, "zset"), r"WRONGTYPE .*'zset' holds a sorted set"),
    "stream": ((SCORE, MODEL, 1, "stream"), r"WRONGTYPE .*'stream' holds a stream"),
    "length": ((GENERATE, MODEL, 1, "odd"), r"BADTOKENS .*'odd' holds 10 bytes"),
    "length of the blob": (
        (GENERATE, MODEL, 0, "TOKENS", b"abc"),
        r"BADTOKENS TOKENS holds 3 bytes",
    ),
    "id outside the vocabulary": (
        (GENERATE, MODEL, 2, "good", "outside"),
        rf"BADTOKENS .*'outside' holds token {VOCABULARY} at position 2",
    ),
    "digits as tokens": ((GENERATE, MODEL, 1, "12"), r"BADTOKENS .*'12' holds token 875770417"),
    "empty prompt": ((GENERATE, MODEL, 1, "empty"), r"BADTOKENS .*empty"),
    "no prompt": ((GENERATE, MODEL, 0, "MAXTOKENS", 1), r"BADTOKENS .*empty"),
    "prompt beyond the context": ((GENERATE, MODEL, 1, "huge"), r"CONTEXT .*9000.*8192"),
    "prompt and MAXTOKENS beyond the context": (
        (GENERATE, MODEL, 1, "good", "MAXTOKENS", 8183),
        r"CONTEXT .*8183.*8192",
    ),
    "score beyond the context": ((SCORE, MODEL, 1, "huge"), r"CONTEXT .*9000.*8192"),
    "unknown model": ((GENERATE, "none", 1, "good"), r"NOMODEL .*'none'"),
    "unknown model to score": ((SCORE, "none", 1, "good"), r"NOMODEL .*'none'"),
    "unknown option": ((GENERATE, MODEL, 1, "good", "MAXTOKEN", 3), r"unknown option 'MAXTOKEN'"),
    "option of another command": ((SCORE, MODEL, 1, "good", "SEED", 3), r"unknown option 'SEED'"),
    "option twice": (
        (GENERATE, MODEL, 1, "good", "TOPK", 1, "SEED", 1, "topk", 2),
        r"TOPK is given twice",
    ),
    "flag twice": ((GENERATE, MODEL, 1, "good", "NOCACHE", "NOCACHE"), r"NOCACHE is given twice"),
    "option without value": ((GENERATE, MODEL, 1, "good", "SEED"), r"SEED lacks its value"),
    "numkeys no number": ((GENERATE, MODEL, "x", "good"), r"numkeys is 'x'"),
    "numkeys negative": ((GENERATE, MODEL, -1, "good"), r"numkeys is '-1'"),
    "numkeys too large": ((GENERATE, MODEL, 2, "good"), r"numkeys is 2, but 1"),
    "numkeys far too large": (
        (GENERATE, MODEL, 9223372036854775807, "good"),
        r"numkeys is 9223372036854775807, but 1",
    ),
    "too few stops": (
        (GENERATE, MODEL, 1, "good", "STOP", 2, "a"),
        r"STOP announces 2 texts, but 1",
    ),
    "empty stop": ((GENERATE, MODEL, 1, "good", "STOP", 2, "a", ""), r"text 2 of STOP is empty"),
    "arguments missing": ((GENERATE, MODEL), r"wrong number of arguments"),
}

OUT_OF_RANGE = {
    "MAXTOKENS": [0, -1, 2147483648, "1.5", "", "ten"],
    "TEMPERATURE": [-0.1, 101, "nan", "inf", "warm"],
    "TOPK": [-1, 2147483648, "1e3"],
    "TOPP": [0, 1.01, -1, "nan"],
    "MINP": [-0.1, 1.1],
    "REPEAT": [0, -1, 1000],
    "SEED": [-1, "18446744073709551616", "1x", " 1", "0x10", ""],
    "STOP": [0, -1, 17, "x"],
    "LOGPROBS": [-1, 21, "x"],
    "TIMEOUT": [0, -5, 2147483648],
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_and_named(client: redis.Redis, case: str) -> None:
    args, expected = BAD[case]
    fill(client)
    message = error_of(client, *args)
    assert re.search(expected, message), message
    assert_idle(client)


@pytest.mark.parametrize("option", OUT_OF_RANGE)
def test_values_out_of_range_are_refused_with_the_range(client: redis.Redis, option: str) -> None:
    fill(client)
    for value in OUT_OF_RANGE[option]:
        message = error_of(client, GENERATE, MODEL, 1, "good", option, value)
        assert re.search(rf"{option} is '{re.escape(str(value))}', not an? \w+ from .* to", message)
    assert_idle(client)


def test_bad_input_costs_no_memory_and_no_answers(client: redis.Redis) -> None:
    fill(client)
    before_tokens = generate(client, MODEL, 1, "good", "MAXTOKENS", 8)["tokens"]
    every = [args for args, _ in BAD.values()] + [
        (GENERATE, MODEL, 1, "good", option, value)
        for option, values in OUT_OF_RANGE.items()
        for value in values
    ]

    def provoke() -> None:
        for args in every:
            error_of(client, *args)

    provoke()  # what is allocated once (buffers, error statistics) is there now
    before = client.info("memory")["used_memory"]
    for _ in range(20):
        provoke()
    after = client.info("memory")["used_memory"]
    assert client.ping()
    assert after - before < 64 * 1024
    assert generate(client, MODEL, 1, "good", "MAXTOKENS", 8)["tokens"] == before_tokens
    assert_idle(client)


def test_random_arguments_never_upset_the_server(client: redis.Redis) -> None:
    fill(client)
    rng = random.Random(1)
    words: list[object] = [
        *OUT_OF_RANGE,
        *("TOKENS", "STORE", "NOCACHE", "IGNOREEOS", "TOP", "good", "odd", "list", "", b"\xff\0"),
        *(0, 1, 2, -1, "1e999", "99999999999999999999"),
    ]
    for _ in range(1500):
        args = [rng.choice(words) for _ in range(rng.randrange(8))]
        command = rng.choice([GENERATE, SCORE])
        with contextlib.suppress(redis.ResponseError):
            client.execute_command(command, MODEL, rng.choice([0, 1, 2, 9]), *args, "MAXTOKENS", 1)
    assert client.ping()
    assert generate(client, MODEL, 1, "good", "MAXTOKENS", 1)["output_tokens"] == 1
