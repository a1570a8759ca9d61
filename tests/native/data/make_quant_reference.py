#!/usr/bin/env python3
"""Writes quant_reference.bin: random blocks of each quantized type and their values.

The values come from the `gguf` package's own dequantization, so that test_quant.c compares with an
implementation that is not ours. Run again only when a type is added:

    pip install numpy gguf && python make_quant_reference.py

Layout, little-endian, one record per type until the end of the file:
    uint32 type, uint32 n; row bytes of n elements; float32 value[n]
"""

import pathlib

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Q
from gguf.quants import dequantize

# where a block keeps its half-precision fields: any other byte may hold anything
HALVES = {
    Q.F16: [0],
    Q.BF16: [],
    Q.Q4_0: [0],
    Q.Q4_1: [0, 2],
    Q.Q5_0: [0],
    Q.Q5_1: [0, 2],
    Q.Q8_0: [0],
    Q.Q2_K: [80, 82],
    Q.Q3_K: [108],
    Q.Q4_K: [0, 2],
    Q.Q5_K: [0, 2],
    Q.Q6_K: [208],
}
MIN_ELEMENTS = 1024

rng = np.random.default_rng(20240229)
out = bytearray()
for qtype, fields in HALVES.items():
    block, block_bytes = GGML_QUANT_SIZES[qtype]
    n_blocks = max(MIN_ELEMENTS // block, 4)
    blocks = rng.integers(0, 256, (n_blocks, block_bytes), dtype=np.uint8)
    for at in fields:
        half = blocks[:, at : at + 2].copy().view(np.uint16)
        # NaN and infinity have no value to compare: clear one exponent bit there
        half = np.where((half & 0x7C00) == 0x7C00, half & 0xBFFF, half).astype(np.uint16)
        half[0], half[1] = 0x8000, 0x0001  # -0 and the smallest subnormal
        blocks[:, at : at + 2] = half.view(np.uint8)
    if qtype == Q.BF16:
        word = blocks.view(np.uint16)
        blocks = (
            np.where((word & 0x7F80) == 0x7F80, word & 0xBFFF, word)
            .astype(np.uint16)
            .view(np.uint8)
        )
    value = dequantize(blocks.reshape(1, -1), qtype).astype(np.float32).reshape(-1)
    assert np.isfinite(value).all(), qtype
    out += np.array([qtype, value.size], np.uint32).tobytes() + blocks.tobytes() + value.tobytes()
pathlib.Path(__file__).with_name("quant_reference.bin").write_bytes(bytes(out))
