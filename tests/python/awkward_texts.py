# ruff: noqa: RUF001
"""Strings that tokenizers get wrong: for comparing two of them."""

from __future__ import annotations

import random

_CURATED = [
    "",
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\r",
    "\r\n",
    "\n\n\n",
    "\r\n\r\n",
    " \n",
    "\n ",
    " \t \n\t\n  \r\n x",
    "a",
    " a",
    "a ",
    "  a  b   c    d     e",
    "a\tb\t\tc\t\t\td",
    "trailing spaces   ",
    "   leading spaces",
    "line\r\nline\rline\n",
    "    if (x) {\n        return;\n    }\n",
    "\tif x:\n\t\treturn\n\n\n\telse:\n",
    "0",
    "12",
    "123",
    "1234",
    "1234567890",
    "3.14159",
    "1,000,000.50",
    "0x1F 0b1010 1e-5 1_000",
    " 42",
    "  42",
    "a1b2c3",
    "v1.2.3-rc.4",
    "2024-02-29T23:59:60Z",
    "٣٤٥ 三四五 Ⅷ ½ ²³ ①",
    "don't I'll we've they're he'd it's I'm",
    "DON'T I'LL WE'VE THEY'RE HE'D IT'S I'M",
    "'s 't 're 've 'm 'll 'd",
    "rock 'n' roll, o'clock, 'tis, dogs'",
    "it\u2019s \u2018quoted\u2019 \u201cdouble\u201d",
    "!@#$%^&*()_+-=[]{}|;':\",./<>?`~",
    "!!! ??? ... --- ___ *** /// \\\\\\",
    " != == <= >= && || -> => :: ++ --",
    "x=y; a+=b; c<<=2; d->e; f::g<h>();",
    "foo(bar)[baz]{qux}",
    "fn add(a: i32, b: i32) -> i32 {",
    "#include <stdio.h>\nint main(void) { return 0; }\n",
    "def f(x):\n    return x**2  # square\n",
    "SELECT * FROM t WHERE a='b' AND c<>'d';",
    "https://example.org/a/b?c=d&e=f#g",
    "user.name+tag@example.co.uk",
    "C:\\Users\\name\\file.txt",
    '<html><body class="x">&amp;</body></html>',
    "<s> </s> <unk> <0x0A> <|x|>",
    "camelCaseWord snake_case_word SCREAMING_CASE kebab-case",
    "Straße Größe Äpfel über naïve café",
    "cafe\u0301 A\u030a n\u0303 e\u0301\u0323",  # combining marks
    "\u00e9 \u0065\u0301",  # composed and decomposed
    "ŁÓDŹ zażółć gęślą jaźń",
    "Привет, мир! Ёлка объём",
    "Γειά σου Κόσμε",
    "שלום עולם",
    "مرحبا بالعالم ١٢٣",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "你好,世界!",
    "你好，世界！",
    "こんにちは世界、カタカナ",
    "안녕하세요 세계",
    "Xin chào thế giới",
    "mixed中文and日本語with한국어text",
    "😀",
    "😀😃😄",
    " 😀 😃",
    "a😀b",
    "👩\u200d🚀 👨\u200d👩\u200d👧\u200d👦",  # joined by ZWJ
    "👍🏽 👍🏿",  # skin tones
    "🇩🇪🇫🇷",  # regional indicators
    "❤️ ☎️ 1️⃣",  # variation selectors
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝒞𝑜𝒹𝑒",
    "ﬁ ﬂ ﬀ ㎏ ℡",  # compatibility characters
    "a\u00a0b\u2003c\u3000d\u200be",  # spaces of other kinds
    "\u2028\u2029\u0085",
    "\ufeffbyte order mark",
    "right \u202eto left\u202c",
    "zero\u200bwidth\u200djoiner\u2060",
    "\ufffd replaced",
    "\u2581 lower one eighth block \u2581\u2581x",
    "ſ long s, 'ſ, K kelvin",
    "\U0010ffff \ue000 private",
    "x" * 300,
    "ab" * 200,
    " " * 100,
    "\n" * 100,
    "1" * 100,
    "=" * 80,
    "- " * 50,
    "😀" * 20,
    "The quick brown fox jumps over the lazy dog. " * 5,
]

_PIECES = [
    *" \t\n\r.,;:!?'\"()[]{}<>/\\|-_=+*&^%$#@~`",
    *"  ",
    "\r\n",
    "    ",
    "the",
    "The",
    " word",
    "ing",
    "é",
    "e\u0301",
    "ß",
    "я",
    "Ж",
    "ñ",
    "中",
    "文",
    "の",
    "한",
    "ع",
    "ह",
    "ि",
    "ก",
    "😀",
    "\u200d",
    "🚀",
    "\ufe0f",
    "\u00a0",
    "\u3000",
    "\u2019",
    "'s",
    "'LL",
    "n't",
    *"0123456789",
    "½",
    "x",
    "Q",
    "foo_bar",
    "return",
]


def awkward_texts(n_random: int = 250, seed: int = 1) -> list[str]:
    """The curated ones, and pieces of them thrown together."""
    rng = random.Random(seed)
    mixed = ["".join(rng.choices(_PIECES, k=rng.randint(2, 24))) for _ in range(n_random)]
    return _CURATED + mixed


def with_special_tokens(specials: list[str], n: int = 60, seed: int = 2) -> list[str]:
    """Texts in which special tokens stand at the ends, in the middle, doubled and broken."""
    rng = random.Random(seed)
    texts = []
    for special in specials:
        texts += [
            special,
            special * 2,
            f" {special}",
            f"{special} ",
            f"a{special}b",
            f"a {special} b",
            f"\n{special}\n\n{special}x",
            special[:-1],
            special[1:],
            special.upper(),
        ]
    pieces = [*_PIECES, *specials * 4]
    texts += ["".join(rng.choices(pieces, k=rng.randint(2, 16))) for _ in range(n)]
    return texts
