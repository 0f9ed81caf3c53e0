"""What lessons turn out to be worth: each trajectory once, by its latest quality, against what is usual for its
pattern.
"""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from sona.bank.pattern import Member
from sona.bank.trials import REMEMBERED, STEPS, Trial, Usual, is_useless, trials_of, tried
from sona.patterns import Lesson
from tests.bank.lesson_records import lesson

LESSON = lesson("l1-0")


def member(name: str, quality: float | None, recalled: tuple[str, ...] = ("l1-0",)) -> Member:
    return Member(name, np.ones(2, np.float32), quality, "q", "a", recalled=recalled)


def said(quality: float | None, usual: float, rated: int = 10**9) -> list[Trial]:
    return trials_of([member("t", quality)], ["p1"], lambda name: Usual(usual, rated), {"l1-0"})


def test_a_trial_says_by_how_much_it_went_better_than_usual() -> None:
    for quality, usual in ((0.8, 0.8), (0.4, 0.2), (0.1, 0.7), (1.0, 0.0), (0.0, 1.0)):
        (trial,) = said(quality, usual)
        assert trial.effect == pytest.approx(quality - usual, abs=0.5 / STEPS)
        assert trial.helped == (quality >= usual)
    assert said(None, 0.2) == []


def test_a_mean_s_rounding_makes_no_harm() -> None:
    (trial,) = said(0.7, 0.7000000000000002)  # as a mean of 0.7s may come out
    assert (trial.effect, trial.helped) == (0.0, True)


def test_noise_is_the_most_that_a_quality_of_this_mean_varies() -> None:
    assert [said(1.0, usual)[0].noise for usual in (0.5, 0.8, 0.99)] == pytest.approx([0.25, 0.16, 0.05])


def test_trials_that_share_what_was_usual_share_its_doubt() -> None:
    members = [member(f"t{n}", 1.0, ("l1-0", "l1-1") if n == 0 else ("l1-0",)) for n in range(4)]
    ids = ["p1", "p1", "p1", "p2"]
    trials = trials_of(members, ids, {"p1": Usual(0.5, 12), "p2": Usual(0.5, 4)}.__getitem__, {"l1-0", "l1-1"})
    of = {(trial.lesson, trial.trajectory): trial.noise for trial in trials}
    assert [of["l1-0", f"t{n}"] for n in range(4)] == pytest.approx([0.25 * 1.25] * 4)
    assert of["l1-1", "t0"] == pytest.approx(0.25 * 13 / 12)


def test_only_lessons_count_and_each_once() -> None:
    members = [member("t", 1.0, ("p1", "l1-0", "l1-0", "gone")), member("u", 1.0, ())]
    (trial,) = trials_of(members, ["p1", "p1"], lambda name: Usual(0.0, 1), {"l1-0", "l1-1"})
    assert (trial.lesson, trial.trajectory, trial.effect) == ("l1-0", "t", 1.0)


def after(*trials: tuple[str, float]) -> Lesson:
    made = LESSON
    for name, effect in trials:  # each in a cycle of its own
        made = tried(made, [Trial("l1-0", name, effect, 0.25)])
    return made


def counted(*trials: tuple[str, float]) -> tuple[int, int, float]:
    made = after(*trials)
    return made.helpful, made.harmful, round(made.gain, 9)


def test_a_later_word_takes_the_place_of_the_earlier_one() -> None:
    good, bad = 64 / STEPS, -32 / STEPS
    assert counted(("a", good), ("b", bad)) == (1, 1, round(32 / STEPS, 9))
    assert counted(("a", bad), ("a", bad)) == (0, 1, round(bad, 9))
    assert counted(("a", bad), ("b", good), ("a", good)) == (2, 0, round(128 / STEPS, 9))
    assert counted(("a", bad), ("a", good), ("a", bad)) == (0, 1, round(bad, 9))
    assert after(("a", bad), ("a", good)).noise == 0.25, "it is one trial"


effects = st.integers(-STEPS, STEPS).map(lambda step: step / STEPS)


@given(st.lists(st.tuples(st.integers(0, 30).map(str), effects), max_size=60))
def test_a_lesson_holds_the_sums_of_the_latest_words(trials: list[tuple[str, float]]) -> None:
    latest = dict(trials)
    made = after(*trials)
    assert made.helpful == sum(effect >= 0 for effect in latest.values())
    assert made.tried == len(latest)
    assert made.gain == pytest.approx(sum(latest.values()), abs=1e-9)
    assert made.noise == 0.25 * len(latest)


def test_what_is_remembered_has_a_bound_and_no_names() -> None:
    some = [Trial("l1-0", f"name-of-eve-{n}", 1.0 if n % 2 == 0 else -1.0, 0.25) for n in range(REMEMBERED + 100)]
    made = tried(LESSON, some)
    assert len(made.trials) == 8 * REMEMBERED
    assert b"eve" not in made.trials
    assert (made.helpful, made.harmful, made.gain) == (REMEMBERED // 2 + 50, REMEMBERED // 2 + 50, 0.0)
    newest = tried(made, [Trial("l1-0", f"name-of-eve-{REMEMBERED + 99}", 1.0, 0.25)])
    assert (newest.helpful, newest.harmful, newest.gain) == (made.helpful + 1, made.harmful - 1, 2.0)


def test_a_lesson_with_which_queries_go_worse_beyond_doubt_is_useless() -> None:
    assert not is_useless(LESSON)
    assert not is_useless(lesson("a", harmful=20, gain=-6.9, noise=4.0))
    assert is_useless(lesson("a", harmful=20, gain=-7.1, noise=4.0))
    assert not is_useless(lesson("a", harmful=20, gain=7.1, noise=4.0))
    assert not is_useless(lesson("a", harmful=1, gain=-1.0, noise=0.05)), "one trial proves nothing"


def share_dropped(usual: float, then: float, lives: int = 40, cycles: int = 20, of_each: int = 20) -> float:
    """Of lessons whose pattern went by ``usual`` and goes by ``then`` with them, of right or wrong answers."""
    rng = np.random.default_rng(0)
    dropped = 0
    for _ in range(lives):
        right, rated, one = float(rng.binomial(100, usual)), 100, LESSON
        for cycle in range(cycles):
            known = Usual((right + usual) / (rated + 1), rated + 1)
            went = rng.random(of_each) < then
            members = [member(f"{cycle}-{n}", float(good)) for n, good in enumerate(went)]
            one = tried(one, trials_of(members, ["p1"] * of_each, lambda name, known=known: known, {"l1-0"}))  # type: ignore[misc]
            right, rated = right + float(went.sum()), rated + of_each
            if is_useless(one):
                dropped += 1
                break
    return dropped / lives


@pytest.mark.parametrize(("usual", "then"), [(0.1, 0.4), (0.3, 0.45), (0.5, 0.5), (0.7, 0.7)])
def test_a_lesson_that_helps_stays_and_so_does_one_that_changes_nothing(usual: float, then: float) -> None:
    assert share_dropped(usual, then) <= (0.0 if then > usual else 0.05)


@pytest.mark.parametrize(("usual", "then"), [(0.95, 0.6), (0.95, 0.55)])
def test_a_lesson_that_harms_goes_however_well_its_pattern_still_does(usual: float, then: float) -> None:
    assert share_dropped(usual, then) == 1.0


def test_worth_is_the_least_that_a_lesson_is_likely_to_do() -> None:
    assert (LESSON.effect, LESSON.effect_interval, LESSON.worth) == (0.0, (-1.0, 1.0), 0.0)
    one = lesson("a", helpful=60, harmful=40, gain=20.0, noise=25.0)
    assert one.effect == pytest.approx(0.2)
    assert one.effect_interval == pytest.approx((0.2 - 0.0822, 0.2 + 0.0822), abs=1e-4)
    assert one.worth == one.effect_interval[0]
    assert lesson("a", harmful=1, gain=-1.0, noise=0.25).worth == -1.0
