"""``/v1/models`` and ``/versions``: what answers, what has answered, and the way back."""

from __future__ import annotations

from typing import Literal

import anyio.to_thread
import msgspec
from starlette.requests import Request

from sona.errors import ModelError, StoreCorruptError, SwapError
from sona.service.hub import BASE_NAME, Hub
from sona.service.problems import ProblemError
from sona.types import Version


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model that can be asked."""

    id: str
    object: Literal["model"] = "model"
    created: int
    """When the version was made, in seconds since 1970."""
    owned_by: str = "sona"


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """``sona``, which is whatever version is in force, and that version by name: ``sona:v3``.

    Earlier versions are under ``GET /versions``; a rollback makes them answer.
    """

    object: Literal["list"] = "list"
    data: list[Model]


class VersionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One version of the learned state."""

    id: str
    current: bool
    """Whether it is in force."""
    parent: str | None
    cycle: int
    created_ns: int
    digest: str
    """Of its files; of the first version, which has none, of the base model: as the answers say."""
    trajectories: int
    """How many were trained on in the cycle that made it."""
    metrics: dict[str, float | None]
    """Measured in that cycle; null where nothing could be."""


class VersionList(msgspec.Struct, frozen=True, kw_only=True):
    """All versions, oldest first."""

    current: str
    versions: list[VersionInfo]


async def models(hub: Hub, request: Request) -> ModelList:
    """What can be asked now."""
    return ModelList(data=_models(hub))


async def model(hub: Hub, request: Request) -> Model:
    """One of them."""
    name = request.path_params["id"]
    hub.check_model(name)
    return next(known for known in _models(hub) if known.id == name)


async def versions(hub: Hub, request: Request) -> VersionList:
    """All versions."""
    current = hub.engine.version.id
    return VersionList(current=current, versions=[_info(hub, one, current) for one in hub.engine.versions()])


class LearnBegun(msgspec.Struct, frozen=True, kw_only=True):
    """A cycle was asked for; ``GET /events`` tells how it goes, and ``GET /versions`` what came of it."""

    status: Literal["begun"] = "begun"


async def learn(hub: Hub, request: Request) -> LearnBegun:
    """Begin a cycle now, without waiting for it."""
    hub.ask_to_learn()
    return LearnBegun()


async def rollback(hub: Hub, request: Request) -> VersionInfo:
    """Put a version in force, whole."""
    target = hub.version(request.path_params["id"]).id
    try:
        now = await anyio.to_thread.run_sync(hub.engine.roll_back, target)
    except (SwapError, StoreCorruptError):
        raise ProblemError(
            409, f"{target} can't be served: its files are gone or damaged; what was in force stays so", code="damaged"
        ) from None
    return _info(hub, now, now.id)


def _models(hub: Hub) -> list[Model]:
    version = hub.version(hub.engine.model.version)
    created = version.created_ns // 1_000_000_000
    return [Model(id=name, created=created) for name in (BASE_NAME, f"{BASE_NAME}:{version.id}")]


def _info(hub: Hub, version: Version, current: str) -> VersionInfo:
    return VersionInfo(
        id=version.id,
        current=version.id == current,
        parent=version.parent,
        cycle=version.cycle,
        created_ns=version.created_ns,
        digest=_digest(hub, version),
        trajectories=version.trajectories,
        metrics=dict(version.metrics),  # msgspec writes what is not finite as null
    )


def _digest(hub: Hub, version: Version) -> str:
    try:
        return version.digest or hub.engine.model.fingerprint
    except ModelError:  # nothing is answered then, with this version or another
        return ""
