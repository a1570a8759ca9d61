#!/usr/bin/env python3
"""Writes text_reference.bin: byte strings, mostly broken UTF-8, and Python's reading of them.

test_text.c compares with bytes.decode("utf-8", "replace"). Layout, little-endian, until the end of
the file:
    uint32 n, n bytes; uint32 m, m bytes of the decoded text in UTF-8
"""

import itertools
import pathlib
import random
import struct

rng = random.Random(20240229)
# the first and last bytes of every range that the encoding tells apart
EDGES = [
    0x00,
    0x41,
    0x7F,
    0x80,
    0x8F,
    0x90,
    0x9F,
    0xA0,
    0xBF,
    0xC0,
    0xC1,
    0xC2,
    0xDF,
    0xE0,
    0xE1,
    0xEC,
    0xED,
    0xEE,
    0xEF,
    0xF0,
    0xF1,
    0xF3,
    0xF4,
    0xF5,
    0xFF,
]
LEADS = [b for b in EDGES if b >= 0xC0]
CONTINUATIONS = [b for b in EDGES if 0x80 <= b <= 0xBF]

strings = [bytes(p) for p in itertools.product(EDGES, repeat=2)]
strings += [
    bytes([a, b, 0xBF, c]) for a in LEADS for b in CONTINUATIONS for c in (0x80, 0xC2, 0x41)
]
strings += [bytes(rng.choices(EDGES, k=rng.randrange(1, 24))) for _ in range(200)]
whole = "aé€😊\ud7ff\ue000\U0010ffff".encode()
strings += [whole[i:j] for i in range(len(whole)) for j in range(i + 1, len(whole) + 1)]
out = bytearray()
for s in strings:
    text = s.decode("utf-8", "replace").encode()
    out += struct.pack("<I", len(s)) + s + struct.pack("<I", len(text)) + text
pathlib.Path(__file__).with_name("text_reference.bin").write_bytes(bytes(out))
