"""Configuration, INFO and what COMMAND tells about the commands."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import redis

from module_support import MODEL, PROMPT, as_map, error_of, generate, load, pack, wait_until
from redis_infer import Infer
from redis_infer.server import Server, ServerError

COMMANDS = {
    "infer.model|load": -4,
    "infer.model|unload": 3,
    "infer.model|list": 2,
    "infer.model|info": 3,
    "infer.generate": -4,
    "infer.score": -4,
    "infer.requests": 1,
    "infer.cancel": 2,
}


def test_the_settings_have_their_defaults(model_path: Path) -> None:
    with Server(model_dir=model_path.parent) as server, server.client() as client:
        assert client.config_get("infer.*") == {
            "infer.threads": "0",
            "infer.model-dir": str(model_path.parent),
            "infer.kv-memory": str(1 << 30),
            "infer.max-batch": "16",
            "infer.max-queue": "1024",
            "infer.trace-admission": "no",
        }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threads", -1),
        ("threads", 257),
        ("threads", "two"),
        ("kv-memory", 0),
        ("kv-memory", "lots"),
        ("max-batch", 0),
        ("max-batch", 65),
        ("max-queue", -1),
        ("trace-admission", "perhaps"),
        ("model-dir", "/"),
    ],
)
def test_values_out_of_range_are_refused(client: redis.Redis, name: str, value: Any) -> None:
    before = client.config_get(f"infer.{name}")
    with pytest.raises(redis.ResponseError):
        client.config_set(f"infer.{name}", value)
    assert client.config_get(f"infer.{name}") == before


def test_settings_at_start_and_units_of_memory(model_path: Path) -> None:
    settings = {"infer.kv-memory": "64mb", "infer.threads": 1, "infer.max-queue": 0}
    with Server(model_dir=model_path.parent, config=settings) as server, server.client() as client:
        assert client.config_get("infer.kv-memory") == {"infer.kv-memory": str(64 << 20)}
        info = load(client, model_path.name)
        assert 32 << 20 < info["kv_bytes"] <= 64 << 20
        assert client.info("infer")["infer_threads"] == 1
        # A place in the batch is not a place in the queue.
        made = generate(client, MODEL, 0, "TOKENS", pack(PROMPT), "MAXTOKENS", 1)
        assert made["output_tokens"] == 1


def test_a_wrong_setting_at_start_is_fatal_and_named(model_path: Path) -> None:
    with pytest.raises(ServerError, match="max-batch"):
        Server(model_dir=model_path.parent, config={"infer.max-batch": "0"}).start()


def test_a_server_outlives_a_setting_that_is_refused(model_path: Path) -> None:
    with (
        Server(model_dir=model_path.parent, config={"enable-module-command": "yes"}) as server,
        server.client() as client,
    ):
        client.execute_command("MODULE UNLOAD", "infer")
        with pytest.raises(redis.ResponseError):
            client.execute_command(
                *("MODULE LOADEX", str(server.module), "CONFIG", "infer.max-batch", "1000")
            )
        time.sleep(0.5)  # Redis' own clock ticks, which the module listened to
        assert client.ping()
        client.execute_command(
            *("MODULE LOADEX", str(server.module), "CONFIG"),
            *("infer.model-dir", str(model_path.parent)),
        )
        assert load(client, model_path.name)["state"] == b"ready"


def test_arguments_of_loadmodule_are_refused(server: Server, model_path: Path) -> None:
    with pytest.raises(ServerError, match="takes no arguments"):
        Server(
            model_dir=model_path.parent, config={"loadmodule": [server.module, "threads", "2"]}
        ).start()


@pytest.mark.parametrize(("kernels", "works"), [("scalar", True), ("none-such", False)])
def test_the_kernels_can_be_forced_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, model_path: Path, kernels: str, works: bool
) -> None:
    monkeypatch.setenv("REDIS_INFER_KERNELS", kernels)
    server = Server(model_dir=model_path.parent)
    if not works:
        with pytest.raises(ServerError, match="REDIS_INFER_KERNELS"):
            server.start()
        return
    with server, server.client() as client:
        assert client.info("infer")["infer_kernels"] == kernels
        assert load(client, model_path.name)["kernels"] == kernels.encode()


# ---- INFO ----


def test_info_counts_requests_and_tokens(client: redis.Redis, loaded: Infer) -> None:
    def counts() -> dict[str, int]:
        info = client.info("infer")
        return {name: value for name, value in info.items() if isinstance(value, int)}

    before = counts()
    generate(client, MODEL, 0, "TOKENS", pack(PROMPT), "MAXTOKENS", 5, "IGNOREEOS", "NOCACHE")
    wait_until(lambda: counts()["infer_requests_running"] == 0, "it has ended")
    after = counts()
    grown = {name: after[name] - before[name] for name in before if after[name] != before[name]}
    assert grown["infer_requests_total"] == grown["infer_requests_finished"] == 1
    assert grown["infer_prompt_tokens"] == len(PROMPT)
    assert grown["infer_output_tokens"] == 5
    assert grown["infer_steps"] >= 5
    assert "infer_cached_tokens" not in grown
    assert after["infer_models"] == 1
    assert 90_000_000 < after["infer_memory_weights_bytes"] < 100_000_000
    assert after["infer_memory_kv_bytes"] <= 1 << 30
    model = client.info("infer")[f"infer_model_{MODEL}"]
    assert model["state"] == "ready"
    assert 0 < model["first_token_p50_us"] <= model["first_token_p99_us"]


def test_info_is_part_of_everything(client: redis.Redis, loaded: Infer) -> None:
    assert "infer_models" in client.info("everything")
    assert "infer_models" in client.info("modules") or "infer_models" in client.info("infer")


# ---- COMMAND ----


def test_each_command_is_documented(client: redis.Redis) -> None:
    docs = as_map(client.execute_command("COMMAND DOCS", "infer.model", *COMMANDS))
    (container,) = [as_map(docs.pop("infer.model"))]
    described = {**docs, **as_map(container["subcommands"])}
    assert set(described) == set(COMMANDS)
    for name, doc in described.items():
        fields = as_map(doc)
        assert fields["summary"].endswith(b"."), name
        assert fields["since"] == b"0.1.0", name
        assert fields["complexity"].startswith(b"O("), name


def test_docs_name_every_option_that_the_parser_takes(client: redis.Redis) -> None:
    def tokens(arguments: list[Any]) -> set[str]:
        found: set[str] = set()
        for argument in map(as_map, arguments):
            found |= {argument["token"].decode()} if "token" in argument else set()
            found |= tokens(argument.get("arguments", []))
        return found

    def words(name: str) -> set[str]:
        doc = as_map(as_map(client.execute_command("COMMAND DOCS", name))[name])
        return tokens(doc["arguments"])

    # The parser says which words are no options of its command: all others are.
    every = (
        words("infer.generate") | words("infer.score") | words("infer.model|load") | {"NONSENSE"}
    )
    fixed = {"infer.generate": ("m", 1, "k"), "infer.score": ("m", 1, "k")}
    fixed["infer.model|load"] = ("m", "f")
    for name, args in fixed.items():
        taken = {
            word
            for word in every
            if "unknown option" not in error_of(client, name.replace("|", " "), *args, word)
        }
        assert taken == words(name)


def test_arity_and_flags(client: redis.Redis) -> None:
    answers = client.execute_command("COMMAND INFO", *COMMANDS)
    for (name, arity), answer in zip(COMMANDS.items(), answers, strict=True):
        assert answer[0].decode() == name
        assert answer[1] == arity
        flags = {flag.decode() if isinstance(flag, bytes) else flag for flag in answer[2]}
        blocks = name in ("infer.generate", "infer.score", "infer.model|load", "infer.model|unload")
        assert ("blocking" in flags) == blocks, name
        assert ("movablekeys" in flags) == (name in ("infer.generate", "infer.score"))
        assert "write" not in flags


def test_commands_of_too_few_arguments_are_refused_by_redis(client: redis.Redis) -> None:
    for name, arity in COMMANDS.items():
        words = name.replace("|", " ").upper().split(" ")
        n_missing = abs(arity) - len(words) - 1
        if n_missing >= 0:
            message = error_of(client, " ".join(words), *["1"] * n_missing)
            assert "wrong number of arguments" in message


def test_idle_costs_no_cpu(client: redis.Redis, loaded: Infer) -> None:
    stat = Path(f"/proc/{client.info('server')['process_id']}/stat")
    if not stat.is_file():
        pytest.skip("needs /proc")

    def cpu_ticks() -> int:
        fields = stat.read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    generate(client, MODEL, 0, "TOKENS", pack(PROMPT), "MAXTOKENS", 2)
    time.sleep(0.2)
    before = cpu_ticks()
    time.sleep(1.5)
    assert cpu_ticks() - before <= 8  # of 150: Redis' own timer takes a few
