"""What memories are worth: what ``engine.memories`` is."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from sona.asked_model import AskedModel
from sona.attribution.ablate import Ablated, ablate
from sona.attribution.context import Context
from sona.attribution.incremental import Incremental, score_incremental
from sona.attribution.marked import from_messages, from_trajectory
from sona.attribution.matrix import MemoryMatrix, Row
from sona.attribution.memories import MatrixRun, score_memories
from sona.attribution.redundancy import redundancies
from sona.attribution.turns import ScoredResponse
from sona.attribution.weights import after, first_weight
from sona.candidate import Mattered, MemoryWeight
from sona.config import CandidatesConfig
from sona.errors import InvalidInputError, ModelError, ScoringError
from sona.memory_spans import question_of
from sona.ports import MemoryWeights, Report, Stored, ignore_progress
from sona.types import Message, Trajectory

if TYPE_CHECKING:
    from sona.attribution.conversations import Conversation, LiveConversations
    from sona.attribution.leave_one_out import LeaveOneOut
    from sona.serving.local import LocalModel

RUNS = 32
"""Ablations of a turn whose memories stand in for each other."""
Scorable = str | Trajectory | Context | Sequence[Message]
"""What has memories and responses; a text is a trajectory's id."""
SESSION = "session"
"""Under this key a trajectory's metadata may say which conversation it is a turn of."""
KNOWN_TIMES = 3
"""A memory that was scored so often is known."""


class SourceWeightStore(MemoryWeights, Protocol):
    """The store's weights."""

    def of(self, source: str) -> _OfSource:
        """Those of one source."""

    def remove(self, keys: Sequence[str], source: str = "default") -> None:
        """Forget some."""


class _OfSource(Protocol):
    def weight_of(self, key: str) -> MemoryWeight | None: ...

    def write_weight(self, weight: MemoryWeight) -> None: ...


class Memories:
    """Weights that are kept, and scores that are made. Safe to call from any thread; scoring waits for the model."""

    def __init__(
        self,
        rows: SourceWeightStore,
        model: LocalModel | None,
        settings: CandidatesConfig,
        find: Callable[[str], Stored],
    ) -> None:
        self._rows, self._model, self._settings, self._find = rows, model, settings, find
        self._closing = threading.Event()
        self._asked: AskedModel | None = None
        self._scorer: LeaveOneOut | None = None
        self._conversations: LiveConversations | None = None
        if model is not None:
            from sona.attribution.conversations import LiveConversations  # torch is there by now, as the model is
            from sona.attribution.leave_one_out import LeaveOneOut

            self._asked = AskedModel(model)
            self._scorer = LeaveOneOut(self._asked)
            self._conversations = LiveConversations(self._scorer, settings.live_bytes)

    # ---------------------------------------------------------------------------------------------- what is kept

    def get(self, key: str, source: str = "default") -> MemoryWeight | None:
        """What a memory was worth so far; None where it was never scored."""
        return self._rows.get(key, source)

    def put(self, weights: Sequence[MemoryWeight]) -> None:
        """Replace the weights of these memories, durably, all or none."""
        self._rows.put(weights)

    def of(self, source: str) -> _OfSource:
        """Those of one source, for whoever scores its memories one by one."""
        return self._rows.of(source)

    def remove(self, keys: Sequence[str], source: str = "default") -> None:
        """Forget memories that the host has no more."""
        self._rows.remove(keys, source)

    def oldest(self, limit: int, source: str = "default") -> list[MemoryWeight]:
        """Those that were not scored for the longest time, first."""
        return self._rows.oldest(limit, source)

    def prune_candidates(
        self, below: float | None = None, source: str = "default", *, min_times: int = KNOWN_TIMES, limit: int = 100
    ) -> list[MemoryWeight]:
        """Memories that a host can do without: scored at least ``min_times`` times and worth less than ``below`` nats
        (None: the model's noise), the least first.
        """
        if below is None:
            below = self.noise_floor if self._scorer is not None else 0.01
        return self._rows.prune_candidates(below, source, min_times=min_times, limit=limit)

    def ranking(self, source: str = "default") -> Callable[[str, float], float]:
        """A function of a memory's key and its likeness to a query, to sort by: the likeness times .5 + w / (1 + w) of
        a memory that is known to be worth w nats, so that one of no worth counts half; times 1 of any other.
        """

        def rank(key: str, likeness: float) -> float:
            known = self._rows.get(key, source)
            if known is None or known.times < KNOWN_TIMES:
                return likeness
            worth = max(known.weight, 0.0)
            share = 0.5 + worth / (1.0 + worth)
            return likeness * share if likeness >= 0 else likeness / share

        return rank

    # ---------------------------------------------------------------------------------------------- what is measured

    @property
    def noise_floor(self) -> float:
        """Nats that a response's total may move by rounding alone; nothing below is a finding."""
        return self._served[1].noise_floor

    def score(
        self,
        what: Scorable,
        memories: Mapping[str, str] | None = None,
        *,
        strip_all: bool = True,
        on_row: Callable[[Row], None] = lambda row: None,
        report: Report = ignore_progress,
        stop: threading.Event | None = None,
    ) -> MemoryMatrix:
        """Every memory against every response, exactly: what leaving it out does to the response's log-probability.

        Args:
            what: a recorded trajectory or its id, a context, or a conversation with its responses.
            memories: key to text, where ``what`` does not mark them itself.
            strip_all: leave out all at once, too, so that memories that stand in for each other show.
            on_row: told each memory's row as it is done.
            report: told how far it is; what it raises ends the work.
            stop: set it to end the work after the row under way; what is done is in the result.

        Raises:
            ModelError: no model, or its template refuses the context.
            InvalidInputError: nothing to score, or a turn that is longer than the model takes.
            UnknownIdError: no trajectory has this id.
        """
        context = self._context(what, memories)
        asked, scorer, model = self._served
        with asked.asked(context):
            return score_memories(context, model, scorer, strip_all=strip_all, on_row=on_row, report=report, stop=stop)

    def ablate(
        self,
        what: Scorable,
        memories: Mapping[str, str] | None = None,
        *,
        runs: int = 64,
    ) -> Ablated:
        """By random ablations and a LASSO on log-odds (:func:`sona.attribution.ablate.ablate`): it also finds memories
        that say the same, of which leaving one out changes nothing.
        """
        context = self._context(what, memories)
        asked, scorer, model = self._served
        with asked.asked(context):
            return ablate(context, model, scorer, runs=runs)

    def score_turn(self, trajectory: Trajectory) -> list[ScoredResponse]:
        """What a recorded turn's answer depends on; and of its memories, some that were not scored for long get their
        weight anew. [] where none is marked. It is what ``engine.candidates`` is fed with.

        A conversation that grows is read on from its last turn, within ``candidates.live_bytes``: one whose metadata
        have the same ``session``, or else one that begins with the same question and answer, of the same source.
        """
        asked, scorer, model = self._served
        if not trajectory.messages or not trajectory.response.strip():
            return []
        context = from_trajectory(trajectory)
        if not context.keys:
            return []
        assert self._conversations is not None
        name = conversation_of(trajectory)
        # The conversation first: a swap that comes before it has its turn leaves it nothing of the version before.
        with asked.asked(context), self._conversations.of(name) as conversation, scorer.hold() as held:
            return self._turn(trajectory, context, held, model, conversation)

    def forget_read(self) -> None:
        """Let go of what was read of growing conversations: another version answers, or a source was
        erased. It waits for nobody.
        """
        if self._conversations is not None:
            self._conversations.forget()

    @property
    def live_bytes(self) -> int:
        """Keys and values of growing conversations that are in memory now."""
        return 0 if self._conversations is None else self._conversations.kept_bytes

    def close(self) -> None:
        """End the turn that is being scored, after the memory under way."""
        self._closing.set()

    def _turn(
        self,
        trajectory: Trajectory,
        context: Context,
        scorer: LeaveOneOut,
        model: LocalModel,
        conversation: Conversation,
    ) -> list[ScoredResponse]:
        last = context.responses[-1]
        live = conversation.live.through(scorer)
        run = MatrixRun(context, model, live, strip_all=True, responses=[last], stop=self._closing)
        rows = {row.key: row for row in run.rows()}
        if self._closing.is_set():
            return []
        whole = rows[""]
        if whole.failure:
            raise ScoringError(f"trajectory {trajectory.id!r}: {whole.failure}")
        if not len(whole.nats):  # all of the response is thinking
            return []
        singles = {row.key: float(row.nats[0]) for row in rows.values() if row.key and not row.failure}
        conversation.note(context, last, singles)
        if redundancies(run.matrix()):  # by itself none of them seems to matter
            found = ablate(context, model, scorer, runs=RUNS)
            singles = dict(zip(found.keys, found.weights[:, found.responses.index(last)].tolist(), strict=True))
            self._weigh(trajectory.source, singles)
        else:
            weights = self._rows.of(trajectory.source)
            own, told = self._incremental, conversation.worth(context)
            for _ in score_incremental(context, model, scorer, weights, own, told=told, stop=self._closing):
                pass
        ids = trajectory.prompt_array()
        response = trajectory.response_array()
        return [
            ScoredResponse(
                at_ns=trajectory.created_ns,
                divergence=float(whole.nats[0]),
                context_ids=model.encode_prompt(trajectory.messages) if ids is None else ids,
                bare_ids=model.encode_prompt(question_of(trajectory)),
                continuation_ids=model.encode_response(trajectory.response) if response is None else response,
                response=trajectory.response,
                context_tail="\n".join(f"{one.role}: {one.content}" for one in trajectory.messages),
                entry=len(trajectory.messages),
                mattered=_mattered(singles, scorer.noise_floor),
            )
        ]

    def _weigh(self, source: str, nats: Mapping[str, float]) -> None:
        """Weights of memories that hold an answer up together, as ablations share it out among them."""
        store, now_ns = self._rows.of(source), time.time_ns()
        for key, value in nats.items():
            if math.isfinite(value):
                known, worth = store.weight_of(key), max(value, 0.0)
                store.write_weight(after(known, worth, now_ns) if known else first_weight(key, worth, now_ns))

    @property
    def _incremental(self) -> Incremental:
        own = self._settings
        return Incremental(max_age_s=own.max_age_s, limit=own.weighed_a_turn)

    def _context(self, what: Scorable, memories: Mapping[str, str] | None) -> Context:
        if isinstance(what, Context):
            return what
        if isinstance(what, str):
            what = self._find(what).trajectory
        if isinstance(what, Trajectory):
            return from_trajectory(what, memories)
        return from_messages(what, memories or {})

    @property
    def _served(self) -> tuple[AskedModel, LeaveOneOut, LocalModel]:
        if self._asked is None or self._scorer is None or self._model is None:
            raise ModelError(
                "this engine has no model to score memories with; open it with model='path/or/hub-id' (or 'tiny')"
            )
        return self._asked, self._scorer, self._model


def conversation_of(trajectory: Trajectory) -> str:
    """A name that the turns of one conversation have in common: of its source, and its ``session`` where the metadata
    name one; else of its messages without memories up to the first answer.
    """
    session = trajectory.metadata.get(SESSION)
    if session is not None:
        begin: list[object] = [session]
    else:
        said = (*question_of(trajectory), Message(role="assistant", content=trajectory.response))
        first = next(place for place, message in enumerate(said) if message.role == "assistant")
        begin = [(message.role, message.content) for message in said[: first + 1]]
    told = msgspec.json.encode([trajectory.source, session is None, begin])
    return hashlib.sha256(told).hexdigest()


def _mattered(nats: Mapping[str, float], noise_floor: float) -> list[Mattered]:
    """The memories that made the response likelier beyond noise, heaviest first."""
    found = [Mattered(key=key, nats=value) for key, value in nats.items() if value > noise_floor]  # NaN is not
    return sorted(found, key=lambda one: -one.nats)


def check_watch(settings: CandidatesConfig, model: object) -> None:
    """Raises InvalidInputError where turns are to be scored and nothing can score them."""
    if settings.watch and model is None:
        raise InvalidInputError(
            "candidates.watch without a model: turns are scored by the served model; open the engine with model=, or "
            "switch it off"
        )
