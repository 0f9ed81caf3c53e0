"""What one layer needs of another, as protocols, and the nouns that cross between them.

`sona.loops` knows storage and the served model only through these. That keeps the cycle testable with fakes, and lets
a fleet's PostgreSQL store or a remote model server take the same places later.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec
import numpy as np

from sona.candidate import STATES, Candidate, MemoryWeight, Settled, State
from sona.checks import Float32, Int32
from sona.types import CycleReport, Feedback, Message, Progress, Record, Reply, Trajectory, Version

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Role = Literal["train", "held_out", "left_out"]
"""What a cycle did with a trajectory that it claimed."""

Report = Callable[[Progress], None]
"""Called as work goes on; may raise to cancel it, in which case everything stays as it was."""


def ignore_progress(progress: Progress) -> None:
    """The Report that does nothing."""


class Stored(Record, kw_only=True):
    """A trajectory as it lies in the store."""

    seq: int
    """Its place in the order of arrival, from 1."""
    trajectory: Trajectory
    quality: float | None
    """The effective quality: that of the latest feedback."""
    feedback_seq: int | None = None
    """That feedback's place in the order of arrival, from 1."""
    learned_quality: float | None = None
    """Told by :meth:`TrajectoryStore.collect`: the effective quality, by the policy of now, with which a cycle took it
    before, the latest of those whose learning is in force; None: none of them did, it is new."""
    learned_cycle: int = 0
    """That cycle; 0 where it is new."""
    learned_pattern: str = ""
    """Where that cycle's claim says that it lies in the bank; "" where it is new, or was far from every pattern."""


class Collected(Record, kw_only=True):
    """What is new to a cycle."""

    rows: tuple[Stored, ...]
    """With a quality, claimed by no cycle yet or left out before their latest feedback came; in the order of the
    first feedback that makes them new."""
    waiting_for_feedback: int
    """Stored and unclaimed, but without a quality."""


class Claim(Record, kw_only=True):
    """One trajectory that a cycle took, and what it did with it."""

    seq: int
    role: Role
    feedback_seq: int | None = None
    """That of the :class:`Stored` that it was made from: what is left out is collected again after a later feedback,
    and only then. None: whatever is the latest at the commit."""
    prompt_ids: bytes | None = None
    """Token ids made in this cycle where the trajectory brought none (int32 bytes), so that replay needs no
    tokenizer."""
    response_ids: bytes | None = None
    skill: str = ""
    """The adapter's skill that it was learned into; "" where it is of none."""
    pattern: str = ""
    """The bank's pattern that it lies in; "" where it is in none."""


class StoreCounts(Record, kw_only=True):
    """Sizes of a store, counted now."""

    trajectories: int
    feedback: int
    waiting_for_feedback: int
    """Trajectories without a quality."""
    uncollected: int
    """What :meth:`TrajectoryStore.collect` would give: with a quality, and claimed by no cycle yet or left out before
    their latest feedback came. It, the next three and ``waiting_for_feedback`` add up to ``trajectories``."""
    trained: int
    held_out: int
    left_out: int
    """By their latest claim, with no feedback since."""
    cycles: int
    bytes_on_disk: int


class Arrivals(Record, kw_only=True):
    """What came in within a stretch of time."""

    trajectories: int
    feedback: int
    seconds: float
    """How long it was."""


class StoreSizes(Record, kw_only=True):
    """Bytes on disk, by what they are for."""

    database: int
    blobs: int
    """Trajectories that came many at a time, beside the database."""
    log: int
    """SQLite's write-ahead log and its index, part of the database."""
    journal: int
    """Reserved for records on their way into the database."""
    versions: int
    """Adapters, banks and their state; a file that several versions share counts once."""
    training: int = 0
    """Jobs and checkpoints of full-weight training."""
    other: int = 0
    """All else in its folder, such as what a repair has set aside."""


class SourceCounts(Record, kw_only=True):
    """What one source sent."""

    source: str
    trajectories: int
    steps: int
    rewards: int
    """Steps that carry a reward."""
    mean_reward: float | None
    rated: int
    mean_quality: float | None
    outcomes: dict[str, int] = msgspec.field(default_factory=dict)


class Approved(Protocol):
    """The candidates as a cycle sees them."""

    def approved(self, limit: int) -> list[Candidate]:
        """What waits for a cycle, oldest first."""

    def trained(self, cycles: Iterable[int]) -> list[Candidate]:
        """What these cycles moved into the weights and is not deleted, by its number."""


class CandidateStore(Approved, Protocol):
    """The candidates as scoring and review see them. Safe to call from several threads. A damaged row is a
    StoreCorruptError, never nothing.
    """

    def add(self, candidates: Sequence[Candidate]) -> list[int]:
        """Store new ones, durably; for each its number, 0 for what is known: that stays as it is."""

    def knows(self, trajectory_id: str, at_ns: int) -> bool:
        """Whether a response is a candidate, in whatever state."""

    def change(
        self,
        seqs: Sequence[int],
        state: State,
        *,
        by: str,
        note: str = "",
        again: bool = False,
        only: Collection[State] = STATES,
    ) -> list[Candidate]:
        """Bring all into ``state``, durably, or none, and return them; what is in it already stays as it is, or with
        ``again`` gets the note as well. StateChangeError, also where one is in none of ``only``; UnknownIdError.
        """

    def set_alternate(self, seq: int, text: str) -> None:
        """Keep what the model answers without memories, durably."""

    def get(self, seq: int) -> Candidate:
        """One by its number; UnknownIdError where there is none."""

    def heaviest(self, state: State, *, above: float = ..., limit: int = ...) -> list[Candidate]:
        """Those in a state whose divergence is at least ``above`` nats, the largest first."""

    def counts(self) -> dict[State, int]:
        """How many there are in each state."""


class MemoryWeights(Protocol):
    """What memories were worth so far, each of a source. Safe to call from several threads."""

    def get(self, key: str, source: str = "default") -> MemoryWeight | None:
        """A memory's weight; None where it was never scored."""

    def put(self, weights: Sequence[MemoryWeight]) -> None:
        """Replace the weights of these memories, durably, all or none."""

    def oldest(self, limit: int, source: str = "default") -> list[MemoryWeight]:
        """Those that were not scored for the longest time, first."""

    def prune_candidates(
        self, below: float, source: str = "default", *, min_times: int = 3, limit: int = 100
    ) -> list[MemoryWeight]:
        """Memories that were scored often enough and are worth less than ``below`` nats, the least first."""


class TrajectoryStore(Protocol):
    """The store as the loops see it. All methods are safe to call from several threads."""

    def append(self, records: Sequence[Trajectory | Feedback]) -> Sequence[Exception | None]:
        """Store all in one durable transaction; per record None, or the ConflictError / UnknownIdError that left it
        out.
        """

    def collect(self, limit: int) -> Collected:
        """At most ``limit`` new trajectories, each with what the version in force learned of it before, if anything."""

    def sample(
        self,
        role: Role,
        count: int,
        rng: np.random.Generator,
        *,
        skills: Sequence[str] | None = None,
        after_cycle: int = 0,
        balanced: bool = False,
    ) -> list[Stored]:
        """``count`` trajectories drawn with replacement from those that the current version's lineage claimed as
        ``role``: ``train`` or ``held_out``; [] where there is none.

        ``skills`` leaves only what was claimed for one of these (None: all), ``after_cycle`` only what cycles with a
        higher number claimed. Each claim is as likely as any other; ``balanced`` makes each pattern as likely as any
        other (what has none is of one, ""), and within it each claim.
        """

    def replayable(self, role: Role, *, skills: Sequence[str] | None = None, after_cycle: int = 0) -> int:
        """From how many trajectories :meth:`sample` would draw."""

    @property
    def candidates(self) -> Approved:
        """What was approved in review."""

    def commit_cycle(
        self, report: CycleReport, claims: Sequence[Claim], version: Version | None, settled: Sequence[Settled] = ()
    ) -> None:
        """Claims, report, version, the new current version, and what became of approved candidates: all in one
        transaction, or nothing.
        """

    def next_cycle(self) -> int:
        """The number of the cycle that would be committed next, from 1."""

    def current(self) -> Version:
        """The version in force."""

    def set_current(self, version_id: str) -> Version:
        """Make an earlier version current again."""

    def versions(self) -> list[Version]:
        """All versions, oldest first."""

    def known_versions(self) -> set[str]:
        """Their ids, for certain, also where a commit has failed before."""

    def read_state(self, name: str) -> bytes | None:
        """A value kept beside the records, such as the base model's probes."""

    def write_state(self, name: str, value: bytes) -> None:
        """Replace it, durably."""


class VersionFolders(Protocol):
    """Where versions keep their files."""

    def path(self, version_id: str) -> Path:
        """The folder of a published version; UnknownIdError where there is none."""

    def draft(self) -> AbstractContextManager[Path]:
        """An empty temporary folder beside the versions, gone at the end of the block unless it was published."""

    def publish(self, draft: Path, version_id: str) -> str:
        """Sync ``draft``, give it the version's name in one rename, and return the digest of its files."""

    def clean(self, known_ids: set[str]) -> Sequence[str]:
        """Take away drafts, and folders of none of these ids, which are known for certain; their names."""

    def verify(self, version: Version) -> Path:
        """The folder, after its files were compared with the version's digest; StoreCorruptError where they differ."""


class Router(Protocol):
    """Who picks, for each request, the adapter that answers it. Safe to call from several threads."""

    def route(self, features: Float32) -> list[str | None]:
        """For each row of ``features`` (n, width) the name of the adapter that answers; None: the untouched base."""


@dataclass(frozen=True)
class Served:
    """What a version answers with."""

    adapters: Mapping[str, Path]
    """PEFT folder by name; empty: the untouched base alone."""
    router: Router | None = None
    """Reads :meth:`ServedModel.features`. None: every request gets the one adapter that there is, or the base."""
    proof: bytes | None = None
    """What :meth:`ServedModel.prove` gave when it was published; None: it is older than that."""


@dataclass(frozen=True, eq=False)
class FastRow:
    """Fast weights that take part in one answer: the last hidden state h becomes h + B A h."""

    pattern: str
    A: Float32
    """(r, hidden_size)"""
    B: Float32
    """(hidden_size, r)"""


class FastWeights(Protocol):
    """Which fast weights an answer gets. Safe to call from several threads."""

    def __len__(self) -> int:
        """Patterns that have some: with none, a model need not ask."""

    def rows(self, version: str, adapters: Sequence[str | None], embeddings: Float32) -> list[FastRow | None]:
        """For each prompt that ``version`` answers its weights, None for none.

        Args:
            version: the id of the version that answers.
            adapters: for each prompt the content key of the adapter that answers it; None: the base.
            embeddings: (n, hidden_size) of :meth:`ServedModel.embed`.
        """


@dataclass(frozen=True, eq=False)
class ResponseStates:
    """What a response was drawn from, as the version in force would draw it, without fast weights."""

    version: str
    adapter: str | None
    """Content key of the adapter that answers this prompt; None: the base."""
    hidden: Float32
    """(T, hidden_size): the last hidden state before the output head, at each of the response's T tokens."""
    head: Callable[[Tensor], Tensor]
    """Hidden states (T, hidden_size), float32 on the CPU, to the logits (T, vocab_size) that the model makes of them.
    Valid until the block ends."""


@dataclass(frozen=True, eq=False)
class Spelled:
    """A text as tokens."""

    ids: Int32
    """int32 (tokens,)"""
    starts: Int32
    ends: Int32
    """Which characters each token stands for, (tokens,) each; a token of the model's own that the text does not spell
    has two equal numbers."""


@dataclass(frozen=True, eq=False)
class ModelTree:
    """A model's own module tree, lent to one thread until a block ends: what happens in it disturbs no answer."""

    model: PreTrainedModel
    """It answers as the version in force does. Its attention may be switched; the next who gets it finds it so."""
    logits: Callable[[Tensor], Tensor]
    """Hidden states (n, hidden_size), as they come to the output head, to logits (n, vocab_size)."""
    key: str = ""
    """Equal for equal weights: what was kept of one pass is good for the next while it is the same."""


class ServedModel(Protocol):
    """The model that answers."""

    @property
    def fingerprint(self) -> str:
        """Tells this base model from others: a hash of its configuration, its tokenizer and samples of its weights."""

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream, and of the embeddings of :meth:`embed`."""

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table: token ids are below it."""

    @property
    def max_tokens(self) -> int:
        """Longest sequence, prompt and response together."""

    @property
    def pad_id(self) -> int:
        """A token id to fill batches with; it is always masked."""

    @property
    def version(self) -> str:
        """The version that the next request gets."""

    def encode_prompt(self, messages: Sequence[Message]) -> Int32:
        """The conversation as token ids (tokens,), ready for an answer, through the model's chat template."""

    def encode_response(self, text: str) -> Int32:
        """An answer as token ids (tokens,), with the token that ends it."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""

    def count_tokens(self, text: str) -> int:
        """How many tokens a text is, by itself."""

    def embed(self, prompts: Sequence[Int32]) -> Float32:
        """Mean-pooled last hidden state of the frozen base model, (prompts, hidden_size)."""

    def features(self, prompts: Sequence[Int32]) -> Float32:
        """What a :class:`Router` reads, from the frozen base model alone: float32 (prompts, feature_width)."""

    def generate(
        self,
        prompt_ids: Int32,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
    ) -> Reply:
        """One answer by the version in force when the call began; greedy at temperature 0."""

    def make_probes(
        self, count: int, tokens: int, seed: int, on_batch: Callable[[int, int], None]
    ) -> list[tuple[Int32, Int32]]:
        """``count`` prompts that the base model wrote itself, each with the base model's greedy answer.

        ``on_batch`` is told of what is done and the total; what it raises ends the work.
        """

    def trainable_copy(self) -> PreTrainedModel:
        """The base model as a module tree of its own that shares the served weights' memory; no adapter in it."""

    def swap(self, version_id: str, served: Served) -> None:
        """Answer with ``served`` from the next request on; requests under way keep the version they began with.

        Raises SwapError, and goes on as before, where it does not answer as its ``proof`` says.
        """

    def prove(self, served: Served) -> bytes:
        """What ``served`` makes of fixed prompts, to be stored with the version and compared when it is swapped in."""

    def response_states(
        self, prompt: Int32, response: Int32, question: Int32 | None = None
    ) -> AbstractContextManager[ResponseStates]:
        """One forward pass over prompt and response, with the adapter that the version in force answers with, by
        ``question`` or else the prompt.
        """
