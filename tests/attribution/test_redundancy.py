"""Where leave-one-out is blind, it says so."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from sona.attribution.context import Context, Segment
from sona.attribution.matrix import MemoryMatrix, Response, Row
from sona.attribution.redundancy import check_redundancy, redundancies
from sona.errors import InvalidInputError, ScoringError
from tests.attribution.told import Told, Words, context_of

NAMES = tuple(f"m{place}" for place in range(8))


def either(before: frozenset[str]) -> float:
    return -0.01 if before & {"m1", "m4"} else -9.0


def single(before: frozenset[str]) -> float:
    return -0.01 if "m3" in before else -9.0


def test_fact_that_is_told_twice_warns_and_names_both() -> None:
    codec = Words()
    found = check_redundancy(context_of(*NAMES), codec, Told(codec, either))
    (warning,) = found.warnings
    assert (warning.response, set(warning.group)) == (9, {"m1", "m4"})
    assert warning.stripped_nats == pytest.approx(8.99, abs=1e-3)
    assert warning.single_nats == pytest.approx(0.0, abs=1e-3)
    assert warning.group_nats == pytest.approx(8.99, abs=1e-3)
    assert "response 9: all memories give it 8.99 nats, the single ones 0.00" in str(warning)
    assert "m1, m4" in str(warning)


def test_fact_that_is_told_once_does_not_warn_and_costs_no_ablations() -> None:
    codec = Words()
    scorer = Told(codec, single)
    found = check_redundancy(context_of(*NAMES), codec, scorer)
    assert (found.warnings, found.ablated) == ((), None)
    assert found.matrix.signed[3, 0] == pytest.approx(8.99, abs=1e-3)
    assert scorer.calls == 1 + 8 + 1


def test_fact_that_is_told_three_times_names_all_three() -> None:
    codec = Words()
    scorer = Told(codec, lambda before: -0.01 if before & {"m0", "m2", "m5"} else -9.0)
    (warning,) = check_redundancy(context_of(*NAMES), codec, scorer).warnings
    assert set(warning.group) == {"m0", "m2", "m5"}


def test_each_response_is_judged_by_itself() -> None:
    context = Context(
        (
            Segment("memory", "m1", key="m1"),
            Segment("user", "q0"),
            Segment("assistant", "a0 b0"),
            Segment("memory", "m4", key="m4"),
            Segment("user", "q1"),
            Segment("assistant", "a1 b1"),
        )
    )
    codec = Words()
    found = check_redundancy(context, codec, Told(codec, either))
    assert [warning.response for warning in found.warnings] == [5]  # before, there was only one of them


def test_what_is_within_the_noise_does_not_warn() -> None:
    codec = Words()

    def slight(before: frozenset[str]) -> float:
        return -5.0 if before & {"m1", "m4"} else -5.4

    assert check_redundancy(context_of(*NAMES), codec, Told(codec, slight, noise_floor=0.27)).warnings == ()
    assert check_redundancy(context_of(*NAMES), codec, Told(codec, slight, noise_floor=0.01)).warnings != ()


def test_memories_that_are_needed_together_do_not_warn() -> None:
    codec = Words()
    scorer = Told(codec, lambda before: -0.01 if {"m1", "m4"} <= before else -9.0)
    assert check_redundancy(context_of(*NAMES), codec, scorer).warnings == ()


def matrix_of(singles: list[list[float]], stripped: list[float]) -> MemoryMatrix:
    keys = tuple(f"m{place}" for place in range(len(singles)))
    rows = {key: Row(key, np.array(nats)) for key, nats in zip(keys, singles, strict=True)}
    responses = tuple(Response(4 + 2 * place, 2) for place in range(len(stripped)))
    return MemoryMatrix(keys, responses, rows, 1e-3, strip_all=Row("", np.array(stripped)))


def test_memory_that_stands_in_the_way_hides_no_redundancy_and_makes_none() -> None:
    found = redundancies(matrix_of([[9.0, 0.0], [-20.0, -20.0]], [8.0, 8.0]))
    assert [one.response for one in found] == [6]


def test_what_is_next_to_nothing_does_not_warn() -> None:
    assert redundancies(matrix_of([[0.0], [0.0]], [0.04])) == []
    assert len(redundancies(matrix_of([[0.0], [0.0]], [0.06]))) == 1


def test_response_whose_memory_failed_is_not_judged() -> None:
    assert redundancies(matrix_of([[math.nan], [0.0]], [9.0])) == []
    assert redundancies(matrix_of([[0.0], [0.0]], [math.nan])) == []
    assert len(redundancies(matrix_of([[0.0], [0.0]], [9.0]))) == 1


def test_failed_variants_are_told_by_their_memory() -> None:
    codec = Words()
    scorer = Told(codec, either)
    scorer.fails = lambda call: ScoringError("lost") if call in (4, 10) else None  # the third memory, and the stripped
    found = check_redundancy(context_of(*NAMES), codec, scorer)
    assert set(found.matrix.failed) == {"m2"}
    assert found.matrix.strip_all is not None
    assert found.matrix.strip_all.failure == "lost"
    assert found.warnings == ()


def test_context_without_memories_has_nothing_to_warn_of() -> None:
    codec = Words()
    found = check_redundancy(context_of(), codec, Told(codec, either))
    assert (found.warnings, found.matrix.keys) == ((), ())


def test_matrix_without_the_stripped_variant_is_refused() -> None:
    whole = matrix_of([[0.0]], [9.0])
    with pytest.raises(InvalidInputError, match="strip_all=True"):
        redundancies(replace(whole, strip_all=None))
