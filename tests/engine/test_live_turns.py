"""A conversation that grows is scored turn by turn, each turn by its own tokens, exactly as from its beginning."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

import sona
from sona.attribution.context import Context, Segment
from sona.attribution.conversations import Conversation
from sona.attribution.leave_one_out import LeaveOneOut
from sona.attribution.marked import from_trajectory
from sona.attribution.turns import ScoredResponse
from sona.attribution.weights import WeightsInMemory
from sona.candidate import MemoryWeight
from sona.config import CandidatesConfig
from sona.errors import ScoringError
from sona.memories import Memories, conversation_of
from sona.memory_spans import METADATA_KEY, find_spans, spans_as_text
from sona.types import Message, Trajectory
from tests.attribution.models import watched
from tests.engine.small import SMALL, open_small

SETTINGS = CandidatesConfig(max_age_s=0.0)
NOTES = ("amber falcon harbour", "silva is on call until monday", "the lamp is in the study", "rain is near the bridge")
EXACT = 1e-4


class Rows(WeightsInMemory):
    """The weights of one source."""

    def of(self, source: str) -> Rows:
        return self

    def get(self, key: str, source: str = "default") -> MemoryWeight | None:
        return self.weight_of(key)


def memories(engine: sona.SyncEngine, settings: CandidatesConfig = SETTINGS) -> tuple[Memories, Rows]:
    rows = Rows()
    return Memories(rows, engine.model, settings, engine.get), rows  # type: ignore[arg-type]


def talk(turns: int, source: str = "bot", session: str | None = None, first: int = 0) -> list[Trajectory]:
    """A conversation as it is recorded: each turn with all before it, and a memory of its own."""
    said: list[Message] = [Message(role="system", content="be kind to all who ask")]
    recorded = []
    for turn in range(first, first + turns):
        note = NOTES[turn % len(NOTES)]
        said.append(Message(role="user", content=f"{note}\nwhat is it that i was told before the number {turn} ?"))
        spans = find_spans(said, {f"note-{place}": text for place, text in enumerate(NOTES)})
        metadata = {METADATA_KEY: spans_as_text(spans)} | ({} if session is None else {"session": session})
        answer = f"{note} it was"
        recorded.append(Trajectory(source=source, messages=tuple(said), response=answer, metadata=metadata))
        said.append(Message(role="assistant", content=answer))
    return recorded


def assert_same(one: list[ScoredResponse], other: list[ScoredResponse]) -> None:
    assert [found.divergence for found in one] == pytest.approx([found.divergence for found in other], abs=EXACT)
    for mine, theirs in zip(one, other, strict=True):
        assert {m.key: m.nats for m in mine.mattered} == pytest.approx(
            {m.key: m.nats for m in theirs.mattered}, abs=EXACT
        )


def test_each_turn_is_scored_as_from_its_beginning(tmp_path: Path) -> None:
    with open_small(tmp_path / "store") as engine:
        (live, own), (fresh, others) = memories(engine), memories(engine, replace(SETTINGS, live_bytes=0))
        for turn in talk(4):
            found = live.score_turn(turn)
            assert_same(found, fresh.score_turn(turn))
            assert found[0].divergence > 1.0
        assert live.live_bytes > fresh.live_bytes == 0
        seen = [(rows.weight_of("note-0"), rows.weight_of("note-1")) for rows in (own, others)]
        for mine, theirs in zip(*seen, strict=True):
            assert mine is not None
            assert theirs is not None
            assert mine.weight == pytest.approx(theirs.weight, abs=4 * EXACT), "a memory is worth the same"


def test_a_turn_costs_its_own_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = watched(monkeypatch)
    with open_small(tmp_path / "store") as engine:
        (live, _), (fresh, _) = memories(engine), memories(engine, replace(SETTINGS, live_bytes=0))
        assert live.noise_floor == fresh.noise_floor > 0
        totals = []
        for scorer in (live, fresh):
            counts = []
            for turn in talk(4):
                read.clear()
                scorer.score_turn(turn)
                counts.append(sum(read))
            totals.append(counts)
        assert totals[0][-1] < totals[1][-1] / 3
        assert totals[0][-1] < 3 * len(engine.model.encode_prompt(talk(4)[-1].messages)), "not of a pass a memory"


def test_two_conversations_that_take_turns_both_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = watched(monkeypatch)
    with open_small(tmp_path / "store") as engine:
        (live, _), (alone, _) = memories(engine), memories(engine)
        one, other = talk(3), talk(3, first=1)
        for turn in one:
            read.clear()
            alone.score_turn(turn)
        wanted = sum(read)
        for mine, theirs in zip(one, other, strict=True):
            read.clear()
            live.score_turn(mine)
            last = sum(read)
            live.score_turn(theirs)
        assert last == wanted, "the other one has not disturbed it"


def test_the_turns_of_a_conversation_have_one_name() -> None:
    assert len({conversation_of(turn) for turn in talk(4)}) == 1
    assert len({conversation_of(turn) for turn in (talk(1)[0], talk(1, source="other")[0], talk(1, first=1)[0])}) == 3
    session = {conversation_of(turn) for turn in (*talk(3, session="s"), *talk(3, session="s", first=2))}
    assert len(session) == 1
    assert session != {conversation_of(turn) for turn in talk(1, session="t")}


def test_what_is_kept_is_bounded_by_the_setting(tmp_path: Path) -> None:
    with open_small(tmp_path / "store") as engine:
        (free, _), (fresh, _) = memories(engine), memories(engine, replace(SETTINGS, live_bytes=0))
        for turn in talk(3):
            free.score_turn(turn)
        most = math.ceil(free.live_bytes * 0.7)
        live, _ = memories(engine, replace(SETTINGS, live_bytes=most))
        for source in ("a", "b", "c"):
            for turn in talk(3, source):
                assert_same(live.score_turn(turn), fresh.score_turn(turn))
                assert 0 < live.live_bytes <= most


def test_a_swap_lets_go_of_what_was_read(tmp_path: Path) -> None:
    watching = replace(SMALL, candidates=CandidatesConfig(watch=True))
    with open_small(tmp_path / "store", config=watching) as engine:
        for turn in talk(2):
            engine.record(turn)
        engine.flush()
        assert engine.candidates.wait_scored(60)
        assert engine.memories.live_bytes > 0
        engine._engine._started().serve_current(fall_back=None)
        assert engine.memories.live_bytes == 0
        for turn in talk(3)[2:]:
            engine.record(turn)
        engine.flush()
        assert engine.candidates.wait_scored(60)
        assert engine.memories.live_bytes > 0


def test_a_swap_amid_a_turn_waits_for_nobody_and_drops_it_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_small(tmp_path / "store") as engine:
        live, _ = memories(engine)
        first, second = talk(2)
        live.score_turn(first)
        inner, told = live._turn, []

        def amid(*given: object) -> list[ScoredResponse]:
            live.forget_read()
            told.append(live.live_bytes)
            return inner(*given)  # type: ignore[arg-type]

        monkeypatch.setattr(live, "_turn", amid)
        fresh, _ = memories(engine, replace(SETTINGS, live_bytes=0))
        assert_same(live.score_turn(second), fresh.score_turn(second))
        assert told[0] > 0, "what is being used stays until the turn has ended"
        assert live.live_bytes == 0


def test_a_swap_before_the_conversation_s_turn_leaves_it_nothing_of_the_version_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_small(tmp_path / "store") as engine:
        live, _ = memories(engine)
        (turn,) = talk(1)
        live.score_turn(turn)
        assert live._conversations is not None
        of, holds = live._conversations.of, []
        hold = live._scorer.hold  # type: ignore[union-attr]

        @contextmanager
        def late(name: str) -> Iterator[Conversation]:
            holds.append("a swap")
            live.forget_read()
            with of(name) as found:
                yield found

        @contextmanager
        def noted() -> Iterator[LeaveOneOut]:
            holds.append("held")
            with hold() as held:
                yield held

        monkeypatch.setattr(live._conversations, "of", late)
        monkeypatch.setattr(live._scorer, "hold", noted)
        live.score_turn(turn)
        assert holds[:2] == ["a swap", "held"], "what is scored in the new conversation is of the version after"


def test_a_turn_that_fails_leaves_no_more_than_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_small(tmp_path / "store") as engine:
        live, _ = memories(engine)

        def broken(*given: object) -> list[ScoredResponse]:
            raise ScoringError("broken")

        monkeypatch.setattr(live, "_turn", broken)
        monkeypatch.setattr("sona.attribution.conversations.MOST", 2)
        for source in "abcd":
            with pytest.raises(ScoringError, match="broken"):
                live.score_turn(talk(1, source)[0])
        assert live._conversations is not None
        assert len(live._conversations) == 2


def test_an_erasure_takes_what_was_read_along(tmp_path: Path) -> None:
    watching = replace(SMALL, candidates=CandidatesConfig(watch=True))
    with open_small(tmp_path / "store", config=watching) as engine:
        for turn in talk(2):
            engine.record(turn)
        engine.flush()
        assert engine.candidates.wait_scored(60)
        assert engine.memories.live_bytes > 0
        engine.erase("bot")
        assert engine.memories.live_bytes == 0
        assert len(engine.memories._conversations or ()) == 0


def test_a_conversation_keeps_no_texts(tmp_path: Path) -> None:
    with open_small(tmp_path / "store") as engine:
        scorer = memories(engine)[0]._scorer
        assert scorer is not None
        kept, contexts = Conversation(scorer, 0), [from_trajectory(turn) for turn in talk(3)]
        for context in contexts:
            kept.note(context, context.responses[-1], dict.fromkeys(context.keys, 1.0))
        assert kept.worth(contexts[-1])["note-0"] == 3.0
        assert NOTES[0] not in repr(vars(kept))
        assert len(repr((kept._seen, kept._digest))) < 200, "however long the conversation is"
        other = Context((Segment("system", "another beginning"), *contexts[-1].segments[1:]))
        kept.note(other, other.responses[-1], {"note-2": 1.0})
        assert set(kept.worth(other)) == {"note-2"}, "what does not go on as it began begins anew"
