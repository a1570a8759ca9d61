"""The tokenizer of a GGUF file, against transformers, sentencepiece and the trained originals."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from awkward_texts import awkward_texts, with_special_tokens
from redis_infer import prompts, retrieval
from redis_infer.errors import TokenizerError
from redis_infer.gguf_metadata import GGUFError, read_metadata
from redis_infer.tokenizer import PRE_RULES, Tokenizer
from small_vocab import BYTE, CONTROL, NORMAL, TEXTS, UNKNOWN, Vocabulary, corpus, train_byte_level

CHAT_TEMPLATE = (
    "{%- for m in messages %}\n"
    "    {%- if m.role not in ['system', 'user', 'assistant'] %}\n"
    "        {{- raise_exception('unknown role ' + m.role) }}\n"
    "    {%- endif %}\n"
    "{{- '<|im_start|>' + m.role + '\\n' }}\n"
    "{%- generation %}{{ m.content }}{% endgeneration %}{{ '<|im_end|>\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if tools %}{{ tools | tojson(indent=1) }}{% endif %}\n"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}\n"
    "    {% if year %}  \n"
    "   {{ bos_token }}{{ strftime_now('%Y') | length }}\n"
    "    {% endif %}"
)

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 < 2 & \"é\" 'ü'?\n"},
    {"role": "assistant", "content": "Yes."},
]


def differing(
    texts: list[str], ours: Callable[[str], Any], theirs: Callable[[str], Any]
) -> list[tuple[str, Any, Any]]:
    results = [(text, list(ours(text)), list(theirs(text))) for text in texts]
    return [result for result in results if result[1] != result[2]]


def transformers_from_gguf(path: Path) -> Any:
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


# ---- the default model -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2(model_path: Path) -> SimpleNamespace:
    theirs = transformers_from_gguf(model_path)
    # transformers does not read tokenizer.ggml.pre = smollm and forgets that digits stand
    # alone; this is the rule in the tokenizer.json that the model was published with.
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    return SimpleNamespace(ours=Tokenizer.from_gguf(model_path), theirs=theirs)


SMOLLM2_SPECIALS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>"]


def test_smollm2_encodes_awkward_texts_like_transformers(smollm2: SimpleNamespace) -> None:
    texts = awkward_texts() + with_special_tokens(SMOLLM2_SPECIALS)
    assert len(texts) > 300
    assert not differing(
        texts,
        smollm2.ours.encode,
        lambda text: smollm2.theirs(text, add_special_tokens=False)["input_ids"],
    )


def test_smollm2_decodes_like_transformers(smollm2: SimpleNamespace) -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        ids = rng.integers(0, smollm2.ours.vocab_size, rng.integers(1, 30))
        for skip in (False, True):
            expected = smollm2.theirs.decode(
                ids.tolist(), skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )
            assert smollm2.ours.decode(ids, skip_special=skip) == expected


def test_smollm2_renders_chats_like_transformers(smollm2: SimpleNamespace) -> None:
    for messages in (MESSAGES, MESSAGES[1:], MESSAGES[1:2]):
        for prompt in (True, False):
            expected = smollm2.theirs.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt
            )
            assert smollm2.ours.render_chat(messages, add_generation_prompt=prompt) == expected


def test_smollm2_names_its_special_tokens(smollm2: SimpleNamespace) -> None:
    ours = smollm2.ours
    assert (ours.vocab_size, ours.bos_id, ours.eos_id) == (49152, 1, 2)
    assert ours.token_id("<|im_end|>") == 2
    assert ours.token_id("<|no_such_token|>") is None
    assert not ours.add_bos


# ---- byte-level BPE, one small vocabulary a rule ---------------------------------------------


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def published_rule(pre: str) -> pre_tokenizers.PreTokenizer:
    """The rule as the model family publishes it, taken from code that is not ours."""
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    if pre == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre == "smollm":
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    if pre == "qwen2":
        return split(PRETOKENIZE_REGEX)
    # Llama 3 differs from Qwen2 in one place: digits come in groups of up to three.
    assert PRETOKENIZE_REGEX.count(r"|\p{N}|") == 1
    return split(PRETOKENIZE_REGEX.replace(r"|\p{N}|", r"|\p{N}{1,3}|"))


@pytest.fixture(scope="module", params=["gpt-2", "smollm", "qwen2", "llama-bpe"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    pre = request.param
    vocabulary, engine = train_byte_level(published_rule(pre), pre, whole_words=pre == "llama-bpe")
    path = vocabulary.write(tmp_path_factory.mktemp("vocab") / f"{pre}.gguf")
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=engine,
        additional_special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    )
    return SimpleNamespace(
        pre=pre, path=path, vocabulary=vocabulary, ours=Tokenizer.from_gguf(path), theirs=theirs
    )


def test_byte_level_bpe_encodes_like_the_trained_tokenizer(trained: SimpleNamespace) -> None:
    texts = awkward_texts() + with_special_tokens(["<|im_start|>", "<|im_end|>", "<think>"])
    assert not differing(
        texts,
        trained.ours.encode,
        lambda text: trained.theirs(text, add_special_tokens=False)["input_ids"],
    )


def test_byte_level_bpe_encodes_like_transformers_from_the_same_file(
    trained: SimpleNamespace,
) -> None:
    if trained.pre == "smollm":
        pytest.skip("transformers does not know the rule 'smollm'")
    theirs = transformers_from_gguf(trained.path)
    if trained.pre == "llama-bpe":
        # transformers reads no ignore_merges from the name of the rule.
        theirs.backend_tokenizer.model.ignore_merges = True
    texts = awkward_texts() + with_special_tokens(["<|im_start|>", "<|im_end|>", "<think>"])
    assert not differing(
        texts,
        trained.ours.encode,
        lambda text: theirs(text, add_special_tokens=False)["input_ids"],
    )


def test_byte_level_bpe_decodes_to_what_was_encoded(trained: SimpleNamespace) -> None:
    for text in awkward_texts() + with_special_tokens(["<|im_end|>"]):
        for parse_special in (True, False):
            ids = trained.ours.encode(text, parse_special=parse_special)
            assert ids.dtype == np.uint32
            assert trained.ours.decode(ids) == text


def test_special_tokens_in_a_text_are_text_unless_parsed(trained: SimpleNamespace) -> None:
    ours, text = trained.ours, "a<|im_end|><think>b"
    end, think = ours.token_id("<|im_end|>"), ours.token_id("<think>")
    assert end in ours.encode(text)
    plain = ours.encode(text, parse_special=False)
    assert end not in plain
    assert think in plain  # added by the user, no control token
    assert ours.decode(plain, skip_special=True) == text
    assert ours.decode(ours.encode(text), skip_special=True) == "a<think>b"


def test_lone_surrogates_become_replacement_characters(trained: SimpleNamespace) -> None:
    ours = trained.ours
    assert ours.decode(ours.encode("a\ud800b")) == "a\ufffdb"
    assert ours.decode(ours.encode("\ud83d\ude00")) == "😀"  # a pair is the character it encodes


def test_many_texts_at_once_are_encoded_like_one_by_one(trained: SimpleNamespace) -> None:
    texts = awkward_texts()
    for one, many in zip(
        map(trained.ours.encode, texts), trained.ours.encode_batch(texts), strict=True
    ):
        np.testing.assert_array_equal(one, many)


def test_the_fingerprint_depends_on_what_decides_the_tokens(
    trained: SimpleNamespace, tmp_path: Path
) -> None:
    vocabulary = trained.vocabulary
    again = Tokenizer.from_gguf(vocabulary.write(tmp_path / "again.gguf"))
    assert again.fingerprint == trained.ours.fingerprint
    assert len(again.fingerprint) == 64

    merges = list(vocabulary.merges)
    merges[3], merges[4] = merges[4], merges[3]
    tokens = list(vocabulary.tokens)
    tokens[300], tokens[301] = tokens[301], tokens[300]
    other_pre = "qwen2" if trained.pre != "qwen2" else "gpt-2"
    for change in ({"merges": merges}, {"tokens": tokens}, {"pre": other_pre}):
        changed = replace(vocabulary, **change)
        other = Tokenizer.from_gguf(changed.write(tmp_path / "other.gguf"))
        assert other.fingerprint != again.fingerprint


def test_begin_and_end_of_text_are_added_when_asked_and_wanted(
    trained: SimpleNamespace, tmp_path: Path
) -> None:
    ours = trained.ours
    assert ours.add_bos == (trained.pre == "llama-bpe")
    body = ours.encode("x").tolist()
    bos, eos = trained.vocabulary.bos_id, trained.vocabulary.eos_id
    assert ours.encode("x", add_special=True).tolist() == [bos] * ours.add_bos + body

    settings = {"ggml.add_bos_token": True, "ggml.add_eos_token": True}
    wants = replace(trained.vocabulary, settings=settings)
    both = Tokenizer.from_gguf(wants.write(tmp_path / "both.gguf"))
    assert both.encode("x", add_special=True).tolist() == [bos, *body, eos]
    assert both.encode("x").tolist() == body


def test_ids_outside_the_vocabulary_are_refused(trained: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="token id 99999 is outside"):
        trained.ours.decode([1, 99999])


# ---- SentencePiece ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A SentencePiece BPE model with Llama's settings, and a GGUF file of it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in corpus() for line in text.split("\n") if line),
        model_writer=model,
        model_type="bpe",
        vocab_size=1400,
        character_coverage=0.99,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(theirs.get_piece_size())
    types = [
        UNKNOWN if theirs.is_unknown(i)
        else CONTROL if theirs.is_control(i)
        else BYTE if theirs.is_byte(i)
        else NORMAL
        for i in ids
    ]  # fmt: skip
    vocabulary = Vocabulary(
        "llama",
        [theirs.id_to_piece(i) for i in ids],
        types,
        scores=[theirs.get_score(i) for i in ids],
        bos_id=theirs.bos_id(),
        eos_id=theirs.eos_id(),
        unknown_id=theirs.unk_id(),
    )
    path = vocabulary.write(tmp_path_factory.mktemp("vocab") / "spm.gguf")
    return SimpleNamespace(
        path=path, vocabulary=vocabulary, ours=Tokenizer.from_gguf(path), theirs=theirs
    )


def test_sentencepiece_encodes_like_sentencepiece(spm: SimpleNamespace) -> None:
    texts = awkward_texts() + [path.read_text("utf-8") for path in TEXTS.glob("*.txt")]
    assert not differing(
        texts, lambda text: spm.ours.encode(text, parse_special=False), spm.theirs.encode
    )


def test_sentencepiece_encodes_like_transformers_with_llamas_published_rule(
    spm: SimpleNamespace,
) -> None:
    """Special tokens too, which sentencepiece itself does not look for in a text."""
    theirs = transformers_from_gguf(spm.path)
    # The tokenizer.json of Llama 2, Mistral and TinyLlama puts the space before a text by this
    # normalizer; transformers' conversion from GGUF uses Metaspace, which leaves it out before
    # a text that begins with a space.
    theirs.backend_tokenizer.pre_tokenizer = None
    theirs.backend_tokenizer.normalizer = tokenizers.normalizers.Sequence(
        [
            tokenizers.normalizers.Prepend("\u2581"),
            tokenizers.normalizers.Replace(" ", "\u2581"),
        ]
    )
    texts = awkward_texts() + with_special_tokens(["<s>", "</s>"])
    assert not differing(
        texts,
        spm.ours.encode,
        lambda text: theirs(text, add_special_tokens=False)["input_ids"],
    )


def test_sentencepiece_decodes_to_what_was_encoded(spm: SimpleNamespace) -> None:
    for text in awkward_texts():
        ids = spm.ours.encode(text, parse_special=False)
        text = text.replace("\u2581", " ")  # SentencePiece can't tell the two apart
        assert spm.ours.decode(ids) == text
        assert spm.ours.decode_bytes(ids) == (b" " if text else b"") + text.encode()


def test_sentencepiece_puts_no_space_before_what_continues_a_text(spm: SimpleNamespace) -> None:
    # In the model's normalizer_spec: name, and field 3, add_dummy_prefix.
    proto, spec = spm.theirs.serialized_model_proto(), b"identity\x12\x00\x18"
    assert proto.count(spec + b"\x01") == 1
    proto = proto.replace(spec + b"\x01", spec + b"\x00")
    spm_inside = sentencepiece.SentencePieceProcessor(model_proto=proto)
    assert spm_inside.encode("x") == [spm_inside.piece_to_id("x")]
    texts = awkward_texts() + [path.read_text("utf-8") for path in TEXTS.glob("*.txt")]
    assert not differing(
        texts,
        lambda text: spm.ours.encode(text, parse_special=False, continues=True),
        spm_inside.encode,
    )

    def in_parts(text: str) -> list[int]:
        """Special tokens too: as before, whatever follows one begins a text."""
        before, special, rest = text.partition("</s>")
        ids: list[int] = spm_inside.encode(before)
        return ids + ([spm.theirs.eos_id()] if special else []) + spm.theirs.encode(rest)

    parts = [a + "</s>" + b for a in ("", "a", " b", "c d ") for b in ("", "e", " f")]
    assert not differing(parts, lambda text: spm.ours.encode(text, continues=True), in_parts)


def test_parts_of_a_prompt_join_without_spaces(spm: SimpleNamespace) -> None:
    ours = spm.ours
    tokens = retrieval.question_of(ours, "What is it?", "Be brief.")
    assert ours.decode_bytes(tokens) == b"\nQuestion: What is it?\nAnswer:"
    gap = retrieval.Gap("a.py", "def f():\n    return 1\n", 1)
    _, rest = retrieval.completion_of(ours, gap)
    assert ours.decode(rest) == "a.py\ndef f():\n"
    continuing = prompts.encode(ours, "ris", continues=True)
    assert ours.decode_bytes(continuing) == b"ris"


def test_sentencepiece_begins_texts_with_bos_unless_the_file_says_not_to(
    spm: SimpleNamespace, tmp_path: Path
) -> None:
    assert spm.ours.encode("x", add_special=True).tolist() == [
        spm.theirs.bos_id(),
        *spm.theirs.encode("x"),
    ]
    settings = {"ggml.add_bos_token": False, "ggml.add_space_prefix": False}
    plain = replace(spm.vocabulary, settings=settings)
    ours = Tokenizer.from_gguf(plain.write(tmp_path / "plain.gguf"))
    assert ours.encode("x", add_special=True).tolist() == [spm.theirs.piece_to_id("x")]
    assert ours.decode(ours.encode(" x")) == " x"
    assert ours.fingerprint != spm.ours.fingerprint


# ---- chat templates --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> Vocabulary:
    return train_byte_level(published_rule("gpt-2"), "gpt-2", size=300)[0]


@pytest.fixture(scope="module")
def chat(tiny: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    speaks = replace(tiny, settings={"chat_template": CHAT_TEMPLATE})
    return Tokenizer.from_gguf(speaks.write(tmp_path_factory.mktemp("chat") / "chat.gguf"))


def test_templates_render_like_transformers(chat: Tokenizer) -> None:
    tools = [{"name": "f", "about": "<b> & 'é'"}]
    for variables in ({}, {"year": True}, {"tools": tools}):
        (expected,), _ = chat_template_utils.render_jinja_template(
            [MESSAGES],
            chat_template=CHAT_TEMPLATE,
            add_generation_prompt=True,
            bos_token="<|im_start|>",
            eos_token="<|im_end|>",
            **variables,
        )
        assert chat.render_chat(MESSAGES, **variables) == expected


def test_a_template_can_refuse_messages(chat: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="unknown role tool"):
        chat.render_chat([{"role": "tool", "content": ""}])


def test_templates_run_in_a_sandbox(tiny: Vocabulary) -> None:
    escape = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    metadata = metadata_of(tiny) | {"tokenizer.chat_template": escape}
    with pytest.raises(TokenizerError, match="unsafe"):
        Tokenizer(metadata).render_chat(MESSAGES)


def test_a_file_without_a_template_says_so(tiny: Vocabulary) -> None:
    with pytest.raises(TokenizerError, match=r"no chat template \(tokenizer.chat_template\)"):
        Tokenizer(metadata_of(tiny)).render_chat(MESSAGES)


# ---- what is refused -------------------------------------------------------------------------


def metadata_of(vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": vocabulary.model,
        "tokenizer.ggml.pre": vocabulary.pre,
        "tokenizer.ggml.tokens": vocabulary.tokens,
        "tokenizer.ggml.token_type": np.array(vocabulary.types, np.int32),
        "tokenizer.ggml.merges": vocabulary.merges,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.pre": "deepseek-v3"}, "'deepseek-v3' .* is not implemented; known are"),
        ({"tokenizer.ggml.model": "t5"}, "'t5' .* is not implemented; known are gpt2"),
        ({"tokenizer.ggml.pre": None}, "no 'tokenizer.ggml.pre'"),
        ({"tokenizer.ggml.merges": None}, "no 'tokenizer.ggml.merges'"),
        ({"tokenizer.ggml.tokens": None}, "no 'tokenizer.ggml.tokens'"),
        ({"tokenizer.ggml.merges": ["x yy"]}, "do not fit together"),
        ({"tokenizer.ggml.token_type": np.ones(3, np.int32)}, "3 token types"),
    ],
)
def test_a_tokenizer_that_cannot_be_had_exactly_is_refused_by_name(
    tiny: Vocabulary, change: dict[str, Any], message: str
) -> None:
    metadata = {
        key: value for key, value in (metadata_of(tiny) | change).items() if value is not None
    }
    with pytest.raises(TokenizerError, match=message):
        Tokenizer(metadata)


def test_every_rule_has_a_pattern_that_keeps_all_text(tiny: Vocabulary) -> None:
    """A pattern that dropped characters would lose text without an error."""
    for pre in PRE_RULES:
        ours = Tokenizer(metadata_of(tiny) | {"tokenizer.ggml.pre": pre})
        for text in awkward_texts(n_random=50):
            assert ours.decode(ours.encode(text)) == text


# ---- GGUF metadata ---------------------------------------------------------------------------


def test_metadata_equals_what_the_gguf_package_wrote(tmp_path: Path) -> None:
    path = tmp_path / "all.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    written: dict[str, Any] = {"general.architecture": "llama"}
    for kind, value in {
        "uint8": 200,
        "int8": -100,
        "uint16": 60000,
        "int16": -30000,
        "uint32": 4000000000,
        "int32": -2000000000,
        "float32": 0.5,
        "uint64": 1 << 63,
        "int64": -(1 << 62),
        "float64": 0.1,
        "bool": True,
        "string": "näme",
    }.items():
        getattr(writer, f"add_{kind}")(f"a.{kind}", value)
        written[f"a.{kind}"] = value
    for name, values in {
        "strings": ["", "x", "文"],
        "ints": [1, -2, 3],
        "floats": [1.5, -0.25],
        "bools": [True, False],
    }.items():
        writer.add_array(f"a.{name}", values)
        written[f"a.{name}"] = values
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    ours = {
        key: value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in read_metadata(path).items()
    }
    assert ours == written


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds 0 bytes"),
        (b"PK\x03\x04" + bytes(40), "begins with b'PK"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "metadata entries"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 63) + bytes(40), "cut off"),
        (
            b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 77) + bytes(40),
            "unknown value type 77",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 8, 1 << 50) + bytes(40),
            "strings",
        ),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 9, 1) + bytes(40), "type 9"),
        (
            b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 4, 1 << 50) + bytes(40),
            "cut off",
        ),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    with pytest.raises(GGUFError, match=message):
        read_metadata(path)


def test_a_file_cut_anywhere_in_its_metadata_is_refused(tiny: Vocabulary, tmp_path: Path) -> None:
    whole = tiny.write(tmp_path / "whole.gguf").read_bytes()
    part = tmp_path / "part.gguf"
    for end in range(0, len(whole) - 32, 97):  # the writer pads the end
        part.write_bytes(whole[:end])
        with pytest.raises(GGUFError):
            read_metadata(part)
