"""The bank from cycle to cycle: nothing is lost from count, ids last, what is read back goes on as what lived."""

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sona.bank.bank import Bank
from sona.bank.pattern import Member
from sona.bank.placing import DUPLICATE, MOST_STRAYS
from sona.bank.vectors import unit_rows
from sona.bank.verdicts import ALL
from sona.checks import Float32
from sona.config import BankConfig
from sona.errors import DimensionMismatchError, InvalidInputError
from sona.patterns import Verdict

WIDTH = 64
CENTRES = unit_rows(np.random.default_rng(0).normal(size=(40, WIDTH)).astype(np.float32))


def drawn(groups: "list[int] | range", n: int, seed: int, noise: float = 0.8) -> tuple[list[Member], list[int]]:
    rng = np.random.default_rng(seed)
    truth = rng.choice(list(groups), n)
    rows = CENTRES[truth] + noise / WIDTH**0.5 * rng.normal(size=(n, WIDTH))
    return members(rows.astype(np.float32), seed), truth.tolist()


def members(rows: Float32, cycle: int) -> list[Member]:
    return [
        Member(f"{cycle}-{at}", row, (at % 5) / 4 if at % 3 else None, f"q {cycle} {at}", "a", (f"tool:{at % 4}",))
        for at, row in enumerate(rows)
    ]


def lived(cycles: "list[list[Member]]", config: BankConfig = BankConfig()) -> Bank:  # noqa: B008 - frozen
    bank = Bank()
    for number, some in enumerate(cycles, start=1):
        bank = bank.learn(some, config, cycle=number, seed=number).bank
    return bank


def test_patterns_are_the_groups_and_ids_mean_the_same_for_good() -> None:
    bank, owners = Bank(), dict[str, set[int]]()
    for cycle in range(1, 31):
        some, truth = drawn(range(12), 100, cycle)
        placed = bank.learn(some, BankConfig(), cycle=cycle, seed=cycle)
        bank = placed.bank
        if cycle > 3:
            for name, group in zip(placed.pattern_ids, truth, strict=True):
                if name:
                    owners.setdefault(name, set()).add(group)
    large = [pattern for pattern in bank.patterns if pattern.count > 20]
    assert len(large) == 12
    assert all(len(owners[pattern.id]) == 1 for pattern in large)
    assert bank.learned == 3000


def test_a_new_group_founds_a_pattern_and_moves_no_other_id() -> None:
    bank = lived([drawn(range(8), 120, cycle)[0] for cycle in range(1, 6)])
    asked = np.stack([member.embedding for member in drawn(range(8), 200, 99)[0]])
    before = [pattern.id for pattern in bank.nearest(asked) if pattern is not None]
    some, truth = drawn([*range(8), 20], 120, 6)
    placed = bank.learn(some, BankConfig(), cycle=6, seed=6)
    new = {name for name, group in zip(placed.pattern_ids, truth, strict=True) if group == 20}
    assert len(new) == 1
    assert new.isdisjoint(before)
    assert [pattern.id for pattern in placed.bank.nearest(asked) if pattern is not None] == before
    (born,) = [one for one in placed.bank.changes if one.cycle == 6 and one.pattern in new]
    assert (born.change, born.count) == ("born", truth.count(20))


def test_patterns_that_turn_out_to_be_several_are_cut_and_nothing_is_lost() -> None:
    cycles = [drawn(range(12), 64, cycle, noise=1.5) for cycle in range(1, 21)]
    bank, sizes = Bank(), []
    for number, (some, _) in enumerate(cycles, start=1):
        bank = bank.learn(some, BankConfig(), cycle=number, seed=number).bank
        sizes.append(len(bank.patterns))
        check(bank, BankConfig())
    assert sizes[0] < 12  # so few rows amid so much noise don't show them
    assert 12 <= sizes[-1] <= 14
    cuts = [one for one in bank.changes if one.change == "split"]
    assert cuts
    assert all(one.other and one.pattern != one.other for one in cuts)
    assert bank.learned == 20 * 64


def test_far_rows_wait_and_found_a_pattern_when_more_of_their_kind_come() -> None:
    bank = lived([drawn(range(6), 120, cycle)[0] for cycle in range(1, 4)])
    for cycle in range(4, 9):
        some, _ = drawn(range(6), 100, cycle)
        one = members(unit_rows((CENTRES[30] + 0.02 * np.eye(WIDTH)[cycle])[None].astype(np.float32)), 100 + cycle)
        placed = bank.learn([*some, *one], BankConfig(), cycle=cycle, seed=cycle)
        bank = placed.bank
    home = placed.pattern_ids[-1]
    found = {pattern.id: pattern for pattern in bank.patterns}[home]
    assert found.count >= 3  # with those that had waited
    assert found.spread > 0.95
    assert bank.learned == 3 * 120 + 5 * 101


def test_rows_in_any_direction_move_no_centroid() -> None:
    clean = [drawn(range(8), 100, cycle)[0] for cycle in range(1, 9)]
    rng = np.random.default_rng(3)
    noise = [members(rng.normal(size=(6, WIDTH)).astype(np.float32), 100 + cycle) for cycle in range(1, 9)]
    bank = lived([clean[0], *([*some, *far] for some, far in zip(clean[1:], noise[1:], strict=True))])
    nearest = np.stack([pattern.vector() for pattern in bank.patterns if pattern.count > 30])
    rows = unit_rows(CENTRES[:8] - np.stack([m.embedding for m in clean[0]]).mean(0))
    assert (rows @ nearest.T).max(1).min() > 0.97


def test_what_nobody_asks_any_more_is_forgotten_and_told() -> None:
    config = BankConfig(half_life=2, min_weight=1.0)
    bank = lived([drawn(range(6), 60, 1)[0], *(drawn([0, 1], 40, cycle)[0] for cycle in range(2, 20))], config)
    assert len([pattern for pattern in bank.patterns if pattern.count > 20]) == 2
    pruned = [one for one in bank.changes if one.change == "pruned"]
    assert len(pruned) >= 4
    assert bank.learned == 60 + 18 * 40


def test_no_more_patterns_than_allowed_and_the_fuller_the_coarser() -> None:
    cycles = [drawn(range(40), 200, cycle, noise=0.4)[0] for cycle in range(1, 6)]
    assert len(lived(cycles).patterns) >= 40
    few = lived(cycles, BankConfig(max_patterns=10))
    assert len(few.patterns) <= 10
    assert few.learned == 1000


def test_one_query_repeated_for_weeks_is_one_pattern() -> None:
    row = CENTRES[3] + CENTRES[4]
    bank = lived([members(np.repeat(row[None], 50, axis=0), cycle) for cycle in range(1, 11)])
    (pattern,) = bank.patterns
    assert pattern.count == 500
    assert pattern.spread == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0])
def test_rows_without_direction_are_refused_and_change_nothing(bad: float) -> None:
    bank = lived([drawn(range(4), 60, 1)[0]])
    before = bank.to_bytes()
    with pytest.raises(InvalidInputError, match="finite numbers, not all zero"):
        bank.learn(members(np.full((1, WIDTH), bad, dtype=np.float32), 2), BankConfig(), cycle=2, seed=2)
    with pytest.raises(DimensionMismatchError, match="width 3"):
        bank.learn(members(np.ones((2, 3), dtype=np.float32), 2), BankConfig(), cycle=2, seed=2)
    assert bank.to_bytes() == before


def check(bank: Bank, config: BankConfig) -> None:
    """What holds of every bank."""
    patterns = {pattern.id: pattern for pattern in bank.patterns}
    assert len(patterns) == len(bank.patterns) <= config.max_patterns
    for name, pattern in patterns.items():
        cells = bank._shelf.body(name).cells
        assert len(cells) <= config.cells
        assert sum(cell.count for cell in cells) == pattern.count
        rated = [cell.verdicts.get(ALL, Verdict()) for cell in cells]
        assert sum(verdict.count for verdict in rated) == pattern.verdict.count
        if pattern.verdict.count:
            mean = sum(one.count * one.mean for one in rated) / pattern.verdict.count
            assert pattern.verdict.mean == pytest.approx(mean, abs=1e-6)
        total = np.stack([cell.vector() for cell in cells]).sum(0, dtype=np.float64)
        if np.linalg.norm(total) > 1e-3 * pattern.count:
            np.testing.assert_allclose(pattern.vector(), total / np.linalg.norm(total), atol=1e-4)
    if len(patterns) > 1:
        centroids = np.stack([pattern.vector() for pattern in bank.patterns])
        cosines = centroids @ centroids.T - 2 * np.eye(len(centroids))
        assert cosines.max() <= DUPLICATE + 1e-5
    assert len(bank._shelf.strays) <= MOST_STRAYS


class Life(RuleBasedStateMachine):
    """Cycles of any traffic, and restarts in between."""

    def __init__(self) -> None:
        super().__init__()
        self.bank, self.cycle, self.learned, self.seen = Bank(), 0, 0, set[str]()
        self.config = BankConfig(half_life=4, min_weight=0.6, max_patterns=12, cells=4, exemplars=2)

    @rule(
        groups=st.lists(st.integers(0, 39), min_size=1, max_size=6, unique=True),
        n=st.integers(1, 70),
        noise=st.sampled_from([0.0, 0.3, 1.0, 3.0]),
        skipped=st.integers(0, 6),
        seed=st.integers(0, 2**31),
    )
    def learn(self, groups: list[int], n: int, noise: float, skipped: int, seed: int) -> None:
        self.cycle += 1 + skipped
        some, _ = drawn(groups, n, seed, noise)
        again = self.bank.learn(some, self.config, cycle=self.cycle, seed=seed)
        placed = self.bank.learn(some, self.config, cycle=self.cycle, seed=seed)
        assert placed.bank.to_bytes() == again.bank.to_bytes()
        self.bank = placed.bank
        self.learned += n
        alive = {pattern.id for pattern in self.bank.patterns}
        assert set(placed.pattern_ids) <= alive | {""}
        reborn = {one.pattern for one in self.bank.changes if one.cycle == self.cycle and one.change == "born"}
        assert reborn.isdisjoint(self.seen)
        self.seen |= alive

    @precondition(lambda self: self.cycle)
    @rule()
    def restart(self) -> None:
        read = Bank.from_bytes(self.bank.to_bytes())
        assert read.to_bytes() == self.bank.to_bytes()
        self.bank = read

    @precondition(lambda self: self.bank.patterns)
    @rule(n=st.integers(1, 40), seed=st.integers(0, 2**31))
    def what_is_read_back_goes_on_the_same(self, n: int, seed: int) -> None:
        some, _ = drawn(range(9), n, seed)
        asked = np.stack([member.embedding for member in some])
        read = Bank.from_bytes(self.bank.to_bytes())
        np.testing.assert_allclose(read.predict(asked), self.bank.predict(asked), atol=1e-5)
        one, other = (bank.learn(some, self.config, cycle=self.cycle + 1, seed=seed) for bank in (self.bank, read))
        assert one.pattern_ids == other.pattern_ids
        assert one.bank.to_bytes() == other.bank.to_bytes()

    @precondition(lambda self: self.bank.patterns)
    @rule()
    def put_into_families(self) -> None:
        self.bank = self.bank.with_families()
        assert all(pattern.family for pattern in self.bank.patterns)

    @invariant()
    def nothing_is_lost_from_count(self) -> None:
        assert self.bank.learned == self.learned
        check(self.bank, self.config)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=40, stateful_step_count=12, deadline=None)


@given(st.binary(max_size=200))
def test_foreign_bytes_are_no_bank(data: bytes) -> None:
    from sona.errors import StoreCorruptError

    with pytest.raises(StoreCorruptError, match="roll back"):
        Bank.from_bytes(data)


def test_a_bank_of_the_first_form_is_read_and_goes_on() -> None:
    """Its bytes, as a version of sona wrote them before there were cells."""
    centroid, width = unit_rows(CENTRES[:2]), WIDTH
    first = {
        "width": width,
        "mean": np.zeros(width, "<f4").tobytes(),
        "patterns": [
            {
                "id": f"p1-{at}",
                "centroid": row.tobytes(),
                "count": 40,
                "quality_count": 30,
                "quality_mean": 0.75,
                "quality_m2": 2.0,
                "spread": 0.8,
                "exemplars": [
                    {"trajectory_id": "a", "quality": 1.0, "similarity": 0.9, "prompt": "q", "response": "a"}
                ],
                "born_cycle": 1,
                "touched_cycle": 3,
            }
            for at, row in enumerate(centroid)
        ],
    }
    bank = Bank.from_bytes(msgspec.msgpack.encode(first))
    assert [(one.id, one.count, one.verdict.count, one.verdict.mean) for one in bank.patterns] == [
        ("p1-0", 40, 30, 0.75),
        ("p1-1", 40, 30, 0.75),
    ]
    rows = (CENTRES[[0, 1] * 10] + 0.02).astype(np.float32)
    placed = bank.learn(members(rows, 4), BankConfig(), cycle=4, seed=0)
    assert set(placed.pattern_ids) == {"p1-0", "p1-1"}
    assert placed.bank.learned == 100
    check(placed.bank, BankConfig())
    assert Bank.from_bytes(placed.bank.to_bytes()).patterns == placed.bank.patterns
    assert Bank.from_bytes(msgspec.msgpack.encode({"width": 0, "mean": b"", "patterns": []})).patterns == ()
