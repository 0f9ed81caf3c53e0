"""Ids while domains arrive, on a toy whose ids must stay."""

from itertools import count

import numpy as np
import pytest

from benchmarks.bank.agreement import Labels, nmi
from benchmarks.bank.stability import arrivals, by_bank, by_reclustering, follow, matched
from sona.bank.vectors import Ints
from sona.checks import Float32

DOMAINS, GROUPS, EACH = 3, 2, 60


def toy() -> tuple[Float32, Labels, Labels]:
    """Six tight groups at right angles, two a domain; rows, groups, domains."""
    groups = np.repeat(np.arange(DOMAINS * GROUPS), EACH)
    rows = 3 * np.eye(DOMAINS * GROUPS, 8)[groups] + np.random.default_rng(0).standard_normal((len(groups), 8)) / 20
    return rows.astype(np.float32), groups, groups // GROUPS


def test_domains_arrive_whole_and_in_an_order_of_the_seed() -> None:
    domains = toy()[2]
    arrived = arrivals(domains, 0)
    assert sorted(np.concatenate(arrived).tolist()) == list(range(len(domains)))
    assert all(len(set(domains[places].tolist())) == 1 for places in arrived)
    orders = {tuple(int(domains[places[0]]) for places in arrivals(domains, seed)) for seed in range(20)}
    assert len(orders) == 6


@pytest.mark.parametrize("seed", range(3))
def test_ids_of_groups_that_lie_apart_stay(seed: int) -> None:
    rows, groups, domains = toy()
    arrived = arrivals(domains, seed)
    named = by_bank(rows, arrived, seed)
    assert named.id_stability == 1.0
    assert nmi(named.labels, groups[np.concatenate(arrived)]) == pytest.approx(1.0)
    assert named.patterns == (2, 4, 6)
    anew = by_reclustering(rows, arrived, seed, named.patterns)
    assert anew.id_stability > 0.5
    assert anew.labels.shape == named.labels.shape


def test_share_is_of_the_earlier_queries_alone() -> None:
    renamed = count()

    def name(new: Ints, known: Ints) -> list[str]:
        """The first two queries get another id each time, all others keep theirs."""
        return [f"new {next(renamed)}" if place < 2 else "old" for place in known.tolist()]

    share, ids = follow([np.arange(4), np.arange(4, 8), np.arange(8, 9)], name)
    assert share == pytest.approx((2 / 4 + 6 / 8) / 2)
    assert len(ids) == 9
    assert follow([np.arange(4)], name)[0] == 1.0


def test_matching_takes_the_nearest_pair_first() -> None:
    before = np.array([[1, 0], [0, 1]], dtype=np.float32)
    now = np.array([[0.8, 0.6], [1, 0], [0.6, 0.8]], dtype=np.float32)
    assert matched(before, now).tolist() == [-1, 0, 1]
    assert matched(before[:0], now).tolist() == [-1, -1, -1]
