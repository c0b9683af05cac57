"""Token pieces -> text, a piece at a time, without ever showing half a character.

A byte-level token may end in the middle of a Hangul syllable or an emoji. Bytes are held back until the character is
whole, so the joined stream equals the decoding of all bytes at once, however the bytes were cut into tokens. Bytes
that can be no part of UTF-8 text (a model may sample them) are left out in both, so U+FFFD never appears.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = sorted(set(range(256)) - set(_PRINTABLE))
BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(0x100 + i): byte for i, byte in enumerate(_HIDDEN)}
"""Byte-level BPE writes each byte as a visible character: itself where printable, else the next from U+0100."""


def byte_level(token: str) -> bytes:
    """The bytes of a byte-level vocabulary entry. An added token holding other characters stands for itself."""
    try:
        return bytes(BYTES[character] for character in token)
    except KeyError:
        return token.encode()


def sentence_piece(token: str) -> bytes:
    """The bytes of a SentencePiece vocabulary entry: U+2581 is a space, <0xEC> is a byte."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


class TextStream:
    """Bytes in, text out. Ends (`stopped`) where one of `stop` appears; the text before it was given, it never is."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stop = tuple(text for text in stop if text)
        self.stopped = False
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self._held = ""  # text that may be the beginning of a stop sequence

    def feed(self, data: bytes) -> str:
        """The text that is certain after `data`; may be empty."""
        return self._release(self._decoder.decode(data))

    def finish(self) -> str:
        """What was held back; half a character at the very end is dropped."""
        text = self._release(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self.stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self.stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
