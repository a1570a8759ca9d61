"""INFER.RAG: what is searched, what is gathered, and in which order it becomes the prompt."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from module_support import (
    MODEL,
    PROMPT,
    Background,
    as_map,
    assert_idle,
    error_of,
    generate,
    long_generation,
    own_cluster,
    own_server,
    pack,
    requests,
    server_with_plain_call,
    wait_until,
    wait_until_admitted,
)
from redis_infer import AsyncInfer, Infer, NoKeyError, RagGeneration, Source
from redis_infer.server import Server, ServerError, find_redis_server

pytestmark = pytest.mark.usefixtures("loaded")

VSET = "{c}:vec"
DIM = 16
BRIEF = ("MAXTOKENS", 3)


def vector(angle: float) -> bytes:
    """A unit vector at an angle from the query's, which is at 0."""
    v = np.zeros(DIM, "<f4")
    v[0], v[1] = math.cos(angle), math.sin(angle)
    return v.tobytes()


QUERY = ("FP32", vector(0.0))


def similarity(angle: float) -> float:
    """VSIM's score: 1 for the same direction, 0 for the opposite one."""
    return (1 + math.cos(angle)) / 2


def add(client: redis.Redis, element: str, angle: float, attributes: Any) -> None:
    text = attributes if isinstance(attributes, (str, bytes)) else json.dumps(attributes)
    client.execute_command("VADD", VSET, "FP32", vector(angle), element, "NOQUANT", "SETATTR", text)


def chunk(i: int) -> list[int]:
    return [1000 + 10 * i + j for j in range(5 + i)]


def chunks(n: int) -> list[int]:
    return [token for i in range(n) for token in chunk(i)]


def key(i: int) -> str:
    return f"{{c}}:tok:{i}"


def has_vector_sets(client: redis.Redis) -> bool:
    return int(client.info("server")["redis_version"].partition(".")[0]) >= 8


@pytest.fixture
def corpus(client: redis.Redis) -> redis.Redis:
    """Elements e0, e1, ... of falling similarity, whose chunks have 5, 6, ... tokens."""
    if not has_vector_sets(client):
        pytest.skip("no Vector Sets here: before Redis 8")
    for i in (3, 0, 7, 1, 6, 2, 5, 4):
        client.set(key(i), pack(chunk(i)))
        add(client, f"e{i}", 0.1 * i, {"n": i, "odd": i % 2, "tokens": key(i)})
    client.set("{c}:before", pack([11, 12, 13]))
    client.set("{c}:between", pack([21, 22]))
    client.set("{c}:after", pack([31, 32, 33, 34]))
    return client


def rag(client: redis.Redis, *args: Any) -> dict[str, Any]:
    return as_map(client.execute_command("INFER.RAG", MODEL, VSET, *args))


def rag_error(client: redis.Redis, *args: Any) -> str:
    return error_of(client, "INFER.RAG", MODEL, VSET, *args)


def used(made: dict[str, Any]) -> list[tuple[str, int]]:
    return [(element.decode(), n) for element, _, n in made["sources"]]


def assert_prompt_is(client: redis.Redis, made: dict[str, Any], tokens: Sequence[int]) -> None:
    """The same tokens given to INFER.GENERATE continue to the same log-probabilities."""
    assert made["prompt_tokens"] == len(tokens)
    same = generate(client, MODEL, 0, "TOKENS", pack(tokens), *BRIEF, "LOGPROBS", 5)
    for field in ("tokens", "text", "logprobs", "top_ids", "top_logprobs"):
        assert made[field] == same[field]


# ---- what becomes the prompt ----


def test_chunks_come_in_the_order_of_similarity(corpus: redis.Redis) -> None:
    made = rag(corpus, *QUERY, "TOPN", 5, *BRIEF, "LOGPROBS", 5)
    assert used(made) == [(f"e{i}", 5 + i) for i in range(5)]
    assert_prompt_is(corpus, made, chunks(5))


def test_the_scores_are_those_of_vsim(corpus: redis.Redis) -> None:
    made = rag(corpus, *QUERY, "TOPN", 6, *BRIEF)
    scores = [float(score) for _, score, _ in made["sources"]]
    assert scores == pytest.approx([similarity(0.1 * i) for i in range(6)], abs=1e-6)


def test_everything_around_the_chunks_has_its_place(corpus: redis.Redis) -> None:
    around = ("BEFORE", "{c}:before", "BETWEEN", "{c}:between", "AFTER", "{c}:after")
    made = rag(corpus, *QUERY, "TOPN", 3, *around, "TOKENS", pack([41, 42]), *BRIEF, "LOGPROBS", 5)
    tokens = [11, 12, 13, *chunk(0), 21, 22, *chunk(1), 21, 22, *chunk(2), 31, 32, 33, 34, 41, 42]
    assert used(made) == [("e0", 5), ("e1", 6), ("e2", 7)]
    assert_prompt_is(corpus, made, tokens)


def test_four_chunks_are_the_default(corpus: redis.Redis) -> None:
    assert [element for element, _ in used(rag(corpus, *QUERY, *BRIEF))] == ["e0", "e1", "e2", "e3"]


@pytest.mark.parametrize(
    ("budget", "tokens_used"),
    [
        (5, [5, 0, 0, 0]),
        (10, [5, 0, 0, 0]),
        (12, [5, 0, 0, 0]),  # 5 + 6 fit, but not with the 2 in between
        (13, [5, 6, 0, 0]),
        (21, [5, 6, 0, 0]),
        (22, [5, 6, 7, 0]),
        (32, [5, 6, 7, 8]),
        (4, [0, 0, 0, 0]),
    ],
)
def test_whole_chunks_are_used_until_the_budget(
    corpus: redis.Redis, budget: int, tokens_used: list[int]
) -> None:
    made = rag(
        corpus, *QUERY, "BETWEEN", "{c}:between", "AFTER", "{c}:after", "BUDGET", budget, *BRIEF,
        "LOGPROBS", 5,
    )  # fmt: skip
    assert [n for _, n in used(made)] == tokens_used
    tokens: list[int] = []
    for i, n in enumerate(tokens_used):
        if n:
            tokens += ([21, 22] if tokens else []) + chunk(i)
    assert_prompt_is(corpus, made, [*tokens, 31, 32, 33, 34])


def test_a_shorter_chunk_does_not_take_the_place_of_a_nearer_one(corpus: redis.Redis) -> None:
    corpus.set(key(1), pack([7] * 50))
    made = rag(corpus, *QUERY, "BUDGET", 30, *BRIEF)
    assert used(made) == [("e0", 5), ("e1", 0), ("e2", 0), ("e3", 0)]


def test_without_a_budget_chunks_are_used_until_the_context(
    corpus: redis.Redis, loaded: Any
) -> None:
    context = loaded.info(MODEL)["context"]
    corpus.set(key(0), pack([7] * 20))
    corpus.set(key(1), pack([8] * (context - 20 - 4 - 3)))
    run = ("AFTER", "{c}:after", "MAXTOKENS", 3, "TIMEOUT", 1)
    made = rag(corpus, *QUERY, "TOPN", 2, *run)
    assert used(made) == [("e0", 20), ("e1", context - 27)]
    assert made["prompt_tokens"] == context - 3
    corpus.append(key(1), pack([8]))
    made = rag(corpus, *QUERY, "TOPN", 2, *run)
    assert used(made) == [("e0", 20), ("e1", 0)]
    assert rag_error(corpus, *QUERY, "MAXTOKENS", context, "AFTER", "{c}:after").startswith(
        "CONTEXT "
    )


def test_two_hits_may_share_a_key(corpus: redis.Redis) -> None:
    corpus.execute_command("VSETATTR", VSET, "e1", json.dumps({"tokens": key(0)}))
    made = rag(corpus, *QUERY, "TOPN", 2, "BETWEEN", key(0), *BRIEF, "LOGPROBS", 5)
    assert_prompt_is(corpus, made, chunk(0) * 3)


def test_a_chunk_without_tokens_is_not_separated(corpus: redis.Redis) -> None:
    corpus.set(key(1), b"")
    made = rag(corpus, *QUERY, "TOPN", 3, "BETWEEN", "{c}:between", *BRIEF, "LOGPROBS", 5)
    assert used(made) == [("e0", 5), ("e1", 0), ("e2", 7)]
    assert_prompt_is(corpus, made, [*chunk(0), 21, 22, *chunk(2)])


def test_short_and_long_chunks_keep_their_value(corpus: redis.Redis) -> None:
    """StringDMA changes how Redis holds a short string; what it holds stays."""
    for i, n in enumerate((1, 5, 10, 11, 12, 100)):
        corpus.set(key(i), pack(range(100, 100 + n)))
    before = corpus.mget([key(i) for i in range(6)])
    rag(corpus, *QUERY, "TOPN", 6, *BRIEF)
    assert corpus.mget([key(i) for i in range(6)]) == before


# ---- the query ----


def test_every_form_of_the_query_finds_the_same(corpus: redis.Redis) -> None:
    values = np.frombuffer(vector(0.0), "<f4").tolist()
    forms = (QUERY, ("ELE", "e0"), ("VALUES", DIM, *values), ("values", DIM, *values))
    found = [rag(corpus, *form, *BRIEF) for form in forms]
    assert all(made["tokens"] == found[0]["tokens"] for made in found)
    assert all(used(made) == used(found[0]) for made in found)


def test_a_filter_chooses_among_the_elements(corpus: redis.Redis) -> None:
    made = rag(corpus, *QUERY, "TOPN", 3, "FILTER", ".odd == 1 and .n > 1", *BRIEF)
    assert [element for element, _ in used(made)] == ["e3", "e5", "e7"]


def test_epsilon_and_ef_are_vsims(corpus: redis.Redis) -> None:
    near = 1 - (similarity(0.2) + similarity(0.3)) / 2
    made = rag(corpus, *QUERY, "TOPN", 8, "EPSILON", near, "EF", 50, *BRIEF)
    assert [element for element, _ in used(made)] == ["e0", "e1", "e2"]


def test_without_hits_the_rest_is_the_prompt(corpus: redis.Redis) -> None:
    nothing = (*QUERY, "FILTER", ".n > 100")
    made = rag(corpus, *nothing, "BEFORE", "{c}:before", *BRIEF, "LOGPROBS", 5)
    assert made["sources"] == []
    assert_prompt_is(corpus, made, [11, 12, 13])
    assert rag_error(corpus, *nothing).startswith("BADTOKENS the prompt is empty")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("ELE", "nobody"), "VSIM '{c}:vec' ELE 'nobody': element not found"),
        (("FP32", b"123"), "invalid vector"),
        (("FP32", b"1234" * 3), "dimension mismatch - got 3 but set has 16"),
        (("VALUES", 0, 1), "VALUES is '0'"),
        (("VALUES", "x", 1), "VALUES is 'x'"),
        (("VALUES", 5, 1, 2), "VALUES announces 5 values, but 2"),
        (("NEAR", "x"), "'NEAR' is no form of a query"),
        ((*QUERY, "FILTER", "((("), "syntax error in FILTER"),
        ((*QUERY, "TOPN", 0), "TOPN is '0'"),
        ((*QUERY, "TOPN", 1001), "TOPN is '1001'"),
        ((*QUERY, "EPSILON", 2), "EPSILON is '2'"),
        ((*QUERY, "EF", 0), "EF is '0'"),
        ((*QUERY, "BUDGET", 0), "BUDGET is '0'"),
        ((*QUERY, "TOPN", 2, "TOPN", 3), "TOPN is given twice"),
        ((*QUERY, "MAXTOKENS", 2, "MAXTOKENS", 3), "MAXTOKENS is given twice"),
        ((*QUERY, "BEFORE"), "BEFORE lacks its value"),
        ((*QUERY, "NUMKEYS", 1), "unknown option 'NUMKEYS'"),
    ],
)
def test_a_faulty_query_is_refused_by_name(
    corpus: redis.Redis, args: tuple[Any, ...], says: str
) -> None:
    assert says.lower() in rag_error(corpus, *args).lower()
    assert_idle(corpus)


def test_a_vector_set_that_is_none_is_refused(corpus: redis.Redis) -> None:
    command = ("INFER.RAG", MODEL)
    assert error_of(corpus, *command, "{c}:none", *QUERY) == (
        "NOKEY vector set '{c}:none' does not exist"
    )
    for other in ("{c}:before", "{c}:list"):
        corpus.rpush("{c}:list", 1)
        assert error_of(corpus, *command, other, *QUERY).startswith("WRONGTYPE ")
    assert error_of(corpus, "INFER.RAG", "nobody", VSET, *QUERY).startswith("NOMODEL ")


# ---- hits whose tokens cannot be read ----


def break_missing(client: redis.Redis) -> None:
    client.delete(key(1))


def break_type(client: redis.Redis) -> None:
    client.delete(key(1))
    client.rpush(key(1), 1)


def break_length(client: redis.Redis) -> None:
    client.append(key(1), b"x")


def break_id(client: redis.Redis) -> None:
    client.append(key(1), pack([49152]))


def break_expired(client: redis.Redis) -> None:
    client.pexpire(key(1), 1)
    time.sleep(0.005)


BROKEN = [
    (break_missing, "NOKEY key '{c}:tok:1' of element 'e1' does not exist"),
    (break_expired, "NOKEY key '{c}:tok:1' of element 'e1' does not exist"),
    (break_type, "WRONGTYPE key '{c}:tok:1' of element 'e1' holds a list"),
    (break_length, "BADTOKENS key '{c}:tok:1' of element 'e1' holds 25 bytes"),
    (break_id, "BADTOKENS key '{c}:tok:1' of element 'e1' holds token 49152 at position 6"),
]


@pytest.mark.parametrize(("damage", "says"), BROKEN)
def test_a_hit_that_cannot_be_read_is_an_error_that_names_it(
    corpus: redis.Redis, damage: Any, says: str
) -> None:
    damage(corpus)
    assert rag_error(corpus, *QUERY, *BRIEF).startswith(says)
    assert_idle(corpus)


@pytest.mark.parametrize(("damage", "says"), BROKEN)
def test_skipbad_goes_on_without_it_and_reports_it(
    corpus: redis.Redis, damage: Any, says: str
) -> None:
    damage(corpus)
    made = rag(
        corpus, *QUERY, "TOPN", 3, "BETWEEN", "{c}:between", "SKIPBAD", *BRIEF, "LOGPROBS", 5
    )
    assert used(made) == [("e0", 5), ("e2", 7)]
    ((element, fault),) = made["skipped"]
    assert element == b"e1"
    assert fault.decode().startswith(says)
    assert_prompt_is(corpus, made, [*chunk(0), 21, 22, *chunk(2)])


@pytest.mark.parametrize("bad", [(0,), (2,), (0, 2), (0, 1), (1, 2)])
def test_what_is_left_between_bad_hits_is_separated_once(
    corpus: redis.Redis, bad: tuple[int, ...]
) -> None:
    for i in bad:
        corpus.append(key(i), pack([49152]))
    made = rag(
        corpus, *QUERY, "TOPN", 3, "BETWEEN", "{c}:between", "SKIPBAD", *BRIEF, "LOGPROBS", 5
    )
    good = [i for i in range(3) if i not in bad]
    assert used(made) == [(f"e{i}", 5 + i) for i in good]
    assert [element for element, _ in made["skipped"]] == [b"e%d" % i for i in bad]
    tokens: list[int] = []
    for i in good:
        tokens += ([21, 22] if tokens else []) + chunk(i)
    assert_prompt_is(corpus, made, tokens)


def test_a_bad_hit_takes_nothing_of_the_budget(corpus: redis.Redis) -> None:
    """Its faulty token is the last of as many as fit: all that was read of it makes room again."""
    corpus.append(key(0), pack([49152]))
    made = rag(corpus, *QUERY, "TOPN", 3, "BUDGET", 6, "SKIPBAD", *BRIEF, "LOGPROBS", 5)
    assert used(made) == [("e1", 6), ("e2", 0)]
    assert [element for element, _ in made["skipped"]] == [b"e0"]
    assert_prompt_is(corpus, made, chunk(1))


def test_if_all_hits_are_bad_the_rest_is_the_prompt(corpus: redis.Redis) -> None:
    for i in range(3):
        corpus.append(key(i), pack([49152]))
    run = (*QUERY, "TOPN", 3, "BETWEEN", "{c}:between", "BUDGET", 8, "SKIPBAD", *BRIEF)
    made = rag(corpus, *run, "AFTER", "{c}:after", "LOGPROBS", 5)
    assert used(made) == []
    assert [element for element, _ in made["skipped"]] == [b"e0", b"e1", b"e2"]
    assert_prompt_is(corpus, made, [31, 32, 33, 34])
    assert rag_error(corpus, *run).startswith("BADTOKENS the prompt is empty")
    assert_idle(corpus)


def test_a_thousand_hits(corpus: redis.Redis) -> None:
    for i in range(8, 1001):
        corpus.set(key(i), pack([1000 + i]))
        add(corpus, f"e{i}", 0.8 + 0.001 * i, {"tokens": key(i)})
    made = rag(corpus, *QUERY, "TOPN", 1000, "EF", 2000, *BRIEF)
    assert [n for _, n in used(made)] == [5 + i for i in range(8)] + [1] * 992
    assert made["prompt_tokens"] == len(chunks(8)) + 992


def test_without_faults_nothing_is_skipped(corpus: redis.Redis) -> None:
    assert rag(corpus, *QUERY, *BRIEF)["skipped"] == []


@pytest.mark.parametrize("option", ["BEFORE", "BETWEEN", "AFTER"])
def test_skipbad_is_for_hits_only(corpus: redis.Redis, option: str) -> None:
    says = "NOKEY key '{c}:gone' does not exist"
    assert rag_error(corpus, *QUERY, option, "{c}:gone", "SKIPBAD") == says
    corpus.set("{c}:odd", b"12345")
    corpus.set("{c}:alien", pack([1, 49152]))
    for name, fault in (("{c}:odd", "5 bytes"), ("{c}:alien", "token 49152 at position 1")):
        says = f"BADTOKENS key '{name}' holds {fault}"
        assert rag_error(corpus, *QUERY, option, name, "SKIPBAD").startswith(says)


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        (None, "are missing"),
        ("{}", "lack the field"),
        ('{"Tokens":"x"}', "lack the field"),
        ('{"a":{"tokens":"x"}}', "lack the field"),
        ('{"tokens":1}', "something else than a string"),
        ('{"tokens":null}', "something else than a string"),
        ('{"tokens":"a","tokens":"b"}', "the field twice"),
        ('["tokens"]', "no JSON object"),
        ("tokens", "no JSON object"),
        ('{"tokens":"x"', "not valid JSON"),
        ('{"tokens":"x"}}', "not valid JSON"),
        ('{"tokens":"\\ud800"}', "surrogate"),
        ('{"tokens":"\\u00', "not valid JSON"),
        (b'{"tokens":"a\nb"}', "not valid JSON"),
        (b"\x00\xff\xfe{", "no JSON object"),
        (f'{{"a":{DEEP},"tokens":"x"}}', "nested too deeply"),
    ],
)
def test_attributes_that_name_no_key_are_an_error(
    corpus: redis.Redis, attributes: str | bytes | None, says: str
) -> None:
    corpus.execute_command("VSETATTR", VSET, "e1", attributes or "")
    line = rag_error(corpus, *QUERY, *BRIEF)
    assert "element 'e1'" in line and says in line and "'tokens'" in line
    made = rag(corpus, *QUERY, "TOPN", 2, "SKIPBAD", *BRIEF)
    assert used(made) == [("e0", 5)]
    assert [element for element, _ in made["skipped"]] == [b"e1"]


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ('{ "n" : [1, {"tokens": 2}], "tokens" : "{c}:other" }', "{c}:other"),
        (r'{"t\u006fkens":"{c}:\u00e9\ud83d\ude00"}', "{c}:é😀"),
        (r'{"tokens":"{c}:\"\\\/\b\n"}', '{c}:"\\/\b\n'),
        (r'{"tokens":"{c}:a\u0000b"}', "{c}:a\0b"),
        ('{"tokens":""}', ""),
    ],
)
def test_the_key_is_the_decoded_string(corpus: redis.Redis, attributes: str, name: str) -> None:
    corpus.execute_command("VSETATTR", VSET, "e0", attributes)
    corpus.set(name, pack([77, 78, 79]))
    made = rag(corpus, *QUERY, "TOPN", 1, *BRIEF, "LOGPROBS", 5)
    assert_prompt_is(corpus, made, [77, 78, 79])


def test_another_field_may_hold_the_key(corpus: redis.Redis) -> None:
    corpus.execute_command("VSETATTR", VSET, "e0", json.dumps({"tokens": 1, "täg": key(5)}))
    made = rag(corpus, *QUERY, "TOPN", 1, "ATTR", "täg", *BRIEF, "LOGPROBS", 5)
    assert_prompt_is(corpus, made, chunk(5))


# ---- permissions ----


@pytest.fixture
def limited(corpus: redis.Redis, server: Server) -> Iterator[redis.Redis]:
    """May search {c}:vec and read {c}:tok:*, but not {c}:secret, and write {c}:out.

    Redis 8.2 wants write permission too of who searches a vector set.
    """
    corpus.execute_command(
        "ACL", "SETUSER", "limited", "reset", "on", ">secret", "+infer.rag", "+vsim", "+ping",
        "+set", "+xadd", "~{c}:vec", "%R~{c}:tok:*", "%R~{c}:before", "%W~{c}:out",
    )  # fmt: skip
    with server.client(username="limited", password="secret", socket_timeout=None) as connected:
        yield connected
    corpus.execute_command("ACL", "DELUSER", "limited")


def test_a_user_retrieves_what_he_may_read(limited: redis.Redis, corpus: redis.Redis) -> None:
    made = rag(limited, *QUERY, "BEFORE", "{c}:before", *BRIEF, "STORE", "{c}:out")
    assert corpus.get("{c}:out") == made["tokens"]


def test_a_key_that_the_user_may_not_read_stays_unread(
    limited: redis.Redis, corpus: redis.Redis
) -> None:
    corpus.set("{c}:secret", pack(PROMPT))
    corpus.execute_command("VSETATTR", VSET, "e1", json.dumps({"tokens": "{c}:secret"}))
    corpus.execute_command("ACL", "LOG", "RESET")
    says = "NOPERM the user may not read key '{c}:secret' of element 'e1'"
    with pytest.raises(redis.exceptions.NoPermissionError):
        rag(limited, *QUERY, *BRIEF)
    made = rag(limited, *QUERY, "TOPN", 3, "SKIPBAD", *BRIEF)
    assert used(made) == [("e0", 5), ("e2", 7)]
    assert made["skipped"] == [[b"e1", says.encode()]]
    # Whether it exists is not told either.
    corpus.delete("{c}:secret")
    assert rag(limited, *QUERY, "TOPN", 3, "SKIPBAD", *BRIEF)["skipped"] == made["skipped"]
    entry = corpus.acl_log()[0]
    assert (entry["reason"], entry["object"], entry["username"]) == (
        *("key", "{c}:secret", "limited"),
    )


def test_a_key_that_the_user_may_read_with_other_commands_only_stays_unread(
    limited: redis.Redis, corpus: redis.Redis
) -> None:
    corpus.execute_command("ACL", "SETUSER", "limited", "(+get %R~{c}:secret)")
    corpus.set("{c}:secret", pack(PROMPT))
    corpus.execute_command("VSETATTR", VSET, "e1", json.dumps({"tokens": "{c}:secret"}))
    assert limited.get("{c}:secret") == pack(PROMPT)
    with pytest.raises(redis.exceptions.NoPermissionError, match="may not read key"):
        rag(limited, *QUERY, *BRIEF)
    corpus.execute_command("ACL", "SETUSER", "limited", f"(+infer.rag|{MODEL} ~{{c}}:*)")
    assert used(rag(limited, *QUERY, "TOPN", 2, *BRIEF)) == [("e0", 5), ("e1", len(PROMPT))]


@pytest.mark.parametrize(
    "args",
    [
        ("{c}:other", *QUERY),
        (VSET, *QUERY, "BEFORE", "{c}:after"),
        (VSET, *QUERY, "AFTER", "{c}:after"),
        (VSET, *QUERY, "BETWEEN", "{c}:after"),
        (VSET, *QUERY, "STORE", "{c}:tok:1"),
    ],
)
def test_keys_of_the_command_line_are_checked_too(
    limited: redis.Redis, args: tuple[Any, ...]
) -> None:
    with pytest.raises(redis.exceptions.NoPermissionError):
        limited.execute_command("INFER.RAG", MODEL, *args)


def test_the_search_is_the_users_own(limited: redis.Redis, corpus: redis.Redis) -> None:
    corpus.execute_command("ACL", "SETUSER", "limited", "-vsim")
    with pytest.raises(redis.exceptions.NoPermissionError, match="VSIM"):
        rag(limited, *QUERY, *BRIEF)


def test_getkeys_names_the_vector_set_and_the_options_keys(client: redis.Redis) -> None:
    def keys(*args: Any) -> list[str]:
        found = client.execute_command("COMMAND GETKEYS", "INFER.RAG", "m", *args)
        return [k.decode() if isinstance(k, bytes) else k for k in found]

    assert keys("v", "ELE", "x") == ["v"]
    assert keys("v", "ELE", "AFTER", "AFTER", "a", "STORE", "s", "BEFORE", "b") == [
        *("v", "b", "a", "s")
    ]
    assert keys("v", "VALUES", 2, "AFTER", 1, "BETWEEN", "x") == ["v", "x"]
    assert keys("v", "FP32", "STORE", "FILTER", "STORE", "STOP", 1, "STORE") == ["v"]
    assert keys("v", "ELE", "x", "NONSENSE", "AFTER", "a") == ["v"]
    found = client.execute_command(
        "COMMAND GETKEYSANDFLAGS", "INFER.RAG", "m", "v", "ELE", "x", "STORE", "s"
    )
    assert [(k, set(flags)) for k, flags in found] == [
        (b"v", {b"RO", b"access"}),
        (b"s", {b"OW", b"update"}),
    ]


def test_the_command_is_documented(client: redis.Redis) -> None:
    ((_, docs),) = _pairs(client.execute_command("COMMAND DOCS", "INFER.RAG"))
    fields = dict(_pairs(docs))
    names = [dict(_pairs(argument))[b"name"] for argument in fields[b"arguments"]]
    assert names[:5] == [b"model", b"vset", b"query", b"hits", b"expression"]
    assert b"store-key" in names


def _pairs(reply: Any) -> list[tuple[Any, Any]]:
    if isinstance(reply, dict):
        return list(reply.items())
    return list(zip(reply[::2], reply[1::2], strict=True))


# ---- replies ----


@pytest.mark.parametrize("protocol", [2, 3])
def test_the_reply_is_generates_and_more(
    corpus: redis.Redis, server: Server, protocol: int
) -> None:
    with server.client(protocol=protocol, socket_timeout=None) as client:
        plain = client.execute_command("INFER.GENERATE", MODEL, 1, key(0), *BRIEF)
        reply = client.execute_command("INFER.RAG", MODEL, VSET, *QUERY, "TOPN", 2, *BRIEF)
    assert isinstance(reply, dict) == (protocol == 3)
    made = as_map(reply)
    assert list(made) == [*as_map(plain), "sources", "skipped", "search_us", "gather_us"]
    for (element, score, n), i in zip(made["sources"], range(2), strict=True):
        assert (element, n) == (f"e{i}".encode(), 5 + i)
        assert isinstance(score, float if protocol == 3 else bytes)
        assert float(score) == pytest.approx(similarity(0.1 * i), abs=1e-6)
    assert made["admit_us"] >= made["search_us"] + made["gather_us"] > 0


def test_generates_options_are_there_too(corpus: redis.Redis) -> None:
    args = (*QUERY, "MAXTOKENS", 4, "TEMPERATURE", 1, "SEED", 7, "NOCACHE", "LOGPROBS", 0)
    made = rag(corpus, *args)
    tokens = pack(chunks(4))
    same = generate(corpus, MODEL, 0, "TOKENS", tokens, *args[2:])
    assert made["tokens"] == same["tokens"]
    assert made["logprobs"] == same["logprobs"]
    assert made["cached_tokens"] == 0


def test_a_corpus_that_changes_meanwhile_changes_nothing_under_way(
    corpus: redis.Redis, server: Server
) -> None:
    options = (*QUERY, "MAXTOKENS", 64, "IGNOREEOS")
    calm = rag(corpus, *options)
    before = corpus.info("infer")["infer_requests_total"]
    job = Background(server, "INFER.RAG", MODEL, VSET, *options)
    wait_until_admitted(corpus, before)
    corpus.flushall()
    made = job.result()
    assert made["tokens"] == calm["tokens"]
    assert used(made) == used(calm)


# ---- EMBED: the query's vector is computed in the same command ----

EMBEDDER = "embedder"
QUESTION = [504, 2365, 282, 260]
# Long enough to be looked at while it is computed.
ENDLESS = pack(PROMPT * 700)


@pytest.fixture
def embedder(corpus: redis.Redis, model_path: Path) -> Iterator[redis.Redis]:
    """The corpus of another vector set, {c}:emb, with vectors of a second model."""
    corpus.execute_command("INFER.MODEL LOAD", EMBEDDER, str(model_path))
    for i in range(4):
        (v,) = as_map(corpus.execute_command("INFER.EMBED", EMBEDDER, 1, key(i)))["vectors"]
        corpus.execute_command(
            "VADD", "{c}:emb", "FP32", v, f"e{i}", "SETATTR", json.dumps({"tokens": key(i)})
        )
    yield corpus
    with contextlib.suppress(redis.ResponseError):  # a test may have unloaded it
        corpus.execute_command("INFER.MODEL UNLOAD", EMBEDDER)


def embed_rag(query: bytes, *options: Any, model: str = MODEL) -> tuple[Any, ...]:
    return ("INFER.RAG", model, "{c}:emb", "EMBED", EMBEDDER, query, *options)


def test_embed_finds_what_the_models_vector_finds(embedder: redis.Redis) -> None:
    (v,) = as_map(embedder.execute_command("INFER.EMBED", EMBEDDER, 0, "TOKENS", pack(QUESTION)))[
        "vectors"
    ]
    around = ("BEFORE", "{c}:before", "BETWEEN", "{c}:between", "AFTER", "{c}:after")
    options = (*around, "FILTER", '.tokens != "x"', "TOKENS", pack([41]), *BRIEF, "LOGPROBS", 3)
    plain = as_map(
        embedder.execute_command("INFER.RAG", MODEL, "{c}:emb", "FP32", v, "TOPN", 3, *options)
    )
    made = as_map(embedder.execute_command(*embed_rag(pack(QUESTION), "TOPN", 3, *options)))
    assert list(made) == [
        *(name for name in plain if not name.endswith(("search_us", "gather_us"))),
        *("embed_us", "search_us", "gather_us"),
    ]
    for field in ("sources", "prompt_tokens", "tokens", "logprobs"):
        assert made[field] == plain[field]
    assert made["embed_us"] > 0
    assert made["admit_us"] >= made["search_us"] + made["gather_us"]
    assert_idle(embedder)


def test_embed_searches_the_clients_database(embedder: redis.Redis, server: Server) -> None:
    with server.client(db=5, socket_timeout=None) as other:
        other.flushdb()
        assert error_of(other, *embed_rag(pack(QUESTION))).startswith("NOKEY vector set")
        for name in ("{c}:emb", *(key(i) for i in range(4))):
            assert embedder.move(name, 5)
        made = as_map(other.execute_command(*embed_rag(pack(QUESTION), *BRIEF)))
        assert len(made["sources"]) == 4
        other.flushdb()


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (b"", "the query holds no tokens"),
        (b"12345", "the query holds 5 bytes"),
        (pack([49152]), "the query holds token 49152"),
    ],
)
def test_a_faulty_query_text_is_refused(embedder: redis.Redis, query: bytes, says: str) -> None:
    assert says in error_of(embedder, *embed_rag(query))
    assert_idle(embedder)


def test_an_embed_command_that_cannot_succeed_computes_nothing(
    embedder: redis.Redis, server: Server
) -> None:
    def tokens() -> int:
        return embedder.info("infer")["infer_prompt_tokens"]

    before = tokens()
    start = ("INFER.RAG", MODEL)
    end = ("EMBED", EMBEDDER, pack(QUESTION))
    assert error_of(embedder, *start, "{c}:none", *end).startswith("NOKEY vector set '{c}:none'")
    assert error_of(embedder, *start, "{c}:emb", "EMBED", "nobody", b"1234").startswith("NOMODEL ")
    assert "EMBED 'x' lacks the query's tokens" in error_of(
        embedder, *start, "{c}:emb", "EMBED", "x"
    )
    embedder.execute_command(
        "ACL", "SETUSER", "unsearching", "reset", "on", ">secret", "+infer.rag", "~*"
    )
    with (
        server.client(username="unsearching", password="secret") as client,
        pytest.raises(redis.exceptions.NoPermissionError, match="VSIM"),
    ):
        client.execute_command(*start, "{c}:emb", *end)
    embedder.execute_command("ACL", "DELUSER", "unsearching")
    assert tokens() == before
    assert_idle(embedder)


def test_a_vector_of_another_size_is_told(embedder: redis.Redis) -> None:
    line = error_of(embedder, "INFER.RAG", MODEL, VSET, "EMBED", EMBEDDER, pack(QUESTION))
    assert "dimension mismatch" in line
    assert_idle(embedder)


def test_rights_are_those_at_the_search(embedder: redis.Redis, server: Server) -> None:
    """They may have changed while the vector was computed."""
    embedder.execute_command(
        "ACL", "SETUSER", "changing", "reset", "on", ">secret", "+infer.rag", "+vsim", "+client",
        "+ping", "~*",
    )  # fmt: skip
    embedder.config_set("infer.max-batch", 1)
    try:
        running = long_generation(server, model=EMBEDDER)
        job = Background(server, *embed_rag(pack(QUESTION)), username="changing", password="secret")
        wait_until(lambda: len(requests(embedder)) == 2, "the query waits to be embedded")
        embedder.execute_command("ACL", "SETUSER", "changing", "resetkeys", "~{c}:emb")
        embedder.execute_command("CLIENT KILL", "ID", running.client_id)
        assert "may not read key '{c}:tok:" in job.failure()
    finally:
        embedder.config_set("infer.max-batch", 16)
        embedder.execute_command("ACL", "DELUSER", "changing")
    assert_idle(embedder)


@contextlib.contextmanager
def embedding(
    server: Server, client: redis.Redis, *options: Any, model: str = MODEL
) -> Iterator[tuple[Background, int]]:
    """A command whose query waits to be embedded, for as long as the block lasts; and its id."""
    client.config_set("infer.max-batch", 1)
    try:
        running = long_generation(server, model=EMBEDDER)
        job = Background(server, *embed_rag(pack(QUESTION), *options, model=model))
        (entry,) = wait_until(
            lambda: [r for r in requests(client) if r["client"] == job.client_id], "it waits"
        )
        assert (entry["command"], entry["state"]) == (b"INFER.RAG", b"queued")
        yield job, entry["id"]
        client.execute_command("CLIENT KILL", "ID", running.client_id)
    finally:
        client.config_set("infer.max-batch", 16)


def test_cancel_ends_a_query_that_waits(embedder: redis.Redis, server: Server) -> None:
    with embedding(server, embedder, "STORE", "{c}:out") as (job, number):
        assert embedder.execute_command("INFER.CANCEL", number) == 1
        made = job.result()
    assert (made["finish_reason"], made["tokens"], made["text"]) == (b"cancelled", b"", b"")
    assert (made["prompt_tokens"], made["output_tokens"], made["sources"]) == (0, 0, [])
    assert embedder.get("{c}:out") is None
    assert_idle(embedder)


def test_cancel_ends_whatever_runs(embedder: redis.Redis, server: Server) -> None:
    job = Background(server, *embed_rag(ENDLESS, "MAXTOKENS", 7000, "IGNOREEOS"))
    (entry,) = wait_until(
        lambda: [r for r in requests(embedder) if r["state"] == b"running"], "it embeds"
    )
    assert embedder.execute_command("INFER.CANCEL", entry["id"]) == 1
    assert job.result()["finish_reason"] == b"cancelled"
    assert_idle(embedder)


def test_what_is_over_cannot_be_cancelled(embedder: redis.Redis) -> None:
    with embedder.pipeline(transaction=False) as at_once:
        at_once.execute_command(*embed_rag(ENDLESS, "TIMEOUT", 20, "STORE", "{c}:out", "ASYNC"))
        at_once.execute_command("CLIENT PAUSE", 60000, "WRITE")
        number, _ = at_once.execute()
    try:
        wait_until(
            lambda: [r["state"] for r in requests(embedder)] == [b"done"], "only the write is left"
        )
        assert embedder.execute_command("INFER.CANCEL", number) == 0
    finally:
        embedder.execute_command("CLIENT UNPAUSE")
    wait_until(lambda: not requests(embedder), "it has ended")


def test_the_timeout_counts_the_embedding_too(embedder: redis.Redis) -> None:
    made = as_map(embedder.execute_command(*embed_rag(ENDLESS, "TIMEOUT", 20)))
    assert (made["finish_reason"], made["output_tokens"]) == (b"timeout", 0)
    assert made["total_us"] >= 20_000
    assert_idle(embedder)


@pytest.mark.parametrize("how", ["kill", "hang up", "unblock"])
def test_a_client_that_goes_away_ends_the_embedding(
    embedder: redis.Redis, server: Server, how: str
) -> None:
    with embedding(server, embedder, "STORE", "{c}:out") as (job, _):
        if how == "kill":
            embedder.execute_command("CLIENT KILL", "ID", job.client_id)
        elif how == "hang up":
            job.client.connection_pool.disconnect(inuse_connections=True)
        else:
            assert embedder.execute_command("CLIENT UNBLOCK", job.client_id)
        job.failure()
    assert_idle(embedder)
    assert embedder.get("{c}:out") is None


def test_unloading_the_embedder_ends_the_command(embedder: redis.Redis, server: Server) -> None:
    with embedding(server, embedder) as (job, _):
        assert embedder.execute_command("INFER.MODEL UNLOAD", EMBEDDER) == b"OK"
        assert job.failure().startswith("NOMODEL the query's vector: the model was unloaded")
    assert_idle(embedder)


def test_unloading_the_generator_does_not_wait_for_the_vector(
    embedder: redis.Redis, server: Server, model_path: Path
) -> None:
    embedder.execute_command("INFER.MODEL LOAD", "generator", str(model_path))
    with embedding(server, embedder, model="generator") as (job, _):
        assert embedder.execute_command("INFER.MODEL UNLOAD", "generator") == b"OK"
        assert job.failure().startswith("NOMODEL the model was unloaded")
    assert_idle(embedder)


def test_the_corpus_is_read_when_the_vector_is_there(embedder: redis.Redis, server: Server) -> None:
    with embedding(server, embedder) as (job, _):
        embedder.delete("{c}:emb")
    assert job.failure() == "NOKEY vector set '{c}:emb' does not exist"
    assert_idle(embedder)


def test_embed_with_async_streams_and_tells_errors_there(embedder: redis.Redis) -> None:
    def last_entry() -> dict[bytes, bytes]:
        return wait_until(
            lambda: next((e for _, e in embedder.xrange("{c}:out") if b"finish_reason" in e), None),
            "the last entry is there",
        )

    command = embed_rag(pack(QUESTION), "TOPN", 2, *BRIEF)
    made = as_map(embedder.execute_command(*command))
    number = embedder.execute_command(*command, "STREAM", "{c}:out", "ASYNC")
    assert number > 0
    last = last_entry()
    assert last[b"prompt_tokens"] == str(made["prompt_tokens"]).encode()
    tokens = [int(e[b"token"]) for _, e in embedder.xrange("{c}:out") if b"token" in e]
    assert pack(tokens) == made["tokens"]

    embedder.delete("{c}:out", key(0), key(1), key(2), key(3))
    embedder.execute_command(*command, "STREAM", "{c}:out", "ASYNC")
    last = last_entry()
    assert last[b"finish_reason"] == b"error"
    assert last[b"error"].startswith(b"NOKEY key '{c}:tok:")
    assert_idle(embedder)


def test_a_script_that_takes_long_is_not_looked_into(model_path: Path) -> None:
    """The event loop turns inside it; what it has half done must not be searched."""
    config = {"busy-reply-threshold": 1}
    with (
        own_server(model_path, config=config) as server,
        server.client(socket_timeout=None) as client,
    ):
        if not has_vector_sets(client):
            pytest.skip("no Vector Sets here: before Redis 8")
        question = ("INFER.EMBED", MODEL, 0, "TOKENS", pack(QUESTION))
        (v,) = as_map(client.execute_command(*question))["vectors"]
        client.set(key(0), pack(chunk(0)))
        attributes = json.dumps({"tokens": key(0)})
        client.execute_command("VADD", VSET, "FP32", v, "e0", "SETATTR", attributes)
        # Its embedding ends while the script runs, unless the machine is very busy.
        command = ("INFER.RAG", MODEL, VSET, "EMBED", MODEL, pack(PROMPT * 100), *BRIEF)
        before = client.info("infer")["infer_requests_total"]
        job = Background(server, *command)
        wait_until_admitted(client, before)
        script = """
            redis.call('SET', KEYS[1], 'bad')
            local t = redis.call('TIME')
            local till = t[1] * 1000000 + t[2] + 1500000
            repeat t = redis.call('TIME') until t[1] * 1000000 + t[2] > till
            redis.call('SET', KEYS[1], ARGV[1])"""
        client.eval(script, 1, key(0), pack(chunk(1)))
        assert used(job.result()) in ([("e0", 6)], [("e0", 5)])  # not 'bad'


# ---- the client ----


def test_the_client_retrieves_and_generates(embedder: redis.Redis, loaded: Infer) -> None:
    tokenizer = loaded.tokenizer(MODEL)
    made = loaded.rag(
        MODEL, VSET, " So", vector=np.frombuffer(vector(0.0), "<f4"), top_n=2,
        between="{c}:between", max_tokens=3,
    )  # fmt: skip
    assert made.sources == [
        Source("e0", pytest.approx(1.0), 5),
        Source("e1", pytest.approx(similarity(0.1)), 6),
    ]
    question = tokenizer.encode(" So").tolist()
    tokens = [*chunk(0), 21, 22, *chunk(1), *question]
    assert made.tokens.tolist() == loaded.generate(MODEL, tokens, max_tokens=3).tokens.tolist()
    assert made.embed_us is None

    by_element = loaded.rag(MODEL, VSET, " So", element="e0", top_n=2, max_tokens=3)
    assert by_element.sources == made.sources

    text = "Where is the password checked?"
    embedded = loaded.rag(MODEL, "{c}:emb", query=text, embed_model=EMBEDDER, max_tokens=3)
    ids = tokenizer.encode(text, add_special=True)
    same = loaded.rag(MODEL, "{c}:emb", query=ids, embed_model=EMBEDDER, max_tokens=3)
    assert embedded.sources == same.sources
    assert embedded.embed_us is not None and embedded.embed_us > 0


def test_the_client_wants_query_and_model_together(loaded: Infer) -> None:
    with pytest.raises(ValueError, match="query needs embed_model"):
        loaded.rag(MODEL, VSET, query="x")
    with pytest.raises(ValueError, match="embed_model needs a query"):
        loaded.rag(MODEL, VSET, element="e0", embed_model=EMBEDDER)


def test_the_client_reports_what_it_skipped(corpus: redis.Redis, loaded: Infer) -> None:
    corpus.delete(key(1))
    with pytest.raises(NoKeyError, match="of element 'e1' does not exist"):
        loaded.rag(MODEL, VSET, element="e0")
    made = loaded.rag(MODEL, VSET, element="e0", top_n=2, skip_bad=True, max_tokens=1)
    assert [source.element for source in made.sources] == ["e0"]
    assert [skipped.element for skipped in made.skipped] == ["e1"]


def test_the_clients_stream_the_answer_and_then_have_the_sources(
    embedder: redis.Redis, server: Server, loaded: Infer
) -> None:
    question: dict[str, Any] = {"query": [504, 2365], "embed_model": EMBEDDER, "max_tokens": 5}
    whole = loaded.rag(MODEL, "{c}:emb", **question)
    with loaded.stream_rag(MODEL, "{c}:emb", **question) as stream:
        assert "".join(piece.text for piece in stream) == whole.text
    assert stream.result is not None
    assert stream.result.sources == whole.sources

    async def run() -> tuple[str, RagGeneration | None]:
        async with server.async_client() as client:
            answer = AsyncInfer(client).stream_rag(MODEL, "{c}:emb", **question)
            text = "".join([piece.text async for piece in answer])
            return text, answer.result

    text, result = asyncio.run(run())
    assert result is not None
    assert (text, result.sources) == (whole.text, whole.sources)
    assert not embedder.keys("infer:stream:*")

    embedder.delete(key(2))
    with pytest.raises(NoKeyError, match="of element"):
        list(loaded.stream_rag(MODEL, "{c}:emb", **question))
    assert_idle(embedder)


def test_the_asyncio_client_does_the_same(
    embedder: redis.Redis, server: Server, loaded: Infer
) -> None:
    async def run() -> tuple[RagGeneration, RagGeneration]:
        async with server.async_client() as client:
            infer = AsyncInfer(client)
            query = "Where is the password checked?"
            return (
                await infer.rag(MODEL, VSET, " So", element="e0", max_tokens=3),
                await infer.rag(MODEL, "{c}:emb", query=query, embed_model=EMBEDDER, max_tokens=3),
            )

    made, embedded = asyncio.run(run())
    same = loaded.rag(MODEL, VSET, " So", element="e0", max_tokens=3)
    assert (made.text, made.sources) == (same.text, same.sources)
    assert len(embedded.sources) == 4


# ---- where it can and cannot run ----


def test_multi_and_scripts_are_refused(corpus: redis.Redis) -> None:
    command = ("INFER.RAG", MODEL, VSET, *QUERY)
    with corpus.pipeline(transaction=True) as transaction:
        transaction.execute_command(*command)
        (refused,) = transaction.execute(raise_on_error=False)
    assert "not possible inside MULTI or a script" in str(refused)
    script = "return redis.pcall(unpack(ARGV))['err']"
    assert b"not possible inside MULTI or a script" in corpus.eval(script, 0, *command)


@pytest.mark.parametrize("how", ["MULTI", "script"])
def test_with_async_multi_and_scripts_may_retrieve_with_the_rights_of_their_user(
    limited: redis.Redis, corpus: redis.Redis, how: str
) -> None:
    corpus.execute_command("ACL", "SETUSER", "limited", "+multi", "+exec", "+eval", "~{c}:stream")
    command = ("INFER.RAG", MODEL, VSET, *QUERY, "STREAM", "{c}:stream", "ASYNC", *BRIEF)

    def run() -> Any:
        if how == "script":
            return limited.eval("return redis.call(unpack(ARGV))", 0, *command)
        with limited.pipeline(transaction=True) as transaction:
            transaction.execute_command(*command)
            return transaction.execute()[0]

    assert run() > 0
    wait_until(
        lambda: any(b"finish_reason" in e for _, e in corpus.xrange("{c}:stream")), "it is done"
    )
    corpus.set("{c}:secret", pack(PROMPT))
    corpus.execute_command("VSETATTR", VSET, "e1", json.dumps({"tokens": "{c}:secret"}))
    with pytest.raises(redis.ResponseError, match=re.escape("may not read key '{c}:secret'")):
        run()
    assert_idle(corpus)


def test_a_call_for_no_user_is_refused(model_path: Path, tmp_path: Path) -> None:
    with server_with_plain_call(model_path, tmp_path) as server, server.client() as client:
        command = ("INFER.RAG", MODEL, VSET, *QUERY, "STORE", "{c}:out", "ASYNC", *BRIEF)
        script = ("EVAL", "return redis.call(unpack(ARGV))", 0)
        for call in (("PLAIN.CALL", *script, *command), ("PLAIN.CALL", *command)):
            with pytest.raises(redis.exceptions.NoPermissionError, match="for no user"):
                client.execute_command(*call)
        if not has_vector_sets(client):
            return
        client.set(key(0), pack(chunk(0)))
        add(client, "e0", 0.0, {"tokens": key(0)})
        assert client.execute_command(*script, *command) > 0
        wait_until(lambda: client.exists("{c}:out"), "the answer is stored")


def test_the_request_is_listed_and_cancelled_under_its_name(
    corpus: redis.Redis, server: Server
) -> None:
    job = Background(server, "INFER.RAG", MODEL, VSET, *QUERY, "MAXTOKENS", 7000, "IGNOREEOS")
    (entry,) = wait_until(lambda: requests(corpus), "it is listed")
    assert (entry["command"], entry["client"]) == (b"INFER.RAG", job.client_id)
    assert corpus.execute_command("INFER.CANCEL", entry["id"]) == 1
    made = job.result()
    assert made["finish_reason"] == b"cancelled"
    assert used(made)[0] == ("e0", 5)


def test_clients_that_vanish_leave_nothing(corpus: redis.Redis, server: Server) -> None:
    jobs = [
        Background(server, "INFER.RAG", MODEL, VSET, *QUERY, "MAXTOKENS", 2000, "IGNOREEOS")
        for _ in range(6)
    ]
    for job in jobs:
        corpus.execute_command("CLIENT KILL", "ID", job.client_id)
        job.join()
    assert_idle(corpus)


def test_a_replica_retrieves_from_what_it_has(corpus: redis.Redis, model_path: Path) -> None:
    port = corpus.connection_pool.connection_kwargs.get("port")
    master = corpus.info("server")["tcp_port"] if port is None else port
    with own_server(model_path) as server, server.client(socket_timeout=None) as replica:
        replica.execute_command("REPLICAOF", "127.0.0.1", master)
        try:
            wait_until(
                lambda: (
                    replica.info("replication").get("master_link_status") == "up"
                    and replica.exists(VSET)
                ),
                "the replica is in sync",
            )
            made = rag(replica, *QUERY, *BRIEF)
            assert made["tokens"] == rag(corpus, *QUERY, *BRIEF)["tokens"]
            assert "read only replica" in rag_error(replica, *QUERY, "STORE", "{c}:out")
        finally:
            replica.execute_command("REPLICAOF", "NO", "ONE")


def test_in_a_cluster_the_tokens_share_the_vector_sets_slot(model_path: Path) -> None:
    with own_cluster(model_path) as server, server.client() as client:
        if not has_vector_sets(client):
            pytest.skip("no Vector Sets here: before Redis 8")
        client.mset({key(0): pack(chunk(0)), key(1): pack(chunk(1))})
        client.set("{d}:tok:1", pack(chunk(1)))
        add(client, "e0", 0.0, {"tokens": key(0)})
        add(client, "e1", 0.1, {"tokens": key(1)})
        assert used(rag(client, *QUERY, *BRIEF)) == [("e0", 5), ("e1", 6)]

        client.execute_command("VSETATTR", VSET, "e1", json.dumps({"tokens": "{d}:tok:1"}))
        line = rag_error(client, *QUERY, *BRIEF)
        assert line.startswith("key '{d}:tok:1' of element 'e1' is in another slot")
        made = rag(client, *QUERY, "SKIPBAD", *BRIEF)
        assert used(made) == [("e0", 5)]
        assert made["skipped"][0][1].startswith(b"CROSSSLOT ")
        assert "slot" in rag_error(client, *QUERY, "AFTER", "{d}:tok:1")

        cluster = redis.RedisCluster("127.0.0.1", server.port, socket_timeout=None)
        client.execute_command("VSETATTR", VSET, "e1", json.dumps({"tokens": key(1)}))
        plain = cluster.execute_command("INFER.RAG", MODEL, VSET, *QUERY, *BRIEF)
        node = Infer(cluster.get_redis_connection(cluster.get_node_from_key(VSET)))
        made = node.rag(MODEL, VSET, vector=np.frombuffer(vector(0.0), "<f4"), max_tokens=3)
        assert [(s.element, s.tokens_used) for s in made.sources] == [("e0", 5), ("e1", 6)]
        assert as_map(plain)["tokens"] == made.tokens.tobytes()
        client.execute_command("VSETATTR", VSET, "e1", json.dumps({"tokens": "{d}:tok:1"}))
        with pytest.raises(redis.exceptions.ClusterCrossSlotError, match="element 'e1'"):
            node.rag(MODEL, VSET, element="e0")
        cluster.close()


def test_redis_7_says_what_is_missing(model_path: Path) -> None:
    try:
        old = find_redis_server(shutil.which("redis-server"))
    except ServerError as error:
        pytest.skip(f"no other Redis on PATH: {error}")
    with own_server(model_path, redis_server=old) as server, server.client() as client:
        if has_vector_sets(client):
            pytest.skip("the Redis on PATH has Vector Sets")
        line = error_of(client, "INFER.RAG", MODEL, "v", "ELE", "x")
        assert "needs Redis 8" in line
        assert client.ping()
        assert_idle(client)
