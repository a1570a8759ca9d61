"""Small decoders with random weights as GGUF files, in every architecture, variant and type."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type

from small_vocab import CONTROL, NORMAL, Vocabulary

_ENDS = ["<|endoftext|>", "<|im_end|>"]
_PRINTABLE = [chr(c) for c in [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x144)]]

# Where the K-quants, which the gguf package cannot write, keep their float16 scale (and minimum).
_SCALE_AT = {
    Type.Q2_K: (80, 82),
    Type.Q3_K: (108, None),
    Type.Q4_K: (0, 2),
    Type.Q5_K: (0, 2),
    Type.Q6_K: (208, None),
}


@dataclass(frozen=True)
class Shape:
    architecture: str = "llama"
    n_embd: int = 64
    n_head: int = 4
    n_head_kv: int = 4
    head_dim: int = 16
    n_ff: int = 100
    n_vocab: int = 250
    """At most INFER.SCORE's largest TOP, so that a score tells all logits."""
    n_layer: int = 2
    rope_base: float = 10000.0
    tied: bool = True
    bias: bool = False
    """Of Q, K and V."""
    qk_norm: bool = False
    rope_freqs: bool = False


def write_model(path: Path, shape: Shape, kind: Type, seed: int = 0) -> Path:
    """All matrices are of type ``kind``; norms and biases are float32, as in any GGUF file."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, shape.architecture)
    writer.add_block_count(shape.n_layer)
    writer.add_context_length(512)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.n_vocab)
    tokens = (_ENDS + _PRINTABLE)[: shape.n_vocab]
    types = [CONTROL] * len(_ENDS) + [NORMAL] * (len(tokens) - len(_ENDS))
    Vocabulary("gpt2", tokens, types, pre="gpt-2", eos_id=0).write_to(writer)

    def matrix(name: str, n_out: int, n_in: int, gain: float = 1.0) -> None:
        std = gain / np.sqrt(n_in)
        writer.add_tensor(name, random_matrix(rng, n_out, n_in, std, kind), raw_dtype=kind)

    def vector(name: str, n: int, mean: float, std: float) -> None:
        writer.add_tensor(name, rng.normal(mean, std, n).astype(np.float32))

    n_q, n_kv = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
    # As in a trained model, each layer adds less to the residual stream than is there already,
    # and the logits have a standard deviation of about 2.5.
    unit = np.sqrt(shape.n_embd)
    matrix("token_embd.weight", shape.n_vocab, shape.n_embd, gain=unit)
    vector("output_norm.weight", shape.n_embd, 2.5 / unit, 0.5 / unit)
    if not shape.tied:
        matrix("output.weight", shape.n_vocab, shape.n_embd, gain=unit)
    if shape.rope_freqs:
        divisors = np.linspace(1.0, 8.0, shape.head_dim // 2, dtype=np.float32)
        writer.add_tensor("rope_freqs.weight", divisors)
    for i in range(shape.n_layer):
        layer = f"blk.{i}"
        vector(f"{layer}.attn_norm.weight", shape.n_embd, 1.0, 0.2)
        vector(f"{layer}.ffn_norm.weight", shape.n_embd, 1.0, 0.2)
        for name, rows in (("q", n_q), ("k", n_kv), ("v", n_kv)):
            matrix(f"{layer}.attn_{name}.weight", rows, shape.n_embd)
            if shape.bias:
                vector(f"{layer}.attn_{name}.bias", rows, 0.0, 0.5)
        if shape.qk_norm:
            vector(f"{layer}.attn_q_norm.weight", shape.head_dim, 1.0, 0.3)
            vector(f"{layer}.attn_k_norm.weight", shape.head_dim, 1.0, 0.3)
        matrix(f"{layer}.attn_output.weight", shape.n_embd, n_q)
        matrix(f"{layer}.ffn_gate.weight", shape.n_ff, shape.n_embd)
        matrix(f"{layer}.ffn_up.weight", shape.n_ff, shape.n_embd)
        matrix(f"{layer}.ffn_down.weight", shape.n_embd, shape.n_ff)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_matrix(
    rng: np.random.Generator, n_out: int, n_in: int, std: float, kind: Type
) -> npt.NDArray[np.generic]:
    """A matrix as a file holds it: [n_out, n_in] for float types, else [n_out, bytes of a row]."""
    if kind in _SCALE_AT:
        return _random_k_quants(rng, n_out, n_in, std, kind)
    values = rng.normal(0.0, std, (n_out, n_in)).astype(np.float32)
    if kind == Type.F32:
        return values
    if kind == Type.F16:
        return values.astype(np.float16)
    return gguf.quantize(values, kind)


def _random_k_quants(
    rng: np.random.Generator, n_out: int, n_in: int, std: float, kind: Type
) -> npt.NDArray[np.uint8]:
    """Random blocks: every bit of the integers and of their scales and minimums is used.

    The float16 scale, and that of the minimums, are then chosen so that the weights that the
    blocks mean are centred and spread as asked.
    """
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (n_out * n_in // block, block_bytes), dtype=np.uint8)
    scale_at, minimum_at = _SCALE_AT[kind]

    def put(at: int | None, value: float) -> None:
        if at is not None:
            blocks[:, at : at + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)

    put(scale_at, 1.0)
    put(minimum_at, 0.0)
    scaled = gguf.dequantize(blocks, kind)
    minimum = 0.0
    if minimum_at is not None:
        put(scale_at, 0.0)
        put(minimum_at, 1.0)
        minimum = scaled.mean() / -gguf.dequantize(blocks, kind).mean()
        put(scale_at, 1.0)
        put(minimum_at, minimum)
        scaled = gguf.dequantize(blocks, kind)
    factor = std / scaled.std()
    put(scale_at, factor)
    put(minimum_at, factor * minimum)
    return blocks.reshape(n_out, -1)
