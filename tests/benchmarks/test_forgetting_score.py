"""The figures of an accuracy matrix, and of alarms."""

import pytest

from benchmarks.forgetting.detection import Detection
from benchmarks.forgetting.score import AccuracyMatrix

BY_HAND = AccuracyMatrix(
    rows=(
        {"base": 0.8, "a": 0.0, "b": 0.1, "c": 0.0},
        {"base": 0.8, "a": 0.0, "b": 0.1, "c": 0.2},
        {"base": 0.6, "a": 0.9, "b": 0.2, "c": 0.0},
        {"base": 0.5, "a": 0.5, "b": 0.8, "c": 0.3},
        {"base": 0.4, "a": 0.3, "b": 0.7, "c": 1.0},
    ),
    segments=("base", "a", "b", "c"),
    judged=("a", "b", "c"),
)


def test_figures_are_those_reckoned_by_hand() -> None:
    assert BY_HAND.acc == pytest.approx((0.3 + 0.7 + 1.0) / 3)
    assert BY_HAND.la == pytest.approx((0.9 + 0.8 + 1.0) / 3)
    assert BY_HAND.bwt == pytest.approx(((0.3 - 0.9) + (0.7 - 0.8)) / 2)
    assert BY_HAND.fwt == pytest.approx(((0.2 - 0.1) + (0.3 - 0.0)) / 2)
    assert BY_HAND.base_kept == pytest.approx(0.4 / 0.8)


def test_picture_has_a_row_a_segment() -> None:
    assert BY_HAND.shares() == [[row[task] for task in ("base", "a", "b", "c")] for row in BY_HAND.rows[1:]]


def test_tasks_whose_answers_have_changed_do_not_count() -> None:
    late = AccuracyMatrix(BY_HAND.rows, BY_HAND.segments, ("b", "c"))
    assert late.acc == pytest.approx((0.7 + 1.0) / 2)
    assert late.bwt == pytest.approx(0.7 - 0.8)


def test_single_task_has_no_transfer() -> None:
    alone = AccuracyMatrix(BY_HAND.rows, BY_HAND.segments, ("c",))
    assert (alone.bwt, alone.fwt) == (0.0, 0.0)


def test_first_alarm_of_a_task_is_its_detection_and_all_others_are_false() -> None:
    #             base         a            b         c
    alarms = [0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 2.0, 0.0, 0.0, 0.0]
    found = Detection.of(alarms, starts=(2, 5, 8))
    assert found.delays == (0, 1)
    assert found.missed == 1
    assert found.false_alarms == 2
    assert found.delay_hours == pytest.approx(0.5)
    assert found.false_alarms_per_100h == pytest.approx(20.0)


def test_silence_is_no_delay_of_zero() -> None:
    found = Detection.of([0.0] * 4, starts=(1, 2))
    assert found.delay_hours is None
    assert found.missed == 2
    assert found.false_alarms_per_100h == 0.0
