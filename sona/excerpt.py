"""Foreign text, made fit to be shown: nothing in it that a terminal or a page would obey."""

from __future__ import annotations

import unicodedata

KEPT = "\n\t\u200c\u200d"
"""Line breaks, tabs, and the joiners that Persian, Hindi and emojis are written with."""


def printable(text: str) -> str:
    """``text`` without control characters: an escape sequence in a prompt could rename a terminal's window or hide a
    line, and a mark of direction could turn one around. Those become ``�``, or nothing where they have no width.
    """
    if text.isprintable():
        return text
    return "".join(map(_printable, text.replace("\r\n", "\n")))


def excerpt(text: str, most: int = 80) -> str:
    """The beginning of ``text`` on one line, at most so many characters, with ``…`` where it goes on."""
    # Its beginning alone is looked at: a prompt may be a megabyte.
    line = printable(" ".join(text[: 4 * most + 4].split()))
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def _printable(character: str) -> str:
    if character.isprintable() or character in KEPT:
        return character
    kind = unicodedata.category(character)
    return " " if kind == "Zs" else "" if kind == "Cf" else "�"
