"""Foreign text, made fit to be shown."""

from hypothesis import given
from hypothesis import strategies as st

from sona.excerpt import excerpt, printable


def test_what_a_terminal_obeys_is_taken_out() -> None:
    assert printable("a\x1b[2Jb\x07\r\nc\td\x9be") == "a�[2Jb�\nc\td�e"
    assert printable("safe\u202etxt.exe\u2066") == "safetxt.exe"  # marks of direction
    assert printable("no\u00a0break") == "no break"


def test_what_people_write_is_left_alone() -> None:
    for text in ("naïve café — 你好", "می\u200cخواهم", "👩\u200d🔬", "two\nlines"):
        assert printable(text) == text


def test_an_excerpt_says_that_it_goes_on() -> None:
    assert excerpt("  one\n two ", 7) == "one two"
    assert excerpt("one two three", 8) == "one two…"
    assert excerpt("a" * 1_000_000, 5) == "aaaa…"


@given(st.text(), st.integers(1, 50))
def test_an_excerpt_is_one_short_line(text: str, most: int) -> None:
    line = excerpt(text, most)
    assert len(line) <= most
    assert not set("\n\r\x1b\u2028") & set(line)
