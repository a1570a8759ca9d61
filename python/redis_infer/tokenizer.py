"""Text to token ids and back, with the tokenizer that a GGUF file carries.

A GGUF holds the vocabulary, the merges (byte-level BPE) or scores (SentencePiece), and in
``tokenizer.ggml.pre`` the name of the rule that cuts text into words before merging. A
rule that is not known here is refused by name: a near miss would give tokens that the model
has never seen. The WordPiece vocabulary of a BERT model is all that there is to it.

No text is normalized on its way into a decoder (some models' own files apply Unicode NFC): what
is decoded is what was encoded, byte for byte. Bytes for which a byte-level vocabulary has
no token at all, such as U+0004 in SmolLM2's, are the exception: they are left out.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from .errors import TokenizerError
from .gguf_metadata import read_metadata

TokenArray = npt.NDArray[np.uint32]

# ---- how text is cut into words -------------------------------------------------------------

_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreRule:
    """One family of byte-level BPE tokenizers.

    A text is cut by the first pattern, the parts by the second, and so on: both what a
    pattern matches and what lies between its matches are parts.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    """A word that is in the vocabulary is one token, even if no merges lead to it."""
    add_bos: bool = False
    """Whether a text begins with the beginning-of-text token when the file does not say."""


_SMOLLM = PreRule((r"\p{N}", _GPT2_WORDS))
_QWEN2 = PreRule((_QWEN2_WORDS,))
_LLAMA3 = PreRule((_LLAMA3_WORDS,), whole_words=True, add_bos=True)

PRE_RULES: Mapping[str, PreRule] = {
    "gpt-2": PreRule((_GPT2_WORDS,)),
    "smollm": _SMOLLM,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "megrez": _QWEN2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "pixtral": _LLAMA3,
    "smaug-bpe": PreRule((_LLAMA3_WORDS,)),
    # What converters write for a model whose rule they do not recognize.
    "default": PreRule(
        (r"[\p{P}\$\+<=>\^~\|]+", _GPT2_WORDS, r"\p{N}+", r"[0-9][0-9][0-9]"),
    ),
}
"""The values of ``tokenizer.ggml.pre`` that are implemented."""

# ---- token types, as tokenizer.ggml.token_type has them ----------------------------------------

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)

_LOOKED_FOR = (_UNKNOWN, _CONTROL, _USER_DEFINED)
"""Found in a text before it is cut into words; the first two only with ``parse_special``."""

_SPACE = "\u2581"  # SentencePiece's spelling of a space


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte: itself where printable, else from U+0100 on."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {byte: chr(byte) for byte in kept}
    rest = (byte for byte in range(256) if byte not in alphabet)
    alphabet.update((byte, chr(0x100 + i)) for i, byte in enumerate(rest))
    return alphabet


_BYTE_OF_CHAR = {char: byte for byte, char in _byte_alphabet().items()}


class Tokenizer:
    """The tokenizer of a model. Immutable; any number of threads may use one.

    Attributes:
        vocab_size: number of token ids, from 0.
        bos_id, eos_id: beginning and end of a text; None if the model has none.
        add_bos, add_eos: whether ``encode(add_special=True)`` adds them.
        chat_template: the Jinja source, or None.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        """From the metadata of a GGUF file, as :func:`read_metadata` returns it."""
        self._kind: str = _required(metadata, "tokenizer.ggml.model")
        self._tokens: list[str] = _required(metadata, "tokenizer.ggml.tokens")
        self.vocab_size: int = len(self._tokens)
        types = metadata.get("tokenizer.ggml.token_type")
        self._types: list[int] = [_NORMAL] * self.vocab_size if types is None else types.tolist()
        if len(self._types) != self.vocab_size:
            raise TokenizerError(
                f"the file has {self.vocab_size} tokens but {len(self._types)} token types"
            )
        self._merges: list[str] = []
        self._scores: npt.NDArray[np.float32] | None = None
        self._rule: PreRule | None = None
        self._pre = ""

        if self._kind == "gpt2":
            self._pre = _required(metadata, "tokenizer.ggml.pre")
            if self._pre not in PRE_RULES:
                raise TokenizerError(
                    f"the file's pre-tokenizer '{self._pre}' (tokenizer.ggml.pre) is not "
                    f"implemented; known are {', '.join(sorted(PRE_RULES))}"
                )
            self._rule = PRE_RULES[self._pre]
            self._merges = _required(metadata, "tokenizer.ggml.merges")
        elif self._kind == "llama":
            self._scores = np.asarray(_required(metadata, "tokenizer.ggml.scores"), np.float32)
            if len(self._scores) != self.vocab_size:
                raise TokenizerError(
                    f"the file has {self.vocab_size} tokens but {len(self._scores)} scores"
                )
        elif self._kind != "bert":
            raise TokenizerError(
                f"the file's tokenizer '{self._kind}' (tokenizer.ggml.model) is not implemented; "
                "known are gpt2 (byte-level BPE), llama (SentencePiece) and bert (WordPiece)"
            )

        wordpiece = self._kind == "bert"
        self._space_prefix = self._rule is None and bool(
            metadata.get("tokenizer.ggml.add_space_prefix", True)
        )
        self.bos_id = self._special_id(metadata, "bos")
        self.eos_id = self._special_id(metadata, "eos")
        if wordpiece:  # [CLS] text [SEP]; some converters name the first one bos, some cls
            cls, sep = self._special_id(metadata, "cls"), self._special_id(metadata, "seperator")
            self.bos_id = self.bos_id if cls is None else cls
            self.eos_id = self.eos_id if sep is None else sep
        self._unk_id = self._special_id(metadata, "unknown")
        self._pad_id = self._special_id(metadata, "padding")
        add_bos = metadata.get(
            "tokenizer.ggml.add_bos_token", self._rule.add_bos if self._rule else True
        )
        self.add_bos = bool(add_bos) and self.bos_id is not None
        self.add_eos = bool(metadata.get("tokenizer.ggml.add_eos_token", wordpiece)) and (
            self.eos_id is not None
        )
        self.chat_template: str | None = metadata.get("tokenizer.chat_template")
        self._with_special = self._build(parse_special=True)

    @classmethod
    def from_gguf(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Reads the tokenizer of a model file.

        Raises:
            GGUFError: not a GGUF file, or a damaged one.
            TokenizerError: a kind of tokenizer that is not implemented; the message names it.
        """
        return cls(read_metadata(path))

    def __repr__(self) -> str:
        rule = f" {self._pre}" if self._pre else ""
        return f"<Tokenizer {self._kind}{rule}, {self.vocab_size} tokens>"

    # ---- text to tokens ----

    def encode(
        self,
        text: str,
        *,
        add_special: bool = False,
        parse_special: bool = True,
        continues: bool = False,
    ) -> TokenArray:
        """Token ids [n] of a text.

        Args:
            add_special: add the beginning (and end) of text where the model wants it.
            parse_special: read control tokens such as ``<|im_end|>`` in the text as such. Pass
                False for text that others wrote: it then can't forge the end of a turn.
            continues: other text comes before this one, so that SentencePiece puts no space there.
        """
        engine = self._with_special if parse_special else self._without_special
        text = _clean(text)
        encoding = engine.encode(text, add_special_tokens=False)
        ids: list[int] = encoding.ids
        if continues and self._scores is not None and self._space_prefix:
            # Up to the first token that is looked for in the text; a space follows each of those.
            found = (i for i, t in enumerate(ids) if self._types[t] in _LOOKED_FOR)
            n = next(found, len(ids))
            end = encoding.offsets[n][0] if n < len(ids) else len(text)
            ids = self._without_prefix.encode(text[:end], add_special_tokens=False).ids + ids[n:]
        return self._finish(ids, add_special)

    def encode_batch(
        self, texts: Sequence[str], *, add_special: bool = False, parse_special: bool = True
    ) -> list[TokenArray]:
        """Like :meth:`encode` for many texts, on all processors."""
        engine = self._with_special if parse_special else self._without_special
        encodings = engine.encode_batch_fast([_clean(t) for t in texts], add_special_tokens=False)
        return [self._finish(e.ids, add_special) for e in encodings]

    def _finish(self, ids: list[int], add_special: bool) -> TokenArray:
        if add_special and self.add_bos and self.bos_id is not None:
            ids = [self.bos_id, *ids]
        if add_special and self.add_eos and self.eos_id is not None:
            ids = [*ids, self.eos_id]
        return np.array(ids, dtype=np.uint32)

    # ---- tokens to text ----

    def decode(self, ids: Iterable[int] | TokenArray, *, skip_special: bool = False) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD.

        The space that a SentencePiece tokenizer puts before a text is taken off again. For parts
        of a text, join what :meth:`decode_bytes` gives instead.
        """
        data = self.decode_bytes(ids, skip_special=skip_special)
        if self._space_prefix and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int] | TokenArray, *, skip_special: bool = False) -> bytes:
        """The bytes that token ids stand for, which may begin or end inside a character.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        pieces, types, parts = self._pieces, self._types, []
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"token id {i} is outside the vocabulary of {self.vocab_size}")
            if not (skip_special and types[i] in (_CONTROL, _UNKNOWN, _UNUSED)):
                parts.append(pieces[i])
        return b"".join(parts)

    @functools.cached_property
    def _pieces(self) -> list[bytes]:
        piece = _spm_piece if self._rule is None else _byte_level_piece
        return [piece(text, kind) for text, kind in zip(self._tokens, self._types, strict=True)]

    def token_id(self, text: str) -> int | None:
        """The id of the token that the file spells like this, such as ``<|im_end|>``."""
        return self._ids.get(text)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {text: i for i, text in enumerate(self._tokens)}

    # ---- chats ----

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """A chat as the text that the model was trained on, by the file's own template.

        Encode it with ``parse_special`` (the default) and without ``add_special``: the
        template writes the beginning of text itself.

        Args:
            messages: ``{"role": "system" | "user" | "assistant", "content": text}``, in order.
            add_generation_prompt: end with the beginning of the assistant's turn.
            variables: further variables of the template, such as ``tools`` or ``enable_thinking``.

        Raises:
            TokenizerError: the file has no template, or the template refuses the messages.
        """
        values: dict[str, Any] = {
            f"{name}_token": self._tokens[i]
            for name, i in (
                ("bos", self.bos_id),
                ("eos", self.eos_id),
                ("unk", self._unk_id),
                ("pad", self._pad_id),
            )
            if i is not None
        }
        values.update(tools=None, documents=None)
        values.update(variables)
        try:
            return self._template.render(
                messages=list(messages), add_generation_prompt=add_generation_prompt, **values
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise TokenizerError(
                f"the model's chat template refuses these messages: {error}"
            ) from error

    @functools.cached_property
    def _template(self) -> jinja2.Template:
        if self.chat_template is None:
            raise TokenizerError(
                "the model's file has no chat template (tokenizer.chat_template): "
                "give a text instead"
            )
        try:
            return _template_environment().from_string(self.chat_template)
        except jinja2.TemplateError as error:
            raise TokenizerError(f"the model's chat template can't be read: {error}") from error

    # ---- identity ----

    @functools.cached_property
    def fingerprint(self) -> str:
        """64 hexadecimal digits, equal for two files exactly if they tokenize equally.

        Covers vocabulary, token types, merges or scores, word rule and prefix space; the chat
        template and the choice to add special tokens are not part of it.
        """
        digest = hashlib.sha256()

        def add(items: Sequence[str]) -> None:
            digest.update(struct.pack("<Q", len(items)))
            encoded = [item.encode("utf-8", "surrogateescape") for item in items]
            digest.update(np.array([len(item) for item in encoded], "<u4").tobytes())
            digest.update(b"".join(encoded))

        add([self._kind, self._pre])
        add(self._tokens)
        digest.update(np.array(self._types, "<i4").tobytes())
        add(self._merges)
        if self._scores is not None:
            digest.update(self._scores.astype("<f4").tobytes())
        digest.update(bytes([self._space_prefix]))
        return digest.hexdigest()

    # ---- building ----

    def _special_id(self, metadata: Mapping[str, Any], name: str) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if value is None or not 0 <= value < self.vocab_size:  # converters write -1 for "none"
            return None
        return int(value)

    @functools.cached_property
    def _without_special(self) -> tokenizers.Tokenizer:
        return self._build(parse_special=False)

    @functools.cached_property
    def _without_prefix(self) -> tokenizers.Tokenizer:
        """SentencePiece inside a text, where no token is looked for."""
        engine = tokenizers.Tokenizer(self._with_special.model)
        engine.normalizer = normalizers.Replace(" ", _SPACE)
        return engine

    def _build(self, *, parse_special: bool) -> tokenizers.Tokenizer:
        try:
            if self._rule:
                engine = self._byte_level_bpe()
            elif self._scores is not None:
                engine = self._sentencepiece_bpe()
            else:
                engine = self._wordpiece()
        except TokenizerError:
            raise
        except Exception as error:  # `tokenizers` raises plain Exception
            raise TokenizerError(
                f"the file's vocabulary and merges do not fit together: {error}"
            ) from error
        special = (_CONTROL, _UNKNOWN) if parse_special else ()
        engine.add_tokens(
            [
                tokenizers.AddedToken(text, normalized=False)
                for text, kind in zip(self._tokens, self._types, strict=True)
                if (kind == _USER_DEFINED or kind in special) and text
            ]
        )
        return engine

    def _byte_level_bpe(self) -> tokenizers.Tokenizer:
        assert self._rule is not None
        merges = []
        for merge in self._merges:
            space = merge.find(" ", 1)
            merges.append((merge[:space], merge[space + 1 :]))
        engine = tokenizers.Tokenizer(
            models.BPE(vocab=self._ids, merges=merges, ignore_merges=self._rule.whole_words)
        )
        engine.pre_tokenizer = pre_tokenizers.Sequence(
            [
                *(
                    pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
                    for pattern in self._rule.patterns
                ),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        return engine

    def _wordpiece(self) -> tokenizers.Tokenizer:
        """BERT's, uncased: without accents, cut at spaces, punctuation and ideographs."""
        if self._unk_id is None:
            raise TokenizerError("the file has no 'tokenizer.ggml.unknown_token_id'")
        vocabulary = {_wordpiece_spelling(text): i for i, text in enumerate(self._tokens)}
        engine = tokenizers.Tokenizer(
            models.WordPiece(vocabulary, unk_token=self._tokens[self._unk_id])
        )
        engine.normalizer = normalizers.BertNormalizer(lowercase=True)
        engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return engine

    def _sentencepiece_bpe(self) -> tokenizers.Tokenizer:
        """SentencePiece joins the two neighbours whose union scores best: merges, by score."""
        assert self._scores is not None
        mergeable = {
            text
            for text, kind in zip(self._tokens, self._types, strict=True)
            if kind in (_NORMAL, _UNUSED)
        }
        order = np.argsort(-self._scores, kind="stable").tolist()
        merges = []
        for i in order:
            text = self._tokens[i]
            if text in mergeable:
                merges += [
                    (text[:cut], text[cut:])
                    for cut in range(1, len(text))
                    if text[:cut] in mergeable and text[cut:] in mergeable
                ]
        unknown = self._unk_id
        engine = tokenizers.Tokenizer(
            models.BPE(
                vocab=self._ids,
                merges=merges,
                unk_token=None if unknown is None else self._tokens[unknown],
                fuse_unk=True,
                byte_fallback=True,
            )
        )
        replace = normalizers.Replace(" ", _SPACE)
        engine.normalizer = (
            normalizers.Sequence([normalizers.Prepend(_SPACE), replace])
            if self._space_prefix
            else replace
        )
        return engine


def _required(metadata: Mapping[str, Any], key: str) -> Any:
    if key not in metadata:
        raise TokenizerError(f"the file has no '{key}': its tokenizer is not complete")
    return metadata[key]


def _clean(text: str) -> str:
    """Joins surrogate pairs and replaces lone surrogates, which have no UTF-8, by U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _wordpiece_spelling(text: str) -> str:
    """BERT's own spelling of a token: ``word``, ``##continuation`` or ``[SPECIAL]``."""
    if text.startswith(_SPACE) and text != _SPACE:  # there is no empty word: it continues one
        return text[1:]
    return text if text.startswith("[") and text.endswith("]") else "##" + text


def _byte_level_piece(text: str, kind: int) -> bytes:
    if kind == _NORMAL and all(char in _BYTE_OF_CHAR for char in text):
        return bytes(_BYTE_OF_CHAR[char] for char in text)
    return text.encode("utf-8", "surrogateescape")


def _spm_piece(text: str, kind: int) -> bytes:
    if kind == _BYTE:
        return bytes([int(text[1:-1], 16)])  # "<0x0A>"
    if kind == _CONTROL:
        return text.encode("utf-8", "surrogateescape")
    return text.replace(_SPACE, " ").encode("utf-8", "surrogateescape")


# ---- chat templates: the dialect of Jinja that transformers defines ----------------------------


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}``: marks the assistant's words for training; renders its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.datetime.now().strftime(layout)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes characters for HTML.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@functools.cache
def _template_environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """Templates come with files from anywhere: they run in Jinja's sandbox."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment
