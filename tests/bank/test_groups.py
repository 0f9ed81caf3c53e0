"""How many patterns there are follows from the data: pieces of a group are put together, groups are not."""

import numpy as np
import numpy.typing as npt
import pytest

from sona.bank.bank import Bank, Placement
from sona.bank.clustering import unit_rows
from sona.bank.groups import WIDEST_GAP, gaps, groups_of
from sona.bank.pattern import Member
from sona.checks import Float32
from sona.config import BankConfig

Truth = npt.NDArray[np.intp]


def traffic(groups: int, width: int, noise: float, seed: int, n: int = 640) -> tuple[list[Member], Truth]:
    """``n`` members of as many Gaussian groups, whose centres (standard normal in each dimension) stay the same."""
    centres = np.random.default_rng(7).normal(size=(groups, width)) + 4.0  # all share a large component
    truth = np.arange(n) % groups
    rows = centres[truth] + noise * np.random.default_rng(seed).normal(size=(n, width))
    return [Member(f"{seed}-{at}", row.astype(np.float32), (at % 4) / 4, "", "") for at, row in enumerate(rows)], truth


def learned(groups: int, width: int, noise: float, cycles: int = 3) -> tuple[list[Placement], list[Truth]]:
    placed: list[Placement] = []
    truths = []
    for cycle in range(1, cycles + 1):
        members, truth = traffic(groups, width, noise, seed=100 + cycle)
        bank = placed[-1].bank if placed else Bank()
        placed.append(bank.learn(members, BankConfig(), cycle=cycle, seed=cycle))
        truths.append(truth)
    return placed, truths


def purity(names: list[str], truth: Truth) -> float:
    """Share of the members whose group is the most frequent one of their pattern."""
    labels = np.asarray(names)
    return sum(int(np.bincount(truth[labels == name]).max()) for name in set(names)) / len(names)


@pytest.mark.parametrize(
    ("groups", "width", "noise"),
    [(1, 32, 1.0), (2, 32, 0.3), (2, 256, 0.3), (2, 32, 1.0), (6, 32, 0.3), (6, 256, 1.0)],
)
def test_there_are_as_many_patterns_as_groups_in_every_cycle(groups: int, width: int, noise: float) -> None:
    placed, truths = learned(groups, width, noise)
    assert [len(one.bank.patterns) for one in placed] == [groups] * 3
    assert min(purity(one.pattern_ids, truth) for one, truth in zip(placed, truths, strict=True)) > 0.99
    names = [{group: one.pattern_ids[group] for group in range(groups)} for one in placed]
    assert names[0] == names[1] == names[2]  # an id means the same group in every cycle
    assert sum(pattern.count for pattern in placed[-1].bank.patterns) == 3 * 640


@pytest.mark.parametrize("width", [8, 32, 128])
def test_overlapping_groups_stay_apart_and_one_group_stays_one(width: int) -> None:
    rng = np.random.default_rng(3)
    line = unit_rows(rng.normal(size=(1, width)).astype(np.float32))[0]
    far = 12.0 * unit_rows(rng.normal(size=(1, width)).astype(np.float32))[0]
    noise = rng.normal(size=(1280, width)).astype(np.float32)
    third = np.arange(1280) >= 640  # elsewhere, so that the mean of all is not between the two
    for distance, expected in ((6.0, 3), (1.0, 2)):  # standard deviations; 0.1 % of the members overlap at 6
        rows = noise + np.where(
            third[:, None], far, distance * np.where(np.arange(1280) % 2, 0.5, -0.5)[:, None] * line
        )
        groups = groups_of(unit_rows(rows - rows.mean(0)), 40, 0)
        assert len(groups) == expected


def test_no_more_groups_are_made_than_were_wanted() -> None:
    members, _ = traffic(6, 32, 0.3, seed=1)
    rows = np.stack([member.embedding for member in members])
    x = unit_rows(rows - rows.mean(0))
    assert [len(groups_of(x, k, 0)) for k in (1, 2, 4, 6)] == [1, 2, 4, 6]


def test_every_row_is_in_one_group() -> None:
    members, _ = traffic(6, 32, 1.0, seed=1)
    for n in (1, 2, 3, 5, 640):
        groups = groups_of(unit_rows(np.stack([member.embedding for member in members[:n]])), 20, 0)
        assert sorted(place for group in groups for place in group.places) == list(range(n))


def test_the_gap_of_an_even_stretch_cut_in_two_is_the_square_root_of_12() -> None:
    stretch = np.linspace(-1, 1, 4001)
    x = unit_rows(np.stack([stretch, np.full(4001, 50.0)], axis=1).astype(np.float32))
    ends: Float32 = unit_rows(np.asarray([[-0.5, 50.0], [0.5, 50.0]], dtype=np.float32))
    gap = gaps(x @ ends.T, (stretch > 0).astype(np.intp))
    assert gap[0, 1] == gap[1, 0] == pytest.approx(WIDEST_GAP, rel=0.02)
    assert np.isinf(np.diag(gap)).all()
