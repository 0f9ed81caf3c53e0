"""Spherical k-means: groups are found whatever the start, outliers move nothing, odd input is sound or refused."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from sona.bank.clustering import Clusters, spherical_kmeans, unit_rows
from sona.bank.lloyd import Partition, Points, around, lloyd
from sona.bank.outliers import left_out_cosines
from sona.bank.pieces import choose_k
from sona.bank.split_merge import repaired
from sona.bank.starts import farthest_first, greedy_plus_plus
from sona.bank.vectors import Ints, distinct, sums_by_label
from sona.checks import Float32, Int32
from sona.errors import InvalidInputError

WIDTH = 64


def mixture(n: int, k: int, noise: float, seed: int = 0, outliers: int = 0) -> tuple[Float32, Ints]:
    """``n`` unit rows around ``k`` random directions, ``outliers`` more in any direction, and whose they are (-1)."""
    rng = np.random.default_rng(seed)
    centres = unit_rows(rng.normal(size=(k, WIDTH)).astype(np.float32))
    truth = np.arange(n) % k
    rows = centres[truth] + noise / WIDTH**0.5 * rng.normal(size=(n, WIDTH))
    stray = rng.normal(size=(outliers, WIDTH))
    return unit_rows(np.concatenate([rows, stray]).astype(np.float32)), np.concatenate([truth, np.full(outliers, -1)])


def purity(labels: Ints | Int32, truth: Ints) -> float:
    """Share of the rows whose group is the most frequent one of their cluster; outliers don't count."""
    labels, truth = labels[truth >= 0], truth[truth >= 0]
    return sum(int(np.bincount(truth[labels == label]).max()) for label in np.unique(labels)) / len(truth)


def check(found: Clusters, x: Float32, k: int) -> None:
    """What always holds."""
    count = len(found.centroids)
    assert 1 <= count <= min(k, len(x))
    assert sorted(set(found.labels[~found.outliers].tolist())) == list(range(count))  # none is empty
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1.0, atol=1e-4)
    np.testing.assert_allclose(
        found.similarity, np.einsum("nd,nd->n", unit_rows(x), found.centroids[found.labels]), atol=1e-4
    )


@pytest.mark.parametrize("noise", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("seed", range(3))
def test_groups_are_found_from_any_seed(noise: float, seed: int) -> None:
    x, truth = mixture(800, 20, noise)
    found = spherical_kmeans(x, 20, seed)
    check(found, x, 20)
    assert purity(found.labels, truth) > 0.99


def test_two_centroids_in_one_group_come_apart_though_no_row_can_cross() -> None:
    x, truth = mixture(600, 6, 0.3)
    points = Points.of(x, np.ones(len(x), dtype=np.intp))
    halfway = unit_rows(x[4:5] + x[5:6])  # between the last two groups; the first group has two
    stuck = lloyd(points, around(points, np.concatenate([x[[0, 6, 1, 2, 3]], halfway])), 50)
    assert purity(stuck.labels, truth) < 0.9
    mended = repaired(points, stuck)
    assert purity(mended.labels, truth) == 1.0
    assert mended.objective > stuck.objective


def test_outliers_move_no_centroid() -> None:
    x, truth = mixture(600, 6, 0.5, outliers=60)
    found = spherical_kmeans(x, 6, 0)
    assert found.outliers[truth < 0].all()
    assert found.outliers[truth >= 0].sum() <= 3
    inner = ~found.outliers
    expected = unit_rows(sums_by_label(x[inner], found.labels[inner]))
    np.testing.assert_allclose(found.centroids, expected, atol=1e-5)


def test_a_loose_cluster_beside_tight_ones_is_no_outlier() -> None:
    tight, _ = mixture(600, 6, 0.1)
    loose, _ = mixture(40, 1, 1.0, seed=1)
    found = spherical_kmeans(np.concatenate([tight, loose]), 7, 0)
    assert found.outliers.sum() <= 1


def test_cosine_of_a_row_left_out_is_that_to_the_rest_of_its_cluster() -> None:
    x, truth = mixture(12, 3, 0.5)
    points = Points.of(x, np.ones(12, dtype=np.intp))
    cosines = left_out_cosines(points, Partition(truth, sums_by_label(x, truth)))
    for place in range(12):
        rest = unit_rows(x[(truth == truth[place]) & (np.arange(12) != place)].sum(0)[None])[0]
        assert cosines[place] == pytest.approx(float(rest @ x[place]), abs=1e-5)


def test_equal_rows_weigh_by_their_number() -> None:
    x, _ = mixture(30, 3, 0.5)
    repeated = np.concatenate([x, np.repeat(x[:1], 50, axis=0)])
    found = spherical_kmeans(repeated, 1, 0)
    np.testing.assert_allclose(found.centroids[0], unit_rows(repeated.sum(0)[None])[0], atol=1e-4)


def test_more_starts_never_make_it_worse() -> None:
    x, _ = mixture(400, 40, 2.0)
    one, four = (spherical_kmeans(x, 40, 3, starts=starts) for starts in (1, 4))
    assert four.objective >= one.objective - 0.01 * len(x)


def test_the_same_seed_gives_the_same_clusters() -> None:
    x, _ = mixture(300, 12, 2.0)
    one, other = (spherical_kmeans(x, 12, 7, starts=2) for _ in range(2))
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(one.centroids, other.centroids)


@pytest.mark.parametrize("start", [farthest_first, greedy_plus_plus])
def test_starts_are_different_points(start: object) -> None:
    x, _ = mixture(40, 4, 0.5)
    points = Points.of(x, np.ones(40, dtype=np.intp))
    for k in (1, 7, 40):
        places = start(points, k, np.random.default_rng(0))  # type: ignore[operator]
        assert len(set(places.tolist())) == k


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_rows_that_are_not_finite_are_named(bad: float) -> None:
    x, _ = mixture(20, 2, 0.5)
    x[7, 3] = bad
    with pytest.raises(InvalidInputError, match=r"row 7 .* leave it out"):
        spherical_kmeans(x, 2, 0)


def test_rows_without_direction_are_set_aside_and_nothing_else_is_refused() -> None:
    x, _ = mixture(20, 2, 0.5)
    x[[3, 5]] = 0.0
    found = spherical_kmeans(x, 2, 0)
    assert np.flatnonzero(found.similarity == 0).tolist() == [3, 5]
    assert found.outliers[[3, 5]].all()
    with pytest.raises(InvalidInputError, match="all 4 are zero"):
        spherical_kmeans(np.zeros((4, 3), dtype=np.float32), 2, 0)
    with pytest.raises(InvalidInputError, match="shape"):
        spherical_kmeans(np.zeros((0, 3), dtype=np.float32), 2, 0)
    for k, starts, iterations in ((0, 1, 1), (2, 0, 1), (2, 1, 0)):
        with pytest.raises(InvalidInputError, match="1 or more"):
            spherical_kmeans(x, k, 0, starts=starts, iterations=iterations)


def test_one_repeated_row_is_one_cluster_whatever_was_asked_for() -> None:
    found = spherical_kmeans(np.full((50, 8), 3.0, dtype=np.float32), 10, 0)
    assert len(found.centroids) == 1
    assert not found.outliers.any()
    assert len(spherical_kmeans(np.ones((1, 8), dtype=np.float32), 5, 0).centroids) == 1


@given(
    arrays(
        np.float32, st.tuples(st.integers(1, 40), st.integers(1, 4)), elements=st.sampled_from([-1, 0, 0.5, 1, 1e-3])
    ),
    st.integers(1, 50),
    st.integers(1, 3),
    st.booleans(),
)
def test_whatever_rows_come_clusters_are_sound(x: Float32, k: int, starts: int, exchanges: bool) -> None:
    if not x.any():
        return
    check(spherical_kmeans(x, k, 0, starts=starts, exchanges=exchanges), x, k)


@given(
    arrays(np.float32, st.tuples(st.integers(1, 30), st.integers(1, 3)), elements=st.sampled_from([-0.0, 0.0, 1.0])),
)
def test_distinct_rows_are_those_of_numpy(x: Float32) -> None:
    first, of, count = distinct(x)
    assert len(first) == len(np.unique(x + 0.0, axis=0))
    np.testing.assert_array_equal(x[first][of], x)
    assert count.sum() == len(x)
    assert (np.diff(first) > 0).all()


@pytest.mark.parametrize("groups", [1, 5, 20])
def test_the_number_of_clusters_follows_from_the_data_within_bounds(groups: int) -> None:
    x, _ = mixture(1200, groups, 0.7)
    assert choose_k(x, 0) == groups
    assert choose_k(x, 0, high=3) == min(groups, 3)
    assert choose_k(x, 0, low=8) == max(groups, 8)
    assert choose_k(x[:1], 0) == 1
    with pytest.raises(InvalidInputError, match="lower one first"):
        choose_k(x, 0, low=5, high=4)
