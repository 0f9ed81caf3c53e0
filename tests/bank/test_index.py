"""The index: what it finds is what comparing everything finds, whatever was added, moved and dropped before."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sona.bank import index as module
from sona.bank.bank import Bank
from sona.bank.clustering import unit_rows
from sona.bank.index import CentroidIndex
from sona.bank.pattern import Member
from sona.checks import Float32
from sona.config import BankConfig
from sona.errors import DimensionMismatchError, InvalidInputError

WIDTH = 7  # odd, so that codes need a column more


def directions(n: int, seed: int, width: int = WIDTH) -> Float32:
    return unit_rows(np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32))


@pytest.fixture
def coded_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes from 30 centroids on; all of them are candidates, so results are exact."""
    monkeypatch.setattr(module, "EXACT", 30)


def check(index: CentroidIndex, truth: dict[str, Float32], query: Float32, k: int = 5) -> None:
    found = index.search(query[None], k)[0]
    cosines = {name: float(vector @ query) for name, vector in truth.items()}
    best = sorted(cosines.values(), reverse=True)[:k]
    assert len(index) == len(truth)
    assert len({name for name, _ in found}) == min(k, len(truth))
    np.testing.assert_allclose([value for _, value in found], best, atol=1e-5)
    np.testing.assert_allclose([cosines[name] for name, _ in found], best, atol=1e-5)


class Life(RuleBasedStateMachine):
    """An index that grows over the bound, is moved about and shrinks, beside a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.before, module.EXACT = module.EXACT, 30

    @initialize(n=st.integers(1, 60))
    def build(self, n: int) -> None:
        self.number, self.truth = n, dict(zip(map(str, range(n)), directions(n, 0), strict=True))
        self.index = CentroidIndex([*self.truth], directions(n, 0))

    def teardown(self) -> None:
        module.EXACT = self.before

    @rule(n=st.integers(1, 40))
    def add(self, n: int) -> None:
        names = [str(self.number + place) for place in range(n)]
        self._put(names)
        self.number += n

    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        if self.truth:
            self._put(data.draw(st.lists(st.sampled_from([*self.truth]), unique=True, max_size=9)))

    def _put(self, names: list[str]) -> None:
        rows = directions(len(names), self.number + len(names))
        self.index.put(names, rows)
        self.truth.update(zip(names, rows, strict=True))

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        if self.truth:
            names = data.draw(st.lists(st.sampled_from([*self.truth]), unique=True))
            self.index.drop([*names, "never there"])
            for name in names:
                del self.truth[name]

    @rule()
    def go_on_with_a_copy(self) -> None:
        before, as_it_was = self.index, self.truth.copy()
        self.index = before.copy()
        self._put(["only in the copy"])
        check(before, as_it_was, directions(1, 5)[0])

    @invariant()
    def finds_what_is_nearest(self) -> None:
        for query in directions(3, 99):
            check(self.index, self.truth, query)

    @invariant()
    def has_codes_only_where_centroids_are_many(self) -> None:
        assert len(self.index) <= module.EXACT or not self.index.is_exact


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=30, stateful_step_count=12, deadline=None)


def test_ten_thousand_directions_and_more_are_found_by_code() -> None:
    rows, queries = directions(12_000, 1, 128), directions(50, 2, 128)
    index = CentroidIndex([str(place) for place in range(len(rows))], rows)
    assert not index.is_exact
    hits = 0
    for query, found in zip(queries, index.search(queries, 10), strict=True):
        hits += len({int(name) for name, _ in found} & set(np.argsort(-(rows @ query))[:10].tolist()))
    assert hits / 500 >= 0.95


def test_tombstones_of_all_that_is_near_leave_what_is_farther(
    coded_early: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CANDIDATES", 4)
    monkeypatch.setattr(module, "CANDIDATES_EACH", 1)
    rows = directions(100, 3)
    index = CentroidIndex([str(place) for place in range(100)], rows)
    near = np.argsort(-(rows @ rows[0]))[:15].tolist()
    index.drop([str(place) for place in near])
    assert not index.is_exact
    found = index.search(rows[:1], 2)[0]
    assert len(found) == 2
    assert not {int(name) for name, _ in found} & set(near)


def test_ids_and_widths_that_do_not_fit_are_refused() -> None:
    rows = directions(3, 0)
    with pytest.raises(InvalidInputError, match="2 of them different"):
        CentroidIndex(["a", "b", "a"], rows)
    with pytest.raises(InvalidInputError, match="give each an id"):
        CentroidIndex(["a"], rows)
    index = CentroidIndex(["a", "b", "c"], rows)
    with pytest.raises(DimensionMismatchError, match="width 2"):
        index.put(["d"], directions(1, 0, 2))
    assert index.search(rows, 0) == [[], [], []]


def test_a_bank_that_lived_recalls_what_one_read_from_its_bytes_does(coded_early: None) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, WIDTH))
    bank = Bank()
    for cycle in range(1, 9):
        rows = (centres[rng.integers(40, size=120)] + 0.05 * rng.normal(size=(120, WIDTH))).astype(np.float32)
        members = [Member(f"{cycle}-{at}", row, 0.5, "", "") for at, row in enumerate(rows)]
        bank.recall(rows[0])
        bank = bank.learn(members, BankConfig(grain=0.05), cycle=cycle, seed=cycle).bank
        again = Bank.from_bytes(bank.to_bytes())
        for query in rows[:20]:
            lived, read = bank.recall(query, 5), again.recall(query, 5)
            np.testing.assert_allclose([one.similarity for one in lived], [one.similarity for one in read], atol=1e-5)
            assert [one.pattern.count for one in lived] == [one.pattern.count for one in read]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, 3e38])
def test_a_query_without_direction_is_refused(bad: float) -> None:
    rows = [Member(str(at), row, 0.5, "", "") for at, row in enumerate(directions(8, 0))]
    bank = Bank().learn(rows, BankConfig(), cycle=1, seed=0).bank
    with pytest.raises(InvalidInputError, match="finite numbers"):
        bank.recall(np.full(WIDTH, bad, dtype=np.float32))
    with pytest.raises(InvalidInputError, match="one vector"):
        bank.recall(directions(2, 0))
