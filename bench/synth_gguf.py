#!/usr/bin/env python3
"""Write a GGUF with a real model's exact shape and random weights.

Speed and memory depend on shapes and quantization types, not on values, so a
file made here times like the real model where the real weights can't be had.
The text that it generates is noise: use it for speed, memory and numeric
comparison against another engine, never for quality.

    pip install numpy gguf
    python synth_gguf.py qwen3-4b q4_k_m OUT.gguf     # 2.5 GB, about a minute

Shapes: see SHAPES. Quantizations: q4_k_m (Q4_K with Q6_K where llama.cpp's
recipe puts it), q8_0, q4_0, q4_1 (with a Q8_0 embedding, as in
SmolLM2's published file), f16.
"""

import argparse
import sys

import numpy as np
from gguf import GGMLQuantizationType as Q
from gguf import GGUFWriter, TokenType

# layers, hidden, heads, kv heads, head dim, feed forward, vocabulary, rope base, tied output
SHAPES = {
    "smollm2-135m": (30, 576, 9, 3, 64, 1536, 49152, 1e5, True),
    "qwen3-4b": (36, 2560, 32, 8, 128, 9728, 151936, 1e6, True),
    "qwen3-1.7b": (28, 2048, 16, 8, 128, 6144, 151936, 1e6, True),
    "qwen3-0.6b": (28, 1024, 16, 8, 128, 3072, 151936, 1e6, True),
    "qwen3-8b": (36, 4096, 32, 8, 128, 12288, 151936, 1e6, False),
    "qwen3-tiny": (4, 512, 8, 4, 64, 1536, 2048, 1e6, True),
}
rng = np.random.default_rng(0)


def blocks_q4_k(n, std):
    """[n/256, 144] bytes: w = d*32*q - dmin*32, q uniform in 0..15, centred."""
    b = rng.integers(0, 256, (n // 256, 144), dtype=np.uint8)
    d = np.float16(std / (32 * 4.61))
    b[:, 0:2] = np.frombuffer(d.tobytes(), np.uint8)
    b[:, 2:4] = np.frombuffer(np.float16(d * 7.5).tobytes(), np.uint8)
    # eight 6-bit (scale, min) pairs, every one 32: bytes 0-7 hold 0x20 with the two
    # high bits of pairs 4-7 (10b), bytes 8-11 the low nibbles (0)
    b[:, 4:12] = 0x20 | 0x80
    b[:, 12:16] = 0
    return b


def blocks_q6_k(n, std):
    """[n/256, 210] bytes: w = d*32*(q - 32), q uniform in 0..63."""
    b = rng.integers(0, 256, (n // 256, 210), dtype=np.uint8)
    b[:, 192:208] = 32
    b[:, 208:210] = np.frombuffer(np.float16(std / (32 * 18.5)).tobytes(), np.uint8)
    return b


def blocks_q8_0(n, std):
    b = rng.integers(0, 256, (n // 32, 34), dtype=np.uint8)
    b[:, 0:2] = np.frombuffer(np.float16(std / 73.9).tobytes(), np.uint8)
    return b


def blocks_q4_0(n, std):
    b = rng.integers(0, 256, (n // 32, 18), dtype=np.uint8)
    b[:, 0:2] = np.frombuffer(np.float16(std / 4.61).tobytes(), np.uint8)
    return b


def blocks_q4_1(n, std):
    """[n/32, 20] bytes: w = d*q + m, q uniform in 0..15, centred."""
    b = rng.integers(0, 256, (n // 32, 20), dtype=np.uint8)
    d = np.float16(std / 4.61)
    b[:, 0:2] = np.frombuffer(d.tobytes(), np.uint8)
    b[:, 2:4] = np.frombuffer(np.float16(-7.5 * d).tobytes(), np.uint8)
    return b


BLOCKS = {
    Q.Q4_K: blocks_q4_k,
    Q.Q6_K: blocks_q6_k,
    Q.Q8_0: blocks_q8_0,
    Q.Q4_0: blocks_q4_0,
    Q.Q4_1: blocks_q4_1,
}


def add(writer, name, rows, cols, qtype, std=0.02):
    if qtype in (Q.F32, Q.F16):
        a = rng.standard_normal((rows, cols), dtype=np.float32) * std
        writer.add_tensor(name, a.astype(np.float16 if qtype == Q.F16 else np.float32))
        return
    raw = BLOCKS[qtype](rows * cols, std).reshape(rows, -1)
    writer.add_tensor(name, raw, raw_dtype=qtype)


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("shape", choices=SHAPES)
    p.add_argument("quant", choices=["q4_k_m", "q8_0", "q4_0", "q4_1", "f16"])
    p.add_argument("out")
    a = p.parse_args()
    if a.quant == "q4_k_m" and SHAPES[a.shape][1] % 256:
        p.error(f"q4_k_m has blocks of 256 columns, {a.shape} has {SHAPES[a.shape][1]}")
    layers, hidden, heads, kv, hd, ff, vocab, base, tied = SHAPES[a.shape]

    llama = a.shape.startswith("smollm")

    w = GGUFWriter(a.out, "llama" if llama else "qwen3", use_temp_file=False)
    w.add_name(f"synthetic {a.shape} {a.quant}")
    w.add_block_count(layers)
    w.add_context_length(40960)
    w.add_embedding_length(hidden)
    w.add_feed_forward_length(ff)
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_key_length(hd)
    w.add_value_length(hd)
    w.add_rope_freq_base(base)
    w.add_layer_norm_rms_eps(1e-5 if llama else 1e-6)
    if llama:
        w.add_rope_dimension_count(hd)
    w.add_vocab_size(vocab)
    # a byte-level vocabulary: 256 bytes, then filler
    byte = [chr(c) if 33 <= c <= 126 else chr(256 + c) for c in range(256)]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm" if llama else "qwen2")
    w.add_token_list(byte + [f"<filler{i}>" for i in range(256, vocab)])
    w.add_token_types([TokenType.NORMAL] * vocab)
    w.add_token_merges(["a b"])
    w.add_eos_token_id(vocab - 1)
    w.add_bos_token_id(vocab - 1)
    w.add_add_bos_token(False)

    main_q = Q.Q4_K if a.quant == "q4_k_m" else Q[a.quant.upper()]
    big_q = Q.Q6_K if a.quant == "q4_k_m" else main_q
    embedding_q = Q.Q8_0 if a.quant == "q4_1" else big_q

    def down_q(i):  # the layers that llama.cpp's Q4_K_M keeps at six bits
        more = i < layers // 8 or i >= 7 * layers // 8 or (i - layers // 8) % 3 == 2
        return big_q if more else main_q

    add(w, "token_embd.weight", vocab, hidden, embedding_q)
    if not tied:
        add(w, "output.weight", vocab, hidden, embedding_q)
    w.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    for i in range(layers):
        b = f"blk.{i}."
        w.add_tensor(b + "attn_norm.weight", np.ones(hidden, np.float32))
        w.add_tensor(b + "ffn_norm.weight", np.ones(hidden, np.float32))
        if not llama:
            w.add_tensor(b + "attn_q_norm.weight", np.ones(hd, np.float32))
            w.add_tensor(b + "attn_k_norm.weight", np.ones(hd, np.float32))
        add(w, b + "attn_q.weight", heads * hd, hidden, main_q)
        add(w, b + "attn_k.weight", kv * hd, hidden, main_q)
        add(w, b + "attn_v.weight", kv * hd, hidden, down_q(i))
        add(w, b + "attn_output.weight", hidden, heads * hd, main_q)
        add(w, b + "ffn_gate.weight", ff, hidden, main_q)
        add(w, b + "ffn_up.weight", ff, hidden, main_q)
        add(w, b + "ffn_down.weight", hidden, ff, down_q(i))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file(progress=sys.stderr.isatty())
    w.close()


if __name__ == "__main__":
    main()
