"""A model of random weights that is small and has a long context, and text for prompts.

What lies between a client and the model does not depend on the model, so the smaller it is, the
less of a measurement is spent on computing.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import gguf
import numpy as np

from .. import models

CONTEXT = 40960
VOCABULARY = 8192
_LAYERS, _HIDDEN, _HEADS, _KV_HEADS, _FEED_FORWARD = 2, 64, 1, 1, 128
FILE_NAME = "synthetic-2x64-40k.gguf"


def model_file() -> Path:
    """The model's file, written where models are kept if it is not there."""
    path = models.directory() / FILE_NAME
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        _write(unfinished)
        unfinished.replace(path)
    return path


def _write(path: Path) -> None:
    rng = np.random.default_rng(0)
    head = _HIDDEN // _HEADS
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_name("synthetic, for measuring what is not the model")
    writer.add_block_count(_LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(_HIDDEN)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCABULARY)
    letters = [chr(c) if 33 <= c <= 126 else chr(256 + c) for c in range(256)]
    # Words of letters only: each token is text by itself, and both servers send it at once.
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*letters, *(f"w{i}" for i in range(256, VOCABULARY))])
    writer.add_token_types([gguf.TokenType.NORMAL] * VOCABULARY)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(VOCABULARY - 1)
    writer.add_bos_token_id(VOCABULARY - 1)
    writer.add_add_bos_token(False)

    def matrix(name: str, rows: int, columns: int) -> None:
        weights = (rng.standard_normal((rows, columns)) * 0.05).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quantize(weights, kind), raw_dtype=kind)

    def ones(name: str, n: int) -> None:
        writer.add_tensor(name, np.ones(n, np.float32))

    matrix("token_embd.weight", VOCABULARY, _HIDDEN)
    ones("output_norm.weight", _HIDDEN)
    for layer in range(_LAYERS):
        block = f"blk.{layer}."
        ones(block + "attn_norm.weight", _HIDDEN)
        ones(block + "ffn_norm.weight", _HIDDEN)
        ones(block + "attn_q_norm.weight", head)
        ones(block + "attn_k_norm.weight", head)
        matrix(block + "attn_q.weight", _HIDDEN, _HIDDEN)
        matrix(block + "attn_k.weight", _KV_HEADS * head, _HIDDEN)
        matrix(block + "attn_v.weight", _KV_HEADS * head, _HIDDEN)
        matrix(block + "attn_output.weight", _HIDDEN, _HIDDEN)
        matrix(block + "ffn_gate.weight", _FEED_FORWARD, _HIDDEN)
        matrix(block + "ffn_up.weight", _FEED_FORWARD, _HIDDEN)
        matrix(block + "ffn_down.weight", _HIDDEN, _FEED_FORWARD)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def text(n_bytes: int) -> str:
    """Python's own library as text: every machine that runs this has it."""
    parts: list[str] = []
    size = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py")):
        parts.append(path.read_text(encoding="utf-8", errors="replace"))
        size += len(parts[-1])
        if size >= n_bytes:
            break
    return "".join(parts)[:n_bytes]
