"""An answer's text, piece by piece, while its tokens come."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

HALF = "\ufffd"
"""What a tokenizer puts for a character of which bytes are missing."""


class TextPieces:
    """Put together, the pieces are the text of the answer.

    Args:
        decode: tokens to text.
        stop_ids: these end an answer and are no part of its text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop_ids: Container[int]) -> None:
        self._decode, self._stop_ids = decode, stop_ids
        self._ids: list[int] = []
        self._told = ""

    def add(self, token_ids: Sequence[int]) -> str:
        """What these tokens add to the text, which may be nothing: a character that is not whole is kept back.

        All tokens are decoded each time: decoded in parts, a text may lose spaces where the parts meet.
        """
        self._ids += [token for token in token_ids if token not in self._stop_ids]
        return self._upto(self._decode(self._ids).rstrip(HALF))

    def rest(self, text: str) -> str:
        """What is left of the whole text."""
        return self._upto(text)

    def _upto(self, text: str) -> str:
        if not text.startswith(self._told):  # a tokenizer that changes what it has written: wait for more
            return ""
        piece, self._told = text[len(self._told) :], text
        return piece
