"""Trajectories that are rated anew: the bank is as if it had learned their last quality, and counts them once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sona.bank.bank import Bank
from sona.bank.pattern import Member
from sona.bank.revising import Revision, heirs
from sona.bank.verdicts import followed, holds, moved, verdict_of
from sona.config import BankConfig
from sona.patterns import Pattern, PatternChange, Verdict

WIDTH = 8
CENTRES = np.random.default_rng(0).normal(size=(3, WIDTH))
SETTINGS = BankConfig()

qualities = st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0, 1e-300, 1 - 2**-53])


def member(name: str, kind: int, quality: float, routes: tuple[str, ...] = ()) -> Member:
    noise = np.random.default_rng([*name.encode()]).normal(size=WIDTH)
    embedding = np.asarray(CENTRES[kind] + 0.1 * noise, np.float32)
    return Member(name, embedding, quality, f"prompt {name}", f"response {name}", routes)


def of(name: str, quality: float) -> Member:
    """Of two kinds, over two routes."""
    number = int(name)
    return member(name, number % 2, quality, (f"tool:{number % 3}", "model:one"))


def learned(members: Sequence[Member], cycle: int = 1, bank: Bank | None = None) -> Bank:
    return (bank or Bank()).learn(members, SETTINGS, cycle=cycle, seed=cycle).bank


def pattern_of(bank: Bank, one: Member) -> str:
    (found,) = bank.nearest(one.embedding[None])
    return "" if found is None else found.id


def anew(bank: Bank, one: Member, quality: float, cycle: int = 1) -> Revision:
    assert one.quality is not None
    return Revision(replace(one, quality=quality), one.quality, pattern_of(bank, one), cycle)


def rows_of(pattern: Pattern) -> dict[str, Verdict]:
    return {"": pattern.verdict, **pattern.routes}


# Verdicts


@given(st.lists(qualities, min_size=1, max_size=30), st.lists(st.tuples(st.integers(0, 29), qualities), max_size=60))
def test_a_moved_verdict_is_that_of_the_new_values(values: list[float], changes: list[tuple[int, float]]) -> None:
    verdict = verdict_of(values)
    weight = verdict.recent_weight
    for number, new in changes:
        at = number % len(values)
        assert holds(verdict, values[at])
        verdict = moved(verdict, values[at], new)
        values[at] = new
    expected = verdict_of(values)
    assert (verdict.count, verdict.recent_weight) == (len(values), weight)
    assert verdict.mean == pytest.approx(expected.mean, abs=1e-12)
    assert verdict.m2 == pytest.approx(expected.m2, abs=1e-9)
    assert verdict.recent_mean == pytest.approx(expected.recent_mean, abs=1e-12), "of one cycle: all equally recent"


@given(st.lists(qualities, min_size=1, max_size=9), qualities, qualities)
def test_a_quality_that_was_none_of_its_own_leaves_a_verdict_within_bounds(
    values: list[float], old: float, new: float
) -> None:
    verdict = moved(followed(verdict_of(values), verdict_of([0.0])), old, new)
    assert 0 <= verdict.mean <= 1
    assert 0 <= verdict.m2 <= verdict.count / 4
    assert 0 <= verdict.recent_mean <= 1


def test_a_verdict_holds_what_may_be_among_its_values() -> None:
    assert holds(verdict_of([0.25]), 0.25)
    assert not holds(verdict_of([0.25]), 0.5)
    assert not holds(verdict_of([1.0] * 5), 0.0)
    assert holds(verdict_of([1.0] * 5 + [0.0]), 0.0)
    assert not holds(verdict_of([0.5, 0.5, 0.5]), 1.0), "they do not vary"
    assert not holds(Verdict(), 0.5)
    assert moved(Verdict(), 0.0, 1.0) == Verdict()


# The bank


@given(st.lists(st.tuples(qualities, qualities), min_size=8, max_size=24))
def test_a_revised_bank_is_the_one_that_learned_the_new_qualities(pairs: list[tuple[float, float]]) -> None:
    before = [of(str(place), old) for place, (old, _) in enumerate(pairs)]
    after = [of(str(place), new) for place, (_, new) in enumerate(pairs)]
    bank, expected = learned(before), learned(after)
    known, places = bank.revise([anew(bank, one, new) for one, (_, new) in zip(before, pairs, strict=True)], SETTINGS)
    assert places == [pattern_of(bank, one) for one in before]
    assert known.learned == bank.learned
    for mine, other in zip(known.patterns, expected.patterns, strict=True):
        assert msgspec.structs.replace(mine, verdict=Verdict(), routes={}, exemplars=(), failures=()) == (
            msgspec.structs.replace(other, verdict=Verdict(), routes={}, exemplars=(), failures=())
        )
        ours, theirs = rows_of(mine), rows_of(other)
        assert ours.keys() == theirs.keys()
        for route, verdict in ours.items():
            assert msgspec.structs.astuple(verdict) == pytest.approx(msgspec.structs.astuple(theirs[route]), abs=1e-9)
        rated = {one.trajectory_id: one.quality for one in after}
        assert all(one.quality == rated[one.trajectory_id] for one in (*mine.exemplars, *mine.failures))
    Bank.from_bytes(known.to_bytes())


def test_what_went_well_after_all_becomes_an_example_and_what_did_not_goes() -> None:
    bank = learned([of(str(place), 0.9 if place < 12 else 0.6) for place in range(40)])
    best = {one.trajectory_id for pattern in bank.patterns for one in pattern.exemplars}
    assert best <= {str(place) for place in range(12)}
    revisions = [
        anew(bank, of(str(place), 0.9 if place < 12 else 0.6), 0.5 if place < 12 else 1.0) for place in range(24)
    ]
    known = bank.revise(revisions, SETTINGS)[0]
    shown = {one.trajectory_id: one.quality for pattern in known.patterns for one in pattern.exemplars}
    assert set(shown.values()) == {1.0}
    assert len(bank.patterns[0].exemplars) == len(known.patterns[0].exemplars)
    assert best.isdisjoint(shown)


def test_one_cell_is_moved_and_the_cells_still_add_up() -> None:
    bank = learned([of(str(place), 1.0) for place in range(40)])
    for cycle in range(2, 6):
        bank = learned([of(str(40 * cycle + place), 0.0) for place in range(40)], cycle, bank)
    assert max(len(bank._shelf.body(one.id).cells) for one in bank.patterns) > 1
    known = bank.revise([anew(bank, of(str(place), 1.0), 0.0) for place in range(40)], SETTINGS)[0]
    for pattern in known.patterns:
        cells = known._shelf.body(pattern.id).cells
        assert pattern.verdict.mean == pytest.approx(0, abs=1e-12)
        assert sum(cell.verdicts[""].mean * cell.verdicts[""].count for cell in cells) == pytest.approx(0, abs=1e-12)


def test_what_was_in_a_pruned_pattern_is_not_known_any_more() -> None:
    short = BankConfig(half_life=1.0, min_weight=0.5)
    bank = Bank().learn([of(str(place), 1.0) for place in range(40)], short, cycle=1, seed=1).bank
    gone, kept = pattern_of(bank, of("0", 1.0)), pattern_of(bank, of("1", 1.0))
    revision = anew(bank, of("0", 1.0), 0.0)
    bank = bank.learn([of(str(place), 1.0) for place in range(41, 81, 2)], short, cycle=12, seed=2).bank
    assert [pattern.id for pattern in bank.patterns] == [kept]
    known, places = bank.revise([revision], short)
    assert (places, known.learned) == ([None], bank.learned - 1)
    assert known.patterns[0].verdict == bank.patterns[0].verdict
    again = known.learn([revision.member], short, cycle=13, seed=3).bank
    assert again.learned == bank.learned
    assert bank.heir(gone, revision.member.embedding, 1) == ""


def test_a_stray_is_revised_where_it_waits() -> None:
    far = member("far", 2, 1.0)
    bank, ids = learned([of(str(place), 1.0) for place in range(40)]).learn(
        [far, *(of(str(place), 1.0) for place in range(40, 60))], SETTINGS, cycle=2, seed=2
    )
    assert (ids[0], bank.strays) == ("", 1)
    known, places = bank.revise([Revision(replace(far, quality=0.25), 1.0, "", 2)], SETTINGS)
    assert (places, known.strays, known.learned) == ([""], 1, bank.learned)
    (stray,) = known._shelf.strays
    assert (stray.cell.verdicts[""].mean, [one.quality for one in stray.cell.exemplars]) == (0.25, [0.25])
    assert known.patterns == bank.patterns
    unknown = Revision(member("other", 2, 0.25), 1.0, "", 2)
    assert bank.revise([unknown], SETTINGS)[1] == [None], "no pattern has begun since"


def test_a_bank_without_patterns_knows_nothing() -> None:
    revision = Revision(of("0", 0.5), 1.0, "p1-0", 1)
    assert Bank().revise([revision], SETTINGS)[1] == [None]
    bank = learned([of(str(place), 1.0) for place in range(40)])
    assert bank.revise([], SETTINGS) == (bank, [])
    assert bank.revise([replace(revision, pattern="p0-9", member=of("99", 0.5))], SETTINGS)[1] == [None]


# What has become of patterns


def change(cycle: int, what: str, pattern: str, other: str = "") -> PatternChange:
    return PatternChange(cycle=cycle, change=what, pattern=pattern, other=other)  # type: ignore[arg-type]


HISTORY = [
    change(1, "born", "a"),
    change(1, "born", "b"),
    change(2, "split", "a2", "a"),
    change(3, "merged", "a", "b"),
    change(3, "born", "c"),
    change(4, "pruned", "a2"),
    change(5, "split", "b2", "b"),
]


@pytest.mark.parametrize(
    ("pattern", "after", "expected"),
    [
        ("a", 1, {"b", "b2"}),
        ("a", 2, {"b", "b2"}),
        ("a2", 2, set()),
        ("b", 4, {"b", "b2"}),
        ("b", 5, {"b"}),
        ("c", 3, {"c"}),
        ("", 2, {"c"}),
        ("", 3, set()),
    ],
)
def test_heirs_follow_the_history(pattern: str, after: int, expected: set[str]) -> None:
    assert heirs({pattern}, HISTORY, after) == expected
