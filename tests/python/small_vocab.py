"""Small vocabularies, trained on the spot, and GGUF files that carry them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from awkward_texts import awkward_texts

TEXTS = Path(__file__).parent / "data" / "texts"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


@dataclass
class Vocabulary:
    """What a GGUF file says of its tokenizer."""

    model: str
    tokens: list[str]
    types: list[int]
    pre: str | None = None
    merges: list[str] | None = None
    scores: list[float] | None = None
    bos_id: int | None = None
    eos_id: int | None = None
    unknown_id: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    """Further keys below ``tokenizer.``, such as ``chat_template`` and ``ggml.add_bos_token``."""

    def write_to(self, writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model(self.model)
        if self.pre is not None:
            writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        for add, value in (
            (writer.add_bos_token_id, self.bos_id),
            (writer.add_eos_token_id, self.eos_id),
            (writer.add_unk_token_id, self.unknown_id),
        ):
            if value is not None:
                add(value)
        for key, value in self.settings.items():
            add = {bool: writer.add_bool, str: writer.add_string}[type(value)]
            add(f"tokenizer.{key}", value)

    def write(self, path: Path) -> Path:
        """A file without tensors, whose other metadata satisfies readers that want a model."""
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_block_count(1)
        writer.add_context_length(128)
        writer.add_embedding_length(32)
        writer.add_feed_forward_length(64)
        writer.add_head_count(2)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_vocab_size(len(self.tokens))
        self.write_to(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return path


def corpus() -> list[str]:
    return [path.read_text("utf-8") for path in sorted(TEXTS.glob("*.txt"))] + awkward_texts()


def train_byte_level(
    rule: pre_tokenizers.PreTokenizer, pre: str, *, size: int = 1200, whole_words: bool = False
) -> tuple[Vocabulary, tokenizers.Tokenizer]:
    """A byte-level BPE vocabulary, and the trained tokenizer itself.

    Args:
        rule: cuts text into words and spells them in the byte alphabet.
        pre: the name that the file gives this rule.
    """
    engine = tokenizers.Tokenizer(models.BPE(ignore_merges=whole_words))
    engine.pre_tokenizer = rule
    engine.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(corpus(), trainer)
    engine.add_tokens(["<think>"])
    ids = engine.get_vocab()
    tokens = sorted(ids, key=ids.__getitem__)
    types = [NORMAL] * len(tokens)
    for special in specials:
        types[ids[special]] = CONTROL
    types[ids["<think>"]] = USER_DEFINED
    merges = [" ".join(pair) for pair in json.loads(engine.to_str())["model"]["merges"]]
    vocabulary = Vocabulary(
        "gpt2",
        tokens,
        types,
        pre=pre,
        merges=merges,
        bos_id=ids["<|im_start|>"],
        eos_id=ids["<|im_end|>"],
    )
    return vocabulary, engine
