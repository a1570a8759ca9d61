"""Small BERT models with random weights and a trained vocabulary, as transformers keeps them."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers, trainers
from transformers import BertConfig, BertModel

from small_vocab import corpus

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def train_wordpiece(size: int = 800) -> list[str]:
    """A vocabulary of BERT's kind, in the order of ids."""
    engine = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    engine.normalizer = normalizers.BertNormalizer(lowercase=True)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=SPECIALS, show_progress=False
    )
    engine.train_from_iterator(corpus(), trainer)
    ids = engine.get_vocab()
    return sorted(ids, key=ids.__getitem__)


def write_bert(
    folder: Path,
    *,
    n_embd: int = 64,
    n_head: int = 4,
    n_layer: int = 2,
    n_ff: int = 128,
    pooling: str = "mean_tokens",
    seed: int = 0,
) -> BertModel:
    """Writes the folder, and returns the model."""
    words = train_wordpiece()
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=n_embd,
        num_hidden_layers=n_layer,
        num_attention_heads=n_head,
        intermediate_size=n_ff,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    model = BertModel(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "LayerNorm" in name:
            parameter.data += torch.randn_like(parameter) * 0.2
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words), "utf-8")
    options = {"do_lower_case": True, "model_max_length": 128, "tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": n_embd, f"pooling_mode_{pooling}": True})
    )
    return model
