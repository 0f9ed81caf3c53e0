"""Candidates are found behind the host's back, and never in its way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from sona.attribution.candidates import CandidateFinder
from sona.attribution.preferences import Preferences
from sona.attribution.turns import ScoredResponse
from sona.checks import Int32
from sona.config import CandidatesConfig
from sona.errors import StoreCorruptError
from sona.storage.store import Store
from sona.types import Reply, Trajectory
from tests.reviews import NOW, ToldScorer, candidate, dependence, turn

SETTINGS = CandidatesConfig()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


def found_by(store: Store, says: object, *turns: Trajectory, model: object = None, **limits: int) -> CandidateFinder:
    """A finder that has looked at some turns."""
    scorer = ToldScorer(says)  # type: ignore[arg-type]
    finder = CandidateFinder(scorer, store.candidates, Preferences(store), replace(SETTINGS, **limits), model)  # type: ignore[arg-type]
    for one in turns:
        finder.offer(one)
    assert finder.wait_idle(10)
    return finder


class Answers:
    """Writes alternates, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[dict[str, object]] = []
        self._error = error

    def generate(self, prompt_ids: Int32, **how: object) -> Reply:
        self.asked.append({"prompt": prompt_ids.tolist(), **how})
        if self._error is not None:
            raise self._error
        return Reply(text="unaided", token_ids=(7,), prompt_ids=(1, 3), version="v0", finish_reason="stop")


def test_what_is_above_the_noise_floor_becomes_a_candidate(store: Store) -> None:
    nats = {"turn-0": 0.5, "turn-1": 0.009, "turn-2": -3.0, "turn-3": 0.01}
    finder = found_by(store, lambda one: [dependence(int(one.id[5:]), nats[one.id])], *map(turn, range(4)))
    finder.close()
    assert [one.trajectory_id for one in store.candidates.heaviest("new")] == ["turn-0", "turn-3"]
    seen = Preferences(store).seen
    assert (seen.turns, seen.responses, seen.above, seen.largest) == (4, 4, 2, 0.5)
    assert Preferences(store).floor == 0.01


def test_a_threshold_that_was_set_counts_instead_and_is_kept(store: Store) -> None:
    Preferences(store).set_threshold(1.0)
    found_by(store, lambda one: [dependence(0, 0.9)], turn(0)).close()
    assert store.candidates.counts()["new"] == 0
    assert Preferences(store).threshold == 1.0


def test_the_same_time_is_the_same_response(store: Store) -> None:
    finder = found_by(store, lambda one: [dependence(0), dependence(0)], turn(0), turn(0))
    finder.close()
    assert store.candidates.counts()["new"] == 1
    assert finder.seen().known == 3


def test_what_is_trained_or_without_a_time_is_none(store: Store) -> None:
    store.candidates.add([candidate(0)])
    store.candidates.change([1], "approved", by="ana")
    store.candidates.change([1], "sent", by="train")
    finder = found_by(store, lambda one: [dependence(0), dependence(1, at_ns=0)], turn(0))
    finder.close()
    assert store.candidates.counts()["new"] == 0
    assert (finder.seen().known, finder.seen().timeless) == (1, 1)


def test_a_turn_that_can_t_be_scored_costs_itself_alone(store: Store) -> None:
    def says(one: Trajectory) -> Sequence[ScoredResponse]:
        if one.id == "turn-0":
            raise RuntimeError("the \x1b[31mbackend\x1b[0m died")
        return [dependence(1)]

    finder = found_by(store, says, turn(0), turn(1))
    assert store.candidates.counts()["new"] == 1
    assert finder.seen().failed == 1
    assert finder.seen().last_error == "RuntimeError: the �[31mbackend�[0m died"
    finder.close()


def test_what_is_no_number_is_told_and_is_no_candidate(store: Store) -> None:
    nats = [float("nan"), float("inf"), 0.5]
    finder = found_by(store, lambda one: [dependence(place, value) for place, value in enumerate(nats)], turn(0))
    finder.close()
    assert [one.divergence for one in store.candidates.heaviest("new")] == [0.5]
    assert (finder.seen().failed, finder.seen().largest) == (2, 0.5)
    assert "divergence inf is no number" in finder.seen().last_error


def test_an_unreadable_trained_set_is_an_error_and_no_candidate(store: Store) -> None:
    store.candidates.add([candidate(0)])
    store._transact(lambda connection: connection.execute("UPDATE candidates SET payload = x'80'"))
    finder = found_by(store, lambda one: [dependence(0)], turn(0))
    assert finder.seen().failed == 1
    assert finder.seen().last_error.startswith(StoreCorruptError.__name__)
    finder.close()


def test_recording_never_waits_for_scoring(store: Store) -> None:
    go, begun = threading.Event(), threading.Event()

    def says(one: Trajectory) -> Sequence[ScoredResponse]:
        begun.set()
        assert go.wait(10)
        return []

    settings = replace(SETTINGS, max_waiting=2)
    finder = CandidateFinder(ToldScorer(says), store.candidates, Preferences(store), settings)
    finder.offer(turn(0))
    assert begun.wait(10)
    began = time.perf_counter()
    for place in range(1, 200):
        finder.offer(turn(place % 30))
    assert time.perf_counter() - began < 1.0
    assert (finder.seen().waiting, finder.seen().dropped) == (2, 197)
    go.set()
    assert finder.wait_idle(10)
    finder.close()
    finder.close()
    finder.offer(turn(0))
    assert finder.seen().turns == 3


def test_closing_leaves_what_waits_and_counts_it(store: Store) -> None:
    go, begun = threading.Event(), threading.Event()

    def says(one: Trajectory) -> Sequence[ScoredResponse]:
        begun.set()
        assert go.wait(10)
        return [dependence(0)]

    finder = CandidateFinder(ToldScorer(says), store.candidates, Preferences(store), SETTINGS)
    for place in range(3):
        finder.offer(turn(place))
    assert begun.wait(10)
    closing = threading.Thread(target=finder.close)
    closing.start()
    go.set()
    closing.join(10)
    assert not closing.is_alive()
    assert store.candidates.counts()["new"] == 1, "the turn under way was taken to its end"
    assert Preferences(store).seen.dropped == 2
    assert not [thread for thread in threading.enumerate() if thread.name == "sona-candidates"]


def test_nothing_of_an_erased_source_becomes_a_candidate(store: Store) -> None:
    go, begun = threading.Event(), threading.Event()

    def says(one: Trajectory) -> Sequence[ScoredResponse]:
        begun.set()
        assert go.wait(10)
        return [dependence(int(one.id[5:]))]

    finder = CandidateFinder(ToldScorer(says), store.candidates, Preferences(store), SETTINGS)
    for place, source in enumerate(("kept", "erased", "kept", "erased")):
        finder.offer(turn(place, source))
    assert begun.wait(10)
    threading.Timer(0.05, go.set).start()
    with finder.nothing_of("erased"):
        assert store.candidates.counts()["new"] == 1, "the turn under way ended first, so the erasure finds it"
        time.sleep(0.05)
        assert store.candidates.counts()["new"] == 1
    assert finder.wait_idle(10)
    finder.close()
    assert {one.source for one in store.candidates.heaviest("new")} == {"kept"}
    assert store.candidates.counts()["new"] == 2


# Alternates


def test_alternates_are_drawn_without_memories_as_they_should_be(store: Store) -> None:
    Preferences(store).set_alternates(True)
    model = Answers()
    found_by(store, lambda one: [dependence(0)], turn(0), model=model).close()
    assert store.candidates.get(1).alternate == "unaided"
    (asked,) = model.asked
    assert asked["prompt"] == [1, 3]
    assert (asked["temperature"], asked["top_p"], asked["top_k"]) == (0.6, 0.95, 20)


def test_they_are_off_until_they_are_wanted_and_then_what_is_there_gets_them(store: Store) -> None:
    model = Answers()
    finder = found_by(store, lambda one: [dependence(int(one.id[5:]))], turn(0), turn(1), model=model)
    assert not model.asked
    Preferences(store).set_alternates(True)
    finder.fill_alternates()
    assert finder.wait_idle(10)
    finder.close()
    assert [one.alternate for one in store.candidates.heaviest("new")] == ["unaided", "unaided"]


def test_one_that_fails_is_logged_and_leaves_the_candidate_without(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    Preferences(store).set_alternates(True)
    finder = found_by(store, lambda one: [dependence(0)], turn(0), model=Answers(RuntimeError("no room")))
    finder.close()
    assert store.candidates.get(1).alternate is None
    assert "candidate 1 has no alternate answer" in caplog.text
    assert (finder.seen().failed_alternates, finder.seen().last_error) == (1, "RuntimeError: no room")


def test_the_threshold_moves_tenfold_within_bounds(store: Store) -> None:
    own = Preferences(store)
    assert own.threshold == 0.0
    own.set_floor(0.25)
    assert own.threshold == 0.25
    assert own.scale_threshold(1) == 2.5
    assert Preferences(store).scale_threshold(-2) == pytest.approx(0.025)
    assert own.set_threshold(1e-300) == 1e-12
    store.write_state("review/threshold", b"nan")
    with pytest.raises(StoreCorruptError, match="no number of nats"):
        _ = own.threshold


def test_a_context_is_kept_by_its_end(store: Store) -> None:
    long = dependence(0)
    said = [replace_tail(long, "begin " + "x" * 50 + " end")]
    found_by(store, lambda one: said, turn(0), context_tail=5).close()
    assert store.candidates.get(1).context_tail == "x end"
    assert store.candidates.get(1).at_ns == NOW


def replace_tail(one: ScoredResponse, tail: str) -> ScoredResponse:
    fields = {name: getattr(one, name) for name in one.__dataclass_fields__}
    return ScoredResponse(**{**fields, "context_tail": tail})
