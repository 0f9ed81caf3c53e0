"""Names that were meant to be other ones."""

from __future__ import annotations

from collections.abc import Iterable

SHORTEST = 5
"""Of shorter words too many are one letter from another."""


def meant(word: str, names: Iterable[str]) -> str | None:
    """Which of ``names`` was meant by ``word``, where it is none of them: one that differs in upper and lower case
    alone, or by one letter left out, put in, replaced, or swapped with the next (Damerau 1964: four in five
    misspellings are one of these). A plural is a word of its own.
    """
    if word in (known := tuple(names)):
        return None
    written = word.strip().casefold()
    return next((name for name in known if written == name or _one_slip(written, name)), None)


def _one_slip(written: str, name: str) -> bool:
    if min(len(written), len(name)) < SHORTEST or written in (name + "s", name.removesuffix("s")):
        return False
    short, long = sorted((written, name), key=len)
    if len(long) == len(short) + 1:
        return any(long[:place] + long[place + 1 :] == short for place in range(len(long)))
    if len(long) != len(short):
        return False
    wrong = [place for place in range(len(long)) if long[place] != short[place]]
    if len(wrong) == 1:
        return True
    if len(wrong) != 2 or wrong[1] != wrong[0] + 1:
        return False
    first, second = wrong
    return (short[first], short[second]) == (long[second], long[first])
