"""What is expected of an answer follows how answers to queries like it went; families are of like patterns."""

import numpy as np
import pytest

from sona.bank.bank import Bank
from sona.bank.forecast import PRIOR, PRIOR_OF_PATTERN, WIDTH
from sona.bank.pattern import Member
from sona.bank.vectors import unit_rows
from sona.checks import Float32
from sona.config import BankConfig
from sona.errors import DimensionMismatchError
from sona.loops.deep import deepened

D = 32
CENTRES = unit_rows(np.random.default_rng(0).normal(size=(12, D)).astype(np.float32))


def rows(place: int, n: int, seed: int) -> Float32:
    noise = 0.3 / D**0.5 * np.random.default_rng(seed).normal(size=(n, D))
    return np.asarray(CENTRES[place] + noise, dtype=np.float32)


def members(place: int, qualities: list[float | None], seed: int) -> list[Member]:
    return [
        Member(f"{place}-{seed}-{at}", row, quality, f"question {place}", "answer")
        for at, (row, quality) in enumerate(zip(rows(place, len(qualities), seed), qualities, strict=True))
    ]


def test_queries_like_those_that_failed_are_expected_to_fail() -> None:
    bank = Bank().learn([*members(0, [1.0] * 40, 1), *members(1, [0.0] * 40, 2)], BankConfig(), cycle=1, seed=0).bank
    good, bad = bank.predict(np.concatenate([rows(0, 1, 9), rows(1, 1, 9)]))
    assert good > 0.9
    assert bad < 0.1


def test_one_query_that_always_fails_is_told_from_its_neighbours() -> None:
    hard = rows(0, 1, 77)[0]
    known = [*members(0, [1.0] * 40, 1), *members(1, [1.0] * 40, 2)]
    again = [Member(f"hard-{at}", hard, 0.0, "hard", "") for at in range(12)]
    bank = Bank().learn([*known, *again], BankConfig(), cycle=1, seed=0).bank
    assert bank.predict(hard[None])[0] < 0.6
    assert bank.predict(rows(0, 1, 5))[0] > bank.predict(hard[None])[0] + 0.2
    assert bank.predict(rows(1, 1, 5))[0] > 0.9


def test_it_is_the_kernel_mean_of_the_cells() -> None:
    bank = Bank().learn(members(0, [1.0, 0.0, 0.5] * 10, 1) + members(1, [0.25] * 30, 2), BankConfig(), cycle=1, seed=0)
    query = rows(0, 1, 3)
    x = bank.bank._centred(query)[0].astype(np.float64)
    ranked = sorted(bank.bank.patterns, key=lambda pattern: -float(pattern.vector() @ x))
    everything = 0.5 * 0.5 + 0.5 * 0.25
    own = ranked[0].verdict
    prior = (own.count * own.mean + PRIOR_OF_PATTERN * everything) / (own.count + PRIOR_OF_PATTERN)
    weight, total = PRIOR, PRIOR * prior
    for pattern in ranked:
        for cell in bank.bank._shelf.body(pattern.id).cells:
            verdict = cell.verdicts[""]
            direction = cell.vector() / np.linalg.norm(cell.vector())
            near = verdict.count * np.exp((direction @ x - 1) / WIDTH)
            weight, total = weight + near, total + near * verdict.mean
    assert bank.bank.predict(query)[0] == pytest.approx(total / weight, abs=1e-5)


def test_without_evidence_nothing_is_known() -> None:
    assert Bank().predict(rows(0, 2, 1)).tolist() == [0.5, 0.5]
    assert Bank().usual_quality("") == 0.5
    unrated = Bank().learn(members(0, [None] * 20, 1), BankConfig(), cycle=1, seed=0).bank
    assert unrated.predict(rows(0, 1, 1)).tolist() == [0.5]
    assert unrated.predict(np.zeros((0, D), dtype=np.float32)).tolist() == []
    with pytest.raises(DimensionMismatchError):
        unrated.predict(np.ones((1, 3), dtype=np.float32))


def test_what_is_usual_for_a_small_pattern_is_drawn_towards_all() -> None:
    placed = Bank().learn([*members(0, [0.0] * 10, 1), *members(1, [1.0] * 90, 2)], BankConfig(), cycle=1, seed=0)
    few, many = placed.pattern_ids[0], placed.pattern_ids[-1]
    assert placed.bank.usual_quality(few) == pytest.approx(PRIOR_OF_PATTERN * 0.9 / (10 + PRIOR_OF_PATTERN))
    assert placed.bank.usual_quality(many) > 0.98
    assert placed.bank.usual_quality("") == pytest.approx(0.9)


def families(bank: Bank) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for pattern in bank.patterns:
        found.setdefault(pattern.family, set()).add(pattern.id)
    return found


def test_families_hold_like_patterns_and_are_named_for_one_of_them() -> None:
    """Twelve kinds of questions around three topics."""
    topics = 2.0 * unit_rows(np.random.default_rng(5).normal(size=(3, D)).astype(np.float32))
    kinds = topics[np.arange(12) % 3] + CENTRES
    rng = np.random.default_rng(6)
    some = [
        Member(
            f"{kind}-{n}",
            np.asarray(kinds[kind] + 0.2 / D**0.5 * rng.normal(size=D), dtype=np.float32),
            1.0,
            f"kind {kind}",
            "",
        )
        for kind in range(12)
        for n in range(20)
    ]
    placed = Bank().learn(some, BankConfig(), cycle=1, seed=0)
    bank = deepened(placed.bank, BankConfig(), 1)
    topic_of = {placed.pattern_ids[20 * kind]: kind % 3 for kind in range(12)}
    found = families(bank)
    assert 3 <= len(found) < len(bank.patterns)
    for name, ids in found.items():
        assert len({topic_of[one] for one in ids}) == 1
        assert name.startswith("kind ")
    assert families(Bank.from_bytes(bank.to_bytes())) == found


def test_families_are_made_anew_once_in_many_cycles() -> None:
    some = [member for place in range(4) for member in members(place, [1.0] * 10, place)]
    settings = BankConfig(families_every=10)
    first = deepened(Bank().learn(some, settings, cycle=1, seed=0).bank, settings, 1)
    assert all(pattern.family for pattern in first.patterns)
    grown = first.learn(members(7, [1.0] * 10, 9), settings, cycle=2, seed=0).bank
    assert deepened(grown, settings, 2) is grown
    assert all(pattern.family for pattern in deepened(grown, settings, 10).patterns)
    assert deepened(Bank(), settings, 10).patterns == ()
