"""A bank's life at a size that takes no time."""

import numpy as np
import pytest

from benchmarks.bank.agreement import purity
from benchmarks.bank.life import EACH, FRESH, GROUPS, NEW_EVERY, Lived, by_bank, by_peer, traffic
from benchmarks.bank.mixture import WIDTH
from benchmarks.fast_loop import peer
from sona.bank.vectors import unit_rows


def lived(seconds: tuple[float, ...], centroids: list[list[float]]) -> Lived:
    return Lived(seconds, unit_rows(np.array(centroids, dtype=np.float32)), np.zeros(1, dtype=np.intp))


def test_groups_are_added_one_after_the_other() -> None:
    stable, growing = traffic(2 * NEW_EVERY + 1, False, 0), traffic(2 * NEW_EVERY + 1, True, 0)
    assert (stable.groups, growing.groups) == (GROUPS, GROUPS + 2)
    assert set(growing.truth.tolist()) == set(range(GROUPS + 2))
    for given in (stable, growing):
        assert {rows.shape for rows in given.cycles} == {(EACH, WIDTH)}
        assert given.fresh.shape == (FRESH, WIDTH)
    centre = growing.fresh[growing.truth == GROUPS].mean(0)
    near = [float((rows @ centre).max()) for rows in growing.cycles]
    assert max(near[:NEW_EVERY]) < min(near[NEW_EVERY:]) / 2  # nothing of the first new group before its cycle
    np.testing.assert_array_equal(traffic(2, True, 3).fresh, traffic(2, True, 3).fresh)


def test_times_are_medians_and_duplicates_pairs() -> None:
    found = lived((9.0, 1.0, 2.0, 30.0, 4.0, 4.0, 4.0, 6.0, 60.0), [[1, 0], [1, 0.15], [1, -0.15], [0, 1]])
    assert (found.second_s, found.last_s) == (2.0, 4.0)
    assert found.duplicates == 3 - 1  # the outer two of the three have a cosine of .956
    assert lived((1.0,) * 9, [[1, 0]]).duplicates == 0


def test_bank_finds_the_groups_in_a_few_cycles() -> None:
    given = traffic(5, False, 0)
    found = by_bank(given, 0)
    assert len(found.seconds) == 5
    assert found.labels.shape == (FRESH,)
    assert purity(found.labels, given.truth) > 0.9
    assert found.duplicates == 0


@pytest.mark.skipif(bool(peer.trouble()), reason="the peer is not installed")
def test_peer_lives_through_the_same() -> None:
    found = by_peer(traffic(4, False, 0))
    assert len(found.seconds) == 4
    assert found.centroids.shape == (4 * GROUPS, WIDTH)
    assert found.labels.max() < len(found.centroids)
