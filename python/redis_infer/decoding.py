"""What text the bytes of a file are, in whichever encoding."""

from __future__ import annotations

import codecs

# Bytes that text in any of the 8-bit encodings does not have.
_NOT_TEXT = bytes(set(range(32)) - set(b"\t\n\v\f\r\b\x1b")) + b"\x7f"
_MAX_NOT_TEXT_SHARE = 0.02

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class NotTextError(ValueError):
    """The bytes are no text."""


def text_of(data: bytes) -> str:
    r"""The text of a file's bytes, its lines ended by ``\n``.

    UTF-8, UTF-16 and UTF-32 with a byte order mark, else UTF-8, else Latin-1 (as Windows
    extends it), in which every byte means something.

    Raises:
        NotTextError: it is not text.
    """
    return _decode(data).replace("\r\n", "\n").replace("\r", "\n")


def _decode(data: bytes) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            try:
                return data[len(mark) :].decode(encoding)
            except UnicodeDecodeError:
                raise NotTextError("binary") from None
    if b"\0" in data:
        raise NotTextError("binary")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    odd = len(data) - len(data.translate(None, delete=_NOT_TEXT))
    if odd > _MAX_NOT_TEXT_SHARE * len(data):
        raise NotTextError("binary")
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return data.decode("latin-1")
