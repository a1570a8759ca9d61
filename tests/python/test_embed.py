"""Vectors: against transformers in float32, and the same whatever is beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import torch
from transformers import AutoTokenizer

from awkward_texts import awkward_texts, with_special_tokens
from module_support import as_map, pack
from redis_infer import AsyncInfer, Infer, convert_bert, models
from redis_infer.errors import BadTokensError, ContextError, NoKeyError
from redis_infer.gguf_metadata import read_metadata
from redis_infer.server import Server
from redis_infer.tokenizer import Tokenizer
from small_bert import SPECIALS, write_bert

DATA = Path(__file__).parent / "data"
MINILM = "minilm"


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return json.loads((DATA / "embed_texts.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def reference() -> Any:
    """Token ids and vectors of transformers: see data/make_minilm_reference.py."""
    return np.load(DATA / "minilm_reference.npz")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Iterator[Any]:
    """Loads small models made for a test, and unloads them."""
    names: list[str] = []
    paths: list[Path] = []

    def load(kind: str = "f32", **shape: Any) -> tuple[str, Any, Path]:
        folder = tmp_path_factory.mktemp("bert")
        model = write_bert(folder, **shape)
        name = f"small-{len(names)}"
        path = models.directory() / f"{name}-{folder.name}-{id(folder):x}.gguf"
        paths.append(convert_bert.convert(folder, path, kind=kind))
        with server.client() as client:
            Infer(client).load(name, path)
        names.append(name)
        return name, model, folder

    yield load
    with server.client() as client:
        for name in names:
            Infer(client).unload(name)
    for path in paths:
        path.unlink()


def cosines(a: Any, b: Any) -> Any:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


# ---- against transformers --------------------------------------------------------------------


def test_minilm_agrees_with_transformers_on_every_text(
    embedding: Infer, texts: list[str], reference: Any
) -> None:
    vectors = embedding.embed(MINILM, texts, truncate=True)
    assert vectors.shape == (len(texts), 384)
    assert vectors.dtype == np.float32
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    found = cosines(vectors, reference["vectors"])
    bad = [(round(c, 6), text[:40]) for c, text in zip(found, texts, strict=True) if c < 0.9995]
    assert not bad
    assert found.mean() > 0.9997


def test_minilm_tokens_are_those_of_transformers(
    embedder_path: Path, texts: list[str], reference: Any
) -> None:
    tokenizer = Tokenizer.from_gguf(embedder_path)
    expected = np.split(reference["ids"], np.cumsum(reference["lengths"])[:-1])
    for text, ids in zip(texts, expected, strict=True):
        assert tokenizer.encode(text, add_special=True)[: len(ids) - 1].tolist() == list(ids[:-1])


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token"])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"n_head": 1, "n_layer": 1},
        {"n_embd": 96, "n_head": 2, "n_ff": 160},
        {"n_embd": 60, "n_head": 3, "n_ff": 50},
    ],
    ids=str,
)
def test_random_models_agree_with_transformers(
    small: Any, client: redis.Redis, pooling: str, shape: dict[str, int]
) -> None:
    name, model, _folder = small("f32", pooling=pooling, **shape)
    rng = np.random.default_rng(1)
    inputs = [rng.integers(0, model.config.vocab_size, n) for n in (1, 2, 48, 49, 64, 65, 128)]
    found = Infer(client).embed(name, inputs)
    for ids, vector in zip(inputs, found, strict=True):
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor(ids[None])).last_hidden_state[0]
        expected = hidden.mean(0) if pooling == "mean_tokens" else hidden[0]
        assert cosines(vector, expected) > 1 - 1e-5  # queries, keys and values are 16-bit integers


@pytest.mark.parametrize("kind", ["f16", "mixed"])
def test_smaller_types_stay_near_the_float32_vectors(
    small: Any, client: redis.Redis, kind: str
) -> None:
    inputs = [np.arange(5, 5 + n) for n in (1, 5, 40, 128)]
    exact, _model, _folder = small("f32")
    rounded, _model, _folder = small(kind)
    infer = Infer(client)
    assert infer.info(exact)["weight_bytes"] > 1.5 * infer.info(rounded)["weight_bytes"]
    found = cosines(infer.embed(exact, inputs), infer.embed(rounded, inputs))
    assert found.min() > (0.99999 if kind == "f16" else 0.999)


def test_wordpiece_equals_transformers_on_awkward_texts(small: Any, server: Server) -> None:
    name, _model, folder = small()
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    with server.client() as client:
        ours = Infer(client).tokenizer(name)
    cases = awkward_texts() + with_special_tokens(SPECIALS)
    cases += ["a" * 100, "a" * 101, "don't ##ing [ unk ]", "İstanbul STRASSE ǅ", "soft\u00adhyphen"]
    assert len(cases) > 300
    differing = [
        text
        for text in cases
        if ours.encode(text, add_special=True).tolist() != theirs(text)["input_ids"]
    ]
    assert not differing


# ---- invariance ------------------------------------------------------------------------------


def test_neither_neighbours_nor_order_nor_threads_change_a_vector(
    embedding: Infer, client: redis.Redis, texts: list[str]
) -> None:
    some = [text for text in texts if len(text) < 800]
    together = embedding.embed(MINILM, some)
    backwards = embedding.embed(MINILM, some[::-1])
    assert (together == backwards[::-1]).all()
    alone = np.concatenate([embedding.embed(MINILM, text) for text in some[:8]])
    assert (together[:8] == alone).all()
    before = client.config_get("infer.threads")["infer.threads"]
    try:
        client.config_set("infer.threads", 3)
        assert (embedding.embed(MINILM, some) == together).all()
    finally:
        client.config_set("infer.threads", before)


def test_keys_come_first_and_equal_texts(embedding: Infer) -> None:
    tokenizer = embedding.tokenizer(MINILM)
    texts = ["first text", "second text", "third, a little longer than the others"]
    expected = embedding.embed(MINILM, texts)
    for i, text in enumerate(texts):
        embedding.store_tokens(f"text:{i}", tokenizer.encode(text, add_special=True))
    found = embedding.embed(MINILM, texts[2:], keys=["text:0", "text:1"])
    assert (found == expected).all()
    assert (embedding.embed(MINILM, keys="text:1") == expected[1:2]).all()


def test_more_texts_than_one_command_takes_keep_their_order(
    embedding: Infer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"text number {i}" for i in range(20)]
    expected = embedding.embed(MINILM, texts)
    embedding.store_tokens("k", embedding.tokenizer(MINILM).encode("key", add_special=True))
    monkeypatch.setattr("redis_infer.commands.MAX_EMBED_INPUTS", 7)
    found = embedding.embed(MINILM, texts, keys=["k", "k"])
    assert (found[2:] == expected).all()
    assert (found[0] == found[1]).all()


async def test_the_asynchronous_client_gives_the_same(
    embedding: Infer, server: Server, texts: list[str]
) -> None:
    async with server.async_client() as client:
        found = await AsyncInfer(client).embed(MINILM, texts[:5])
    assert (found == embedding.embed(MINILM, texts[:5])).all()


def test_a_decoder_gives_the_state_of_its_last_token(loaded: Infer) -> None:
    rng = np.random.default_rng(2)
    inputs = [rng.integers(0, 49000, n) for n in (1, 3, 70, 200)]
    together = loaded.embed("smol", inputs)
    assert together.shape == (4, 576)
    assert np.abs(np.linalg.norm(together, axis=1) - 1).max() < 1e-5
    assert (together[1:2] == loaded.embed("smol", inputs[1:2])).all()
    # What comes before counts, what comes after is not there yet.
    assert cosines(together[2], loaded.embed("smol", [inputs[2][1:]])[0]) < 0.99999


# ---- long texts and bad input ----------------------------------------------------------------


def test_a_text_beyond_the_context_is_an_error_unless_it_may_be_cut(embedding: Infer) -> None:
    text = "word " * 600
    with pytest.raises(ContextError, match=r"602 tokens, more than the model's context of 512"):
        embedding.embed(MINILM, text)
    cut = embedding.embed(MINILM, text, truncate=True)
    ids = embedding.tokenizer(MINILM).encode(text, add_special=True)
    assert (cut == embedding.embed(MINILM, [[*ids[:511], ids[-1]]])).all()


def test_bad_inputs_are_refused(embedding: Infer) -> None:
    with pytest.raises(ValueError, match="nothing to embed"):
        embedding.embed(MINILM)
    with pytest.raises(TypeError, match="mixture"):
        embedding.embed(MINILM, ["text", [1, 2]])  # type: ignore[list-item]
    with pytest.raises(BadTokensError, match="part 2 of TOKENS holds token 30522"):
        embedding.embed(MINILM, [[101, 102], [30522]])
    with pytest.raises(BadTokensError, match="part 1 of TOKENS holds no tokens"):
        embedding.embed(MINILM, [[]])
    with pytest.raises(NoKeyError, match="key 'missing'"):
        embedding.embed(MINILM, keys=["missing"])
    with pytest.raises(redis.ResponseError, match="makes vectors and no text"):
        embedding.generate(MINILM, [101])


# ---- the command itself ----------------------------------------------------------------------


def test_the_reply_is_a_map_of_vectors_and_times(embedding: Infer, client: redis.Redis) -> None:
    client.set("a", pack([101, 7592, 102]))
    reply = as_map(
        client.execute_command("INFER.EMBED", MINILM, 1, "a", "TOKENS", pack([101, 2088, 102]))
    )
    assert [len(vector) for vector in reply["vectors"]] == [384 * 4] * 2
    assert reply["dimensions"] == 384
    assert reply["prompt_tokens"] == 6
    assert reply["total_us"] > 0
    assert {"admit_us", "queue_us"} < reply.keys()


def test_lengths_cut_the_blob_exactly(embedding: Infer, client: redis.Redis) -> None:
    blob = pack([101, 7592, 102, 101, 2088, 102])

    def embed(*lengths: int) -> list[bytes]:
        args = ("TOKENS", blob, "LENGTHS", pack(lengths))
        return as_map(client.execute_command("INFER.EMBED", MINILM, 0, *args))["vectors"]

    assert embed(3, 3)[0] != embed(3, 3)[1]
    for lengths, message in (
        ((3,), "leaves 12 bytes of TOKENS over"),
        ((3, 4), "asks for 4 tokens as part 2 of TOKENS, where 12 bytes are left"),
        ((6, 0xFFFFFFFF), "asks for 4294967295 tokens"),
    ):
        with pytest.raises(redis.ResponseError, match=message):
            embed(*lengths)
    for args, message in (
        (("TOKENS", blob, "LENGTHS", b"abc"), "LENGTHS holds 3 bytes"),
        (("LENGTHS", pack([1])), "TOKENS, which is not given"),
        (("TOKENS", b"abc"), "TOKENS holds 3 bytes"),
        (("TOKENS", blob, "TOP", 1), "unknown option 'TOP'"),
    ):
        with pytest.raises(redis.ResponseError, match=message):
            client.execute_command("INFER.EMBED", MINILM, 0, *args)


def test_getkeys_and_scripts(client: redis.Redis) -> None:
    found = client.execute_command(
        "COMMAND GETKEYS", "INFER.EMBED", "m", 2, "a", "TOKENS", "TOKENS", "x"
    )
    assert [k.decode() if isinstance(k, bytes) else k for k in found] == ["a", "TOKENS"]
    with pytest.raises(redis.ResponseError, match=r"INFER\.EMBED blocks its client"):
        client.eval("return redis.call('INFER.EMBED', 'm', 0, 'TOKENS', 'aaaa')", 0)


def test_a_key_of_another_type_is_named(embedding: Infer, client: redis.Redis) -> None:
    client.rpush("list", 1)
    with pytest.raises(redis.ResponseError, match="WRONGTYPE key 'list' holds a list"):
        client.execute_command("INFER.EMBED", MINILM, 1, "list")


def test_a_timeout_ends_it(embedding: Infer, client: redis.Redis) -> None:
    tokens = pack([101, *[2088] * 500, 102]) * 1000
    args = ("TOKENS", tokens, "LENGTHS", pack([502] * 1000), "TIMEOUT", 50)
    with pytest.raises(
        redis.ResponseError, match=r"CANCELLED timed out after 50 ms with \d+ of 1000 "
    ):
        client.execute_command("INFER.EMBED", MINILM, 0, *args)


# ---- conversion ------------------------------------------------------------------------------


def test_the_converted_file_says_what_llama_cpp_expects(embedder_path: Path) -> None:
    metadata = read_metadata(embedder_path)
    assert metadata["general.architecture"] == "bert"
    assert metadata["bert.attention.causal"] is False
    assert metadata["bert.pooling_type"] == 1
    assert metadata["tokenizer.ggml.model"] == "bert"
    tokens = metadata["tokenizer.ggml.tokens"]
    assert (tokens[101], tokens[102], tokens[7592]) == ("[CLS]", "[SEP]", "\u2581hello")
    assert tokens[metadata["tokenizer.ggml.cls_token_id"]] == "[CLS]"


def test_special_tokens_may_be_objects(tmp_path: Path) -> None:
    write_bert(tmp_path, n_embd=32, n_head=2, n_layer=1, n_ff=32)
    expected = convert_bert.convert(tmp_path, tmp_path / "text.gguf").read_bytes()
    path = tmp_path / "tokenizer_config.json"
    names = ("unk", "sep", "cls", "pad", "mask")
    objects = {f"{name}_token": {"content": f"[{name.upper()}]", "lstrip": False} for name in names}
    path.write_text(json.dumps(json.loads(path.read_text()) | objects))
    assert convert_bert.convert(tmp_path, tmp_path / "object.gguf").read_bytes() == expected


def test_folders_that_are_no_bert_model_are_refused(tmp_path: Path) -> None:
    def convert(**changes: Any) -> None:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        write_bert(folder, n_embd=32, n_head=2, n_layer=1, n_ff=32)
        for file, values in changes.items():
            path = (
                folder / f"{file}.json" if file != "pooling" else folder / "1_Pooling/config.json"
            )
            path.write_text(json.dumps(json.loads(path.read_text()) | values))
        convert_bert.convert(folder, folder / "model.gguf")

    for changes, message in (
        ({"config": {"model_type": "roberta"}}, "model_type 'roberta'"),
        ({"config": {"hidden_act": "relu"}}, "hidden_act 'relu'"),
        ({"config": {"vocab_size": 7}}, "vocab_size of 7"),
        ({"tokenizer_config": {"do_lower_case": False}}, "do_lower_case false"),
        ({"pooling": {"pooling_mode_max_tokens": True}}, "pooling_mode_max_tokens"),
    ):
        with pytest.raises(convert_bert.ConversionError, match=message):
            convert(**changes)
    with pytest.raises(convert_bert.ConversionError, match=r"config\.json cannot be read"):
        convert_bert.convert(tmp_path / "nothing", tmp_path / "x.gguf")
