"""What a query recalls, as text within a number of tokens."""

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from sona.bank.prompting import in_prompt, text_of, with_text
from sona.errors import InvalidInputError
from sona.patterns import Recall
from tests.bank.lesson_records import exemplar, lesson, pattern, verdict

FULL = Recall(
    pattern=pattern(
        count=40,
        mean=0.75,
        routes={"tool:guess": verdict(10, 0.1), "tool:lookup": verdict(30, 0.9), "model:small": verdict(1, 1.0)},
        lessons=(
            lesson("l1-0", title="Ask first", when="no number is given", text="Ask for the number"),
            lesson("l1-1", title="Guessing", advice="avoid", text="Dates are wrong!", helpful=5, harmful=1, gain=1.5),
        ),
        exemplars=(exemplar("a", 1.0, response="x" * 200), exemplar("b", 0.9), exemplar("c", 0.8), exemplar("d", 0.3)),
        failures=(exemplar("e", 0.0, response=""), exemplar("f", 0.1)),
    ),
    similarity=0.9,
)


def words(text: str) -> int:
    return len(text.split())


def test_a_pattern_s_text_says_what_is_known_of_it() -> None:
    assert text_of(FULL).splitlines() == [
        "Queries like this one: 40 rated, quality 0.75 (0.62 to 0.84).",
        "- Avoid: Guessing. When: always. Dates are wrong! With it queries went 0.25 better than usual, in 6 trials.",
        "- Do: Ask first. When: no number is given. Ask for the number.",
        "- Way tool:lookup: quality 0.90 (0.77 to 0.96), taken 30 times.",
        "- Way model:small: quality 1.00 (0.27 to 1.00), taken once.",
        "- Way tool:guess: quality 0.10 (0.02 to 0.35), taken 10 times.",
        f'- Example of quality 1.00: "question a" was answered "{"x" * 200}…"',
        '- Example of quality 0.90: "question b" was answered "answer b"',
        '- Example of quality 0.00: "question e" was not answered in words',
    ]


def test_the_best_and_the_worst_way_of_each_kind_are_told_however_often_others_were_taken() -> None:
    often = {f"tool:t{n}": verdict(100, 0.5) for n in range(8)} | {"model:big": verdict(500, 0.6)}
    routes = often | {"tool:best": verdict(24, 0.9), "tool:worst": verdict(20, 0.05)}
    told = [line.split(":")[1] for line in text_of(Recall(pattern=pattern(routes=routes), similarity=0.9)).splitlines()]
    ways = [line for line in told if line in {name.split(":")[1] for name in routes}]
    assert {"best", "worst", "big"} <= set(ways)
    assert len(ways) == 4


@pytest.mark.parametrize(
    ("counts", "gain", "told"),
    [
        ((0, 0), 0.0, "Ask."),
        ((1, 0), 0.3, "Ask. With it queries went 0.30 better than usual, in 1 trial."),
        ((1, 3), -1.0, "Ask. With it queries went 0.25 worse than usual, in 4 trials."),
        ((2, 2), -0.01, "Ask. With it queries went as usual, in 4 trials."),
    ],
)
def test_a_lesson_s_line_ends_with_what_came_of_it(counts: tuple[int, int], gain: float, told: str) -> None:
    one = lesson("l1-0", text="Ask", helpful=counts[0], harmful=counts[1], gain=gain)
    assert text_of(Recall(pattern=pattern(lessons=(one,)), similarity=0.9)).splitlines()[1].endswith(f"always. {told}")


def test_a_pattern_of_which_nothing_is_known_says_so() -> None:
    bare = Recall(pattern=pattern(count=0, mean=0.5, exemplars=(), failures=(), touched_cycle=1), similarity=0.1)
    assert text_of(bare) == "Queries like this one: none rated so far."
    assert in_prompt([bare], max_tokens=100, count_tokens=words).text == ""


def test_a_recall_gets_its_text_and_its_tokens() -> None:
    assert FULL.text == ""
    assert with_text(FULL).tokens is None
    assert with_text(FULL, words).tokens == words(with_text(FULL).text) > 50


def test_ids_are_those_of_the_pattern_and_its_lessons() -> None:
    assert FULL.ids == ("p1", "l1-0", "l1-1")


def test_the_nearest_comes_first_and_lines_are_whole() -> None:
    second = Recall(pattern=pattern("p2", lessons=(lesson("l2-0", text="short"),)), similarity=0.5)
    made = in_prompt([FULL, second], max_tokens=1000, count_tokens=words)
    assert made.text == f"{text_of(FULL)}\n{text_of(second)}"
    assert made.ids == ("p1", "l1-1", "l1-0", "p2", "l2-0")
    assert made.tokens == words(made.text)


def test_what_is_too_long_is_left_out_and_shorter_lines_follow() -> None:
    first, avoid = text_of(FULL).splitlines()[:2]
    made = in_prompt([FULL], max_tokens=words(first) + words(avoid) + 1, count_tokens=words)
    assert made.text == f"{first}\n{avoid}"
    assert made.ids == ("p1", "l1-1")
    long = Recall(pattern=pattern(lessons=(lesson("l1-0", text="so " * 90),)), similarity=0.5)
    made = in_prompt([long], max_tokens=40, count_tokens=words)
    assert made.ids == ("p1",)
    assert "question p1-good1" in made.text


def quarters(text: str) -> int:
    """Sums up to less than the whole."""
    return len(text) // 40


@given(st.integers(0, 120), st.integers(0, 3), st.sampled_from([words, quarters, len]))
def test_the_text_is_never_longer_than_it_may_be(max_tokens: int, recalls: int, count: Callable[[str], int]) -> None:
    made = in_prompt([FULL] * recalls, max_tokens=max_tokens, count_tokens=count)
    assert count(made.text) == made.tokens <= max_tokens
    lines = set(text_of(FULL).splitlines())
    assert set(made.text.splitlines()) <= lines
    assert bool(made.ids) == bool(made.text)


@pytest.mark.parametrize("wrong", [-1, 1.5, None, True, "9"])
def test_a_number_of_tokens_is_a_whole_number(wrong: object) -> None:
    with pytest.raises(InvalidInputError, match="max_tokens"):
        in_prompt([FULL], max_tokens=wrong, count_tokens=words)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [FULL, "text", [FULL, "text"], None, 5])
def test_what_is_no_list_of_recalls_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"recalls.*a (list of )?Recall is allowed"):
        in_prompt(wrong, max_tokens=100, count_tokens=words)


@pytest.mark.parametrize("wrong", [None, 5, "words"])
def test_tokens_are_counted_by_a_function(wrong: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"count_tokens: .*engine.count_tokens"):
        in_prompt([], max_tokens=100, count_tokens=wrong)
