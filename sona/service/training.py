"""``POST /train``, ``GET /train/status``, ``POST /checkpoint``: training all weights of the base model on given texts.

What answers here stays the base with its adapters: a checkpoint becomes a model of its own by ``sona checkpoints
restore``, and whether it is to answer a person decides (docs/adr/0013-full-weights-exactly-once.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import anyio
import anyio.to_thread
import msgspec
from msgspec import Meta
from starlette.requests import Request as HttpRequest

from sona.config import FullConfig
from sona.errors import LearnerError, QueueFullError, StoreCorruptError, UnknownTokenError
from sona.event_loop import EventLoop
from sona.loops.full.working import Saving
from sona.service.body import ClientGoneError, decode, read_body
from sona.service.feedback import Name
from sona.service.hub import Hub
from sona.service.problems import ProblemError, too_many, unavailable
from sona.service.requests import Request, TokenIds
from sona.training import (
    CheckpointInfo,
    CheckpointMade,
    JobState,
    JobStatus,
    OptimizerName,
    Recipe,
    TrainingSample,
    TrainingStatus,
)

Beta = Annotated[float, Meta(ge=0.0, lt=1.0)]
RANK_SHARE = 4
"""APOLLO's rank, unless it is given, is the model's width over this, as in the paper."""
MINI_SCALE = 128.0


class Sample(Request, frozen=True, kw_only=True):
    """A context, and the tokens to learn after it."""

    context_ids: TokenIds
    continuation_ids: TokenIds
    """The loss is taken of these alone."""


class TrainingData(Request, frozen=True, kw_only=True):
    """What to learn."""

    samples: Annotated[list[Sample], Meta(min_length=1)]


class TrainRequest(Request, frozen=True, kw_only=True):
    """A training of all weights. It begins from what earlier trainings left, never from the adapters."""

    training_data: TrainingData
    id: Name | None = None
    """Of the job: the same content under the same id is trained once."""
    optimizer: OptimizerName = "apollo"
    """Where it, its rank or the server's rounding is another than in the training before, the optimizer's state begins
    anew."""
    lr: Annotated[float, Meta(gt=0.0, le=1.0)] = 1e-5
    """Peak learning rate."""
    rank: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    """Of APOLLO's projections; by default a quarter of the model's width, and 1 for ``apollo-mini``."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Annotated[float, Meta(gt=0.0, le=1.0)] = 1e-8
    weight_decay: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    warmup_steps: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """The rate rises over so many steps, counted from where the optimizer's state began."""
    scale: Annotated[float, Meta(gt=0.0, le=1e6)] | None = None
    """By the root of this APOLLO's updates are scaled; by default 1, and 128 for ``apollo-mini``."""
    proj_refresh: Annotated[int, Meta(ge=1, le=2**31 - 1)] = 200
    """Steps with one projection."""
    norm_growth_limit: Annotated[float, Meta(gt=1.0, le=1e6)] = 1.01
    """An update is at most so many times as long as the one before."""

    def recipe(self, width: int, settings: FullConfig) -> Recipe:
        """With what the request leaves open; ``width`` is the model's."""
        is_mini = self.optimizer == "apollo-mini"
        rank = self.rank or max(1, width // RANK_SHARE)
        return Recipe(
            optimizer=self.optimizer,
            learning_rate=self.lr,
            rank=rank if self.optimizer == "apollo" else 1,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            warmup_steps=self.warmup_steps,
            scale=self.scale or (MINI_SCALE if is_mini else 1.0),
            refresh_steps=self.proj_refresh,
            growth_limit=self.norm_growth_limit,
            rounding=settings.rounding,
            batch_size=settings.batch_size,
            passes=settings.passes,
        )


class JobAccepted(msgspec.Struct, frozen=True, kw_only=True):
    """The job. When this is sent it is on the disk, and will be trained whatever is killed."""

    job_id: str
    status: JobState
    """Of a job that was sent before: how far it has come."""
    samples: int
    steps: int
    """That it will take."""


class TrainStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How training stands."""

    enabled: bool
    alive: bool
    """Whether there is a process; the first job starts it."""
    pid: int | None
    queued: int
    """Jobs that wait or run."""
    jobs: list[JobStatus]
    """The newest hundred, oldest first, and all that are in no checkpoint."""
    not_in_checkpoint: list[str]
    """Ids of jobs that are done and would be done again if the process died now."""
    last_checkpoint: CheckpointInfo | None
    last_error: str | None
    """What training met last that was no job's own fault; the log says more."""


class CheckpointTaken(msgspec.Struct, frozen=True, kw_only=True):
    """What one sync wrote."""

    status: Literal["saved", "nothing new"]
    """``nothing new``: no training was done since the last checkpoint, so nothing was written."""
    number: int | None
    """Of the checkpoint, from 1; of the last one where nothing is new; null where there is none."""
    jobs: list[str]
    """Ids of the trainings that are new in it."""
    sha256: str | None
    """Of the whole checkpoint as a safetensors file: weights, and the optimizer's state."""
    checkpoint_bytes: int
    """The size of that."""
    written_bytes: int
    """The size of what was written, which follows the files before it."""
    blocks: int
    """All blocks of 4 KiB."""
    changed_blocks: int
    file: str | None
    """Its name in the store's ``training/checkpoints``."""
    queued: int
    """Jobs that wait or run, and so are not in it; after a crash also those that were done before and in no
    checkpoint."""


async def train(hub: Hub, request: HttpRequest) -> JobAccepted:
    """Take a training of all weights, to be done in its turn, once."""
    asked = decode(await read_body(request, hub.limits), TrainRequest)
    engine = hub.engine
    recipe = asked.recipe(engine.model.hidden_size, engine.config.full)
    samples = [TrainingSample.of(one.context_ids, one.continuation_ids) for one in asked.training_data.samples]
    with _told():
        job = await anyio.to_thread.run_sync(engine.training.submit, samples, recipe, asked.id)
    return JobAccepted(job_id=job.id, status=job.state, samples=job.samples, steps=job.steps)


async def status(hub: Hub, request: HttpRequest) -> TrainStatus:
    """How trainings of all weights stand."""
    with _told():
        found = await anyio.to_thread.run_sync(hub.engine.training.status)
    return TrainStatus(
        enabled=found.enabled,
        alive=found.pid is not None,
        pid=found.pid,
        queued=found.queued,
        jobs=list(found.jobs),
        not_in_checkpoint=[job.id for job in found.jobs if job.state == "done" and not job.in_checkpoint],
        last_checkpoint=found.last_checkpoint,
        last_error=_without_paths(found),
    )


async def checkpoint(hub: Hub, request: HttpRequest) -> CheckpointTaken:
    """Write down what all trainings since the last checkpoint have learned, together."""
    made: CheckpointMade | None = None
    is_done = False
    async with hub.work(request.receive):
        with _told():
            made = await _awaited(await anyio.to_thread.run_sync(hub.engine.training.checkpoint))
            is_done = True
    if not is_done:
        raise ClientGoneError
    with _told():
        return _taken(made, await anyio.to_thread.run_sync(hub.engine.training.status))


def _taken(made: CheckpointMade | None, now: TrainingStatus) -> CheckpointTaken:
    info = now.last_checkpoint if made is None else made.checkpoint
    return CheckpointTaken(
        status="nothing new" if made is None else "saved",
        number=None if info is None else info.number,
        jobs=[] if made is None else list(made.checkpoint.jobs),
        sha256=None if info is None else info.sha256,
        checkpoint_bytes=0 if info is None else info.checkpoint_bytes,
        written_bytes=0 if made is None else made.checkpoint.written_bytes,
        blocks=0 if made is None else made.blocks,
        changed_blocks=0 if made is None else made.changed_blocks,
        file=None if info is None else info.file,
        queued=now.queued,
    )


async def _awaited(saving: Saving) -> CheckpointMade | None:
    """What a thread will have done, without holding one up."""
    done, loop = anyio.Event(), EventLoop()
    saving.add_done_callback(lambda _: loop.soon(done.set))
    await done.wait()
    return saving.result(0)


@contextmanager
def _told() -> Iterator[None]:
    """What training raises, as a client may know it."""
    try:
        yield
    except UnknownTokenError as error:
        raise ProblemError(400, str(error), code="unknown_token", param="training_data.samples") from None
    except QueueFullError as error:
        raise too_many(str(error)) from None
    except LearnerError as error:
        raise unavailable(str(error), "training_interrupted") from None
    except StoreCorruptError:
        raise ProblemError(
            409, "what was trained is damaged on the disk; 'sona doctor' says where", code="damaged"
        ) from None


def _without_paths(found: TrainingStatus) -> str | None:
    """Of errors whose texts may name a path of the server's, the name; of a death what it was, not what was said."""
    if found.last_error is None:
        return None
    name, _, _ = found.last_error.partition(":")
    return found.last_error.partition(";")[0] if name == LearnerError.__name__ else name
