"""The reasoning bank: clusters are right, ids last, statistics are those of the members."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from sona.bank.bank import Bank
from sona.bank.clustering import spherical_kmeans, unit_rows
from sona.bank.pattern import Member
from sona.checks import Float32
from sona.config import BankConfig
from sona.errors import DimensionMismatchError, StoreCorruptError

WIDTH = 32
RNG = np.random.default_rng(5)
CENTRES = RNG.normal(size=(6, WIDTH)).astype(np.float32)
COMMON = 4.0  # the large component that all hidden states share


def draw(centres: list[int], n: int, seed: int) -> list[Member]:
    rng = np.random.default_rng(seed)
    picks = [centres[place % len(centres)] for place in range(n)]
    return [
        Member(f"{seed}-{place}", _point(pick, rng), (place % 4) / 4, f"question {seed} {place} of {pick}", "answer")
        for place, pick in enumerate(picks)
    ]


def _point(pick: int, rng: np.random.Generator) -> Float32:
    return np.asarray(CENTRES[pick] + COMMON + 0.3 * rng.normal(size=WIDTH), dtype=np.float32)


def test_well_separated_groups_become_one_pattern_each() -> None:
    placed = Bank().learn(draw([0, 1, 2], 96, 1), BankConfig(), cycle=1, seed=0)
    by_centre = {place % 3: placed.pattern_ids[place] for place in range(3)}
    assert [by_centre[place % 3] for place in range(96)] == placed.pattern_ids
    assert len(set(by_centre.values())) == 3
    assert [pattern.count for pattern in placed.bank.patterns] == [32, 32, 32]


def test_an_id_means_the_same_thing_in_every_cycle() -> None:
    first = Bank().learn(draw([0, 1, 2], 96, 1), BankConfig(), cycle=1, seed=0)
    second = first.bank.learn(draw([2, 0, 3], 96, 2), BankConfig(), cycle=2, seed=1)
    assert second.pattern_ids[1] == first.pattern_ids[0]
    assert second.pattern_ids[0] == first.pattern_ids[2]
    assert second.pattern_ids[2] not in first.pattern_ids
    assert {pattern.id: pattern.count for pattern in second.bank.patterns}[first.pattern_ids[1]] == 32
    assert sum(pattern.count for pattern in second.bank.patterns) == 192


def test_twenty_cycles_of_the_same_traffic_make_no_duplicates() -> None:
    bank = Bank()
    for cycle in range(1, 21):
        bank = bank.learn(draw([0, 1, 2, 3], 64, cycle), BankConfig(), cycle=cycle, seed=cycle).bank
    assert len(bank.patterns) == 4
    assert bank.learned == 20 * 64
    assert min(pattern.count for pattern in bank.patterns) >= 318  # one or two may lie far out


def test_quality_statistics_are_those_of_all_members() -> None:
    groups = [draw([1], 64, 1), draw([1], 33, 2)]
    bank = (
        Bank().learn(groups[0], BankConfig(), cycle=1, seed=0).bank.learn(groups[1], BankConfig(), cycle=2, seed=0).bank
    )
    values = [member.quality for group in groups for member in group if member.quality is not None]
    (pattern,) = bank.patterns
    assert pattern.verdict.count == 97
    assert pattern.verdict.mean == pytest.approx(np.mean(values))
    assert pattern.verdict.std == pytest.approx(np.std(values, ddof=1))


def test_exemplars_are_the_best_rated_without_repeats() -> None:
    members = [*draw([0], 64, 1), *draw([0], 64, 1)]
    (pattern,) = Bank().learn(members, BankConfig(exemplars=4), cycle=1, seed=0).bank.patterns
    assert len({exemplar.prompt for exemplar in pattern.exemplars}) == 4
    assert {exemplar.quality for exemplar in pattern.exemplars} == {0.75}


def test_recall_gives_the_nearest_patterns_first() -> None:
    placed = Bank().learn(draw([0, 1, 2], 96, 1), BankConfig(), cycle=1, seed=0)
    found = placed.bank.recall(CENTRES[1] + COMMON, k=2)
    assert found[0].pattern.id == placed.pattern_ids[1]
    assert found[0].similarity > 0.9 > found[1].similarity
    assert Bank().recall(CENTRES[1]) == []
    assert len(placed.bank.recall(CENTRES[1], k=99)) == 3


def test_it_survives_its_encoding_and_refuses_damage() -> None:
    bank = Bank().learn(draw([0, 1], 64, 1), BankConfig(), cycle=1, seed=0).bank
    again = Bank.from_bytes(bank.to_bytes())
    assert again.patterns == bank.patterns
    assert again.recall(CENTRES[0] + COMMON) == bank.recall(CENTRES[0] + COMMON)
    with pytest.raises(StoreCorruptError, match="roll back"):
        Bank.from_bytes(bank.to_bytes()[:-3])


def test_another_width_is_a_typed_error() -> None:
    bank = Bank().learn(draw([0, 1], 64, 1), BankConfig(), cycle=1, seed=0).bank
    with pytest.raises(DimensionMismatchError, match="width 3"):
        bank.recall(np.ones(3, dtype=np.float32))


def test_the_same_seed_gives_the_same_bank() -> None:
    banks = [Bank().learn(draw([0, 1, 2], 96, 1), BankConfig(), cycle=1, seed=9).bank for _ in range(2)]
    assert banks[0].to_bytes() == banks[1].to_bytes()


def test_kmeans_makes_no_empty_cluster_of_duplicates() -> None:
    x = unit_rows(np.repeat(CENTRES[:2], 20, axis=0))
    clusters = spherical_kmeans(x, 8, seed=0)
    assert len(clusters.centroids) == 2
    assert set(clusters.labels.tolist()) == {0, 1}
    np.testing.assert_allclose(clusters.similarity, 1.0, atol=1e-5)


@pytest.mark.parametrize("seed", [0, -1, 2148, 2**31 - 1, 2**31, 2**63])
def test_any_whole_number_is_a_seed(seed: int) -> None:
    assert len(Bank().learn(draw([0, 1, 2], 96, 1), BankConfig(), cycle=1, seed=seed).bank.patterns) == 3


@pytest.mark.parametrize("noise", [0.0, 1e-6])
def test_a_first_cycle_of_one_repeated_query_is_one_pattern(noise: float) -> None:
    rng = np.random.default_rng(0)
    one = CENTRES[0] + COMMON
    rows = [np.asarray(one * (1 + noise * rng.normal(size=WIDTH)), dtype=np.float32) for _ in range(64)]
    first = Bank().learn(members(rows, 1), BankConfig(), cycle=1, seed=0)
    assert len(first.bank.patterns) == 1
    second = first.bank.learn([*draw([1, 2], 128, 2), *members(rows, 3)], BankConfig(), cycle=2, seed=0)
    groups = [slice(0, 128, 2), slice(1, 128, 2), slice(128, None)]
    one_each, other, repeated = (set(second.pattern_ids[places]) for places in groups)
    assert repeated == {first.bank.patterns[0].id}
    assert (len(one_each), len(other), len(one_each | other | repeated)) == (1, 1, 3)
    best = second.bank.recall(one, k=1)[0]
    assert best.pattern.id == first.bank.patterns[0].id
    assert best.similarity == pytest.approx(1.0, abs=1e-4)


def members(rows: list[Float32], cycle: int) -> list[Member]:
    return [Member(f"{cycle}-{place}", row, 0.5, "question", "answer") for place, row in enumerate(rows)]


@given(
    st.lists(st.sampled_from([-2.0, -1.0, 1.0, 2.0, 3.0]), min_size=1, max_size=40),
    st.integers(1, 4),
    st.floats(0.05, 2.0),
)
def test_no_embeddings_break_it(values: list[float], width: int, grain: float) -> None:
    rows = [np.full(width, value, dtype=np.float32) for value in values]  # opposite, equal, at the mean
    bank = Bank()
    for cycle in (1, 2):
        placed = bank.learn(members(rows, cycle), BankConfig(grain=grain), cycle=cycle, seed=0)
        bank = placed.bank
        assert {pattern.id for pattern in bank.patterns} >= set(placed.pattern_ids) - {""}
        assert bank.learned == sum(pattern.count for pattern in bank.patterns) + bank.strays == cycle * len(rows)


def test_centroid_and_spread_are_those_of_all_members() -> None:
    cycles = [draw([1], 20, 1), draw([1], 33, 2), draw([1], 64, 3)]
    bank = Bank((), np.zeros(WIDTH, dtype=np.float32))
    for cycle, group in enumerate(cycles, start=1):
        bank = bank.learn(group, BankConfig(), cycle=cycle, seed=0).bank
    (pattern,) = bank.patterns
    rows = unit_rows(np.stack([member.embedding for group in cycles for member in group]))
    np.testing.assert_allclose(pattern.vector(), unit_rows(rows.sum(0)[None])[0], atol=1e-6)
    assert pattern.spread == pytest.approx(float((rows @ pattern.vector()).mean()), abs=1e-5)
