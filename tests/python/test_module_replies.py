"""INFER.GENERATE and INFER.SCORE: what they answer."""

from __future__ import annotations

import math

import pytest
import redis

from module_support import MODEL, PROMPT, as_map, floats, generate, pack, unpack
from redis_infer import Infer
from redis_infer.server import Server

pytestmark = pytest.mark.usefixtures("loaded")


@pytest.fixture
def prompt(client: redis.Redis) -> bytes:
    client.set("p", pack(PROMPT))
    return b"p"


@pytest.mark.parametrize("protocol", [2, 3])
def test_the_reply_is_a_map_in_resp3_and_a_flat_array_in_resp2(
    server: Server, prompt: bytes, protocol: int
) -> None:
    with server.client(protocol=protocol) as client:
        reply = client.execute_command("INFER.GENERATE", MODEL, 1, prompt, "MAXTOKENS", 4)
    assert isinstance(reply, dict if protocol == 3 else list)
    fields = as_map(reply)
    assert list(fields) == [
        *("text", "tokens", "finish_reason", "prompt_tokens", "cached_tokens", "output_tokens"),
        *("admit_us", "queue_us", "first_token_us", "total_us"),
    ]
    assert fields["prompt_tokens"] == len(PROMPT)
    assert fields["output_tokens"] == 4 == len(unpack(fields["tokens"]))
    assert fields["finish_reason"] == b"length"
    assert 0 < fields["first_token_us"] <= fields["total_us"]
    assert 0 <= fields["queue_us"] <= fields["first_token_us"]


def test_128_tokens_are_the_default(client: redis.Redis, prompt: bytes) -> None:
    assert generate(client, MODEL, 1, prompt, "IGNOREEOS")["output_tokens"] == 128


def test_keys_and_blob_join_in_order(client: redis.Redis) -> None:
    def scores(*prompt: object) -> bytes:
        return as_map(client.execute_command("INFER.SCORE", MODEL, *prompt))["logprobs"]

    client.mset({"a": pack(PROMPT[:3]), "b": pack(PROMPT[3:7])})
    tail = ("TOKENS", pack(PROMPT[7:]))
    whole = scores(0, "TOKENS", pack(PROMPT))
    assert scores(2, "a", "b", *tail) == whole
    assert scores(2, "b", "a", *tail) != whole
    assert len(scores(3, "a", "b", "a", *tail)) == len(whole) + 3 * 4


def test_an_empty_key_adds_nothing(client: redis.Redis, prompt: bytes) -> None:
    client.set("empty", b"")
    assert generate(client, MODEL, 2, "empty", prompt, "MAXTOKENS", 1)["prompt_tokens"] == len(
        PROMPT
    )


def test_option_names_may_be_written_in_any_case(client: redis.Redis, prompt: bytes) -> None:
    assert generate(client, MODEL, 1, prompt, "maxTokens", 3, "ignoreEOS")["output_tokens"] == 3


def test_a_seed_repeats_a_sampled_text_and_another_gives_another(
    client: redis.Redis, prompt: bytes
) -> None:
    def sample(*seed: object) -> bytes:
        args = ("MAXTOKENS", 24, "TEMPERATURE", 1.2, "IGNOREEOS", *seed)
        return generate(client, MODEL, 1, prompt, *args)["tokens"]

    assert sample("SEED", 7) == sample("SEED", 7)
    assert sample("SEED", 7) != sample("SEED", 18446744073709551615)
    assert sample() != sample()  # without a seed each request draws for itself


def test_generation_ends_before_the_stop_text(client: redis.Redis, prompt: bytes) -> None:
    text = generate(client, MODEL, 1, prompt, "MAXTOKENS", 32)["text"].decode()
    stop = text[len(text) // 2 :][:5]
    stopped = generate(client, MODEL, 1, prompt, "MAXTOKENS", 32, "STOP", 2, "\x00never", stop)
    assert stopped["finish_reason"] == b"stop"
    assert stopped["text"].decode() == text[: text.index(stop)]


def test_logprobs_are_those_that_score_gives_the_same_tokens(
    client: redis.Redis, prompt: bytes
) -> None:
    made = generate(client, MODEL, 1, prompt, "MAXTOKENS", 6, "LOGPROBS", 3, "IGNOREEOS")
    assert len(floats(made["logprobs"])) == 6
    assert len(unpack(made["top_ids"])) == len(floats(made["top_logprobs"])) == 6 * 3
    scored = as_map(
        client.execute_command("INFER.SCORE", MODEL, 1, prompt, "TOKENS", made["tokens"], "TOP", 3)
    )
    assert floats(scored["logprobs"])[-6:] == floats(made["logprobs"])
    assert unpack(scored["top_ids"])[-18:] == unpack(made["top_ids"])
    # Greedy: each token is the likeliest.
    assert unpack(made["top_ids"])[::3] == unpack(made["tokens"])
    assert floats(made["top_logprobs"])[::3] == floats(made["logprobs"])


def test_logprobs_0_gives_no_alternatives(client: redis.Redis, prompt: bytes) -> None:
    made = generate(client, MODEL, 1, prompt, "MAXTOKENS", 2, "LOGPROBS", 0)
    assert "logprobs" in made and "top_ids" not in made and "top_logprobs" not in made


def test_score_gives_n_minus_1_values_that_are_log_probabilities(
    client: redis.Redis, prompt: bytes
) -> None:
    scored = as_map(client.execute_command("INFER.SCORE", MODEL, 1, prompt))
    assert list(scored) == [
        *("logprobs", "prompt_tokens", "cached_tokens", "admit_us", "queue_us", "total_us")
    ]
    values = floats(scored["logprobs"])
    assert len(values) == len(PROMPT) - 1
    assert all(math.isfinite(v) and v < 0 for v in values)


def test_scores_are_computed_also_of_what_the_cache_has(client: redis.Redis) -> None:
    client.set("long", pack(PROMPT * 20))
    first, again = (as_map(client.execute_command("INFER.SCORE", MODEL, 1, "long")) for _ in "12")
    assert first["cached_tokens"] == again["cached_tokens"] == 0
    assert first["logprobs"] == again["logprobs"]


def test_one_token_has_no_scores(client: redis.Redis) -> None:
    scored = as_map(client.execute_command("INFER.SCORE", MODEL, 0, "TOKENS", pack([1]), "TOP", 2))
    assert scored["logprobs"] == scored["top_ids"] == scored["top_logprobs"] == b""


def test_a_known_prompt_is_taken_from_the_cache_unless_nocache(client: redis.Redis) -> None:
    client.set("long", pack(PROMPT * 20))
    args = (MODEL, 1, "long", "MAXTOKENS", 4)
    cold = generate(client, *args, "NOCACHE")
    assert cold["cached_tokens"] == 0
    generate(client, *args)
    warm = generate(client, *args)
    assert warm["cached_tokens"] > 100
    assert warm["tokens"] == cold["tokens"]
    assert generate(client, *args, "NOCACHE")["cached_tokens"] == 0


def test_store_writes_the_output_tokens_like_set(client: redis.Redis, prompt: bytes) -> None:
    client.rpush("out", "was a list")
    client.expire("out", 1000)
    made = generate(client, MODEL, 1, prompt, "MAXTOKENS", 5, "STORE", "out")
    assert client.get("out") == made["tokens"]
    assert client.ttl("out") == -1
    again = generate(client, MODEL, 2, prompt, "out", "MAXTOKENS", 5, "STORE", "out")
    assert again["prompt_tokens"] == len(PROMPT) + 5
    assert client.get("out") == again["tokens"]


def test_store_goes_to_the_clients_database(server: Server, infer: Infer) -> None:
    with server.client(db=3) as other:
        other.flushdb()
        made = generate(other, MODEL, 0, "TOKENS", pack(PROMPT), "MAXTOKENS", 2, "STORE", "out")
        assert other.get("out") == made["tokens"]
        other.flushdb()
    with server.client() as first:
        assert first.get("out") is None


def test_a_request_times_out_with_what_it_has(client: redis.Redis, prompt: bytes) -> None:
    for timeout_ms in (500, 5_000, 50_000):  # a busy machine may need long for a first token
        args = ("MAXTOKENS", 8000, "IGNOREEOS", "TIMEOUT", timeout_ms)
        made = generate(client, MODEL, 1, prompt, *args)
        if made["output_tokens"]:
            break
    assert made["finish_reason"] == b"timeout"
    assert 0 < made["output_tokens"] < 8000
    assert made["output_tokens"] == len(unpack(made["tokens"]))
    assert made["total_us"] >= 1000 * timeout_ms
