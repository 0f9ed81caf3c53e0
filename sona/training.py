"""The nouns of full-weight training on call: what is to be learned and how, what became of it, how it all stands."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Literal

import msgspec
import numpy as np

from sona.checks import Int32, TokensLike, check_id, pack_tokens
from sona.errors import StoreCorruptError
from sona.types import Record

OptimizerName = Literal["apollo", "apollo-mini", "adamw"]
RoundingName = Literal["masters", "stochastic"]
JobState = Literal["queued", "running", "done", "failed"]
NOTE = "sona"
"""The key of a checkpoint's metadata that holds its note."""


class TrainingSample(Record, kw_only=True):
    """A context, and what is to come after it."""

    context: bytes
    """Token ids, little-endian int32; at least one."""
    continuation: bytes
    """... of which alone the loss is taken; at least one."""

    @classmethod
    def of(cls, context: TokensLike, continuation: TokensLike) -> TrainingSample:
        """From token ids.

        Raises:
            InvalidInputError: no ids, or none that are whole numbers from 0 on.
        """
        return cls(context=pack_tokens(context, "context_ids"), continuation=pack_tokens(continuation, "continuation"))

    def ids(self) -> tuple[Int32, Int32]:
        """Context (C,) and continuation (R,)."""
        return np.frombuffer(self.context, "<i4"), np.frombuffer(self.continuation, "<i4")

    def __len__(self) -> int:
        """Tokens of both."""
        return (len(self.context) + len(self.continuation)) // 4


class Recipe(Record, kw_only=True):
    """How a job trains: all that its steps depend on beside the weights, the samples and the seed."""

    optimizer: OptimizerName = "apollo"
    learning_rate: float
    """Peak rate."""
    rank: int
    """Rows of APOLLO's projections; 1 for APOLLO-Mini, without meaning for AdamW."""
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    warmup_steps: int
    """Steps over which the rate rises, counted from where the optimizer's state began."""
    scale: float
    """α², see :class:`sona.learn.apollo.ApolloSettings`."""
    refresh_steps: int
    """Steps with one projection."""
    growth_limit: float
    """A step's update is at most so many times as long as the last one's."""
    rounding: RoundingName
    """How weights of half precision are written."""
    batch_size: int
    """Samples a step."""
    passes: int
    """How often each sample is seen."""

    @property
    def kind(self) -> str:
        """Two recipes of one kind share an optimizer's state."""
        return f"{self.optimizer}/{self.rank}/{self.rounding}"

    def steps(self, samples: int) -> int:
        """Optimizer steps that so many samples make."""
        return self.passes * -(-samples // self.batch_size)


class TrainingJob(Record, kw_only=True):
    """One accepted training."""

    number: int
    """Its place in the order, from 1."""
    id: str
    """Its name with whoever sent it."""
    samples: tuple[TrainingSample, ...]
    recipe: Recipe
    accepted_ns: int = msgspec.field(default_factory=time.time_ns)
    """When, in nanoseconds since 1970."""

    def __post_init__(self) -> None:
        check_id(self.id, "job id")

    @property
    def digest(self) -> bytes:
        """SHA-256 of what is trained and how: the same id with the same digest is the same job."""
        return content_digest(self.samples, self.recipe)

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.recipe.steps(len(self.samples))


def content_digest(samples: tuple[TrainingSample, ...], recipe: Recipe) -> bytes:
    """SHA-256 of a job's content."""
    return hashlib.sha256(msgspec.msgpack.encode((samples, recipe))).digest()


class JobResult(Record, kw_only=True):
    """What became of a job; it stays when its samples are gone."""

    number: int
    id: str
    digest: bytes
    state: Literal["done", "failed"]
    why: str = ""
    """Of one that failed."""
    samples: int = 0
    steps: int = 0
    """That were taken."""
    tokens: int = 0
    """Of the continuations, counted once."""
    loss_before: float | None = None
    """Nats a token of the continuations, under the weights before the job."""
    loss_after: float | None = None
    """... and after it."""
    continued: bool = False
    """Whether the optimizer went on from an earlier state; False: it began anew."""


class CheckpointNote(Record, kw_only=True):
    """What a checkpoint says of itself, published together with its tensors."""

    form: int = 1
    through: int
    """The last job that is in the weights; all before it that did not fail are, too."""
    fingerprint: str
    """Of the base model that training began from."""
    kind: str
    """Of the optimizer's state; "" where there is none."""
    steps: int
    """That this state has seen."""
    results: tuple[JobResult, ...]
    """Of the jobs since the checkpoint before."""

    def metadata(self) -> dict[str, str]:
        """For a safetensors file. One key: the library writes several in no fixed order."""
        return {NOTE: msgspec.json.encode(self).decode()}

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> CheckpointNote:
        """From the metadata of a file.

        Raises:
            StoreCorruptError: there is none, or one of a newer form.
        """
        try:
            note = msgspec.json.decode(metadata.get(NOTE, ""), type=cls)
        except msgspec.DecodeError as error:
            raise StoreCorruptError(f"a checkpoint without a note of sona's ({error}); restore another one") from None
        if note.form != 1:
            raise StoreCorruptError(f"a checkpoint of form {note.form}; this sona reads 1, so update it")
        return note


class CheckpointInfo(Record, kw_only=True):
    """A checkpoint as it lies on the disk."""

    number: int
    file: str
    """Its name in the checkpoints' folder."""
    is_snapshot: bool
    """Whether it needs no earlier file."""
    sha256: str
    """Of the whole as a safetensors file."""
    checkpoint_bytes: int
    """The size of that."""
    written_bytes: int
    """The size of the file."""
    created_ns: int
    """When it was written, in nanoseconds since 1970."""
    jobs: tuple[str, ...]
    """Ids of the jobs since the one before."""
    through: int
    """Number of the last job in it."""


class CheckpointMade(Record, kw_only=True):
    """What one sync wrote."""

    checkpoint: CheckpointInfo
    blocks: int
    """All blocks of 4 KiB."""
    changed_blocks: int
    """Those that differ from the checkpoint before."""


class JobStatus(Record, kw_only=True):
    """How a job stands."""

    number: int
    id: str
    state: JobState
    why: str
    """Of one that failed; of one that waits or runs, how many processes have died at it; "" where all is well."""
    samples: int
    steps: int
    """In all."""
    steps_done: int
    loss_before: float | None
    loss_after: float | None
    continued: bool | None
    """None while it is not done."""
    in_checkpoint: bool


class TrainingStatus(Record, kw_only=True):
    """How training stands."""

    enabled: bool
    pid: int | None
    """Of the process; None where none lives."""
    queued: int
    """Jobs that wait or run."""
    jobs: tuple[JobStatus, ...]
    """The newest, oldest first, and all that wait."""
    last_checkpoint: CheckpointInfo | None
    last_error: str | None
    """What training met last that was no job's own fault."""
    accepted: int
    """Jobs that were taken since the start."""
    done: int
    """... that were done for the first time since then."""
    failed: int
    """... and that failed."""
