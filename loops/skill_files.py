"""The skills of a version as files: ``skills.json`` and ``router.safetensors``."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from sona.bank.router import SkillRouter
from sona.bank.skills import Skill, SkillSet
from sona.errors import StoreCorruptError
from sona.types import Record

SKILLS = "skills.json"
ROUTER = "router.safetensors"
_ROWS = "rows/"
_WHOSE = "whose"
"""Among the metadata of the router's file: JSON, by the name of the rows the owner of each."""


class _About(Record, kw_only=True):
    """What skills.json holds."""

    skills: tuple[Skill, ...]
    routed: tuple[str, ...] | None
    """The adapter of each class of the router but the first; None without a router."""
    bar: float = 0.0
    schema: int = 1


def write_skills(folder: Path, skills: SkillSet) -> None:
    """Write both files; nothing where there are no skills and no rows."""
    if not skills.skills and not skills.rows and skills.router is None:
        return
    for name, data in files_of(skills).items():
        (folder / name).write_bytes(data)


def files_of(skills: SkillSet) -> dict[str, bytes]:
    """Both files, by name."""
    router = skills.router
    about = _About(
        skills=skills.skills,
        routed=None if router is None else router.adapters,
        bar=0.0 if router is None else router.bar,
    )
    tensors = {f"{_ROWS}{name}": rows.astype(np.float16) for name, rows in skills.rows.items()}
    if router is not None:
        tensors |= {
            name: np.ascontiguousarray(getattr(router, name)) for name in ("mean", "scale", "weights", "offset")
        }
    whose = msgspec.json.encode({name: skills.owners(name) for name in skills.rows}).decode()
    return {
        SKILLS: msgspec.json.format(msgspec.json.encode(about), indent=2) + b"\n",
        ROUTER: save(tensors, {_WHOSE: whose}),
    }


def read_skills(folder: Path) -> SkillSet:
    """The skills that :func:`write_skills` wrote; none where there are no files.

    Raises:
        StoreCorruptError: a file can't be read, or the two do not belong together.
    """
    if not (folder / SKILLS).is_file():
        return SkillSet()
    try:
        about = msgspec.json.decode((folder / SKILLS).read_bytes(), type=_About)
        tensors = load_file(folder / ROUTER) if (folder / ROUTER).is_file() else {}
        whose = _read_whose(folder / ROUTER) if tensors else {}
        router = None
        if about.routed is not None:
            parts = {name: tensors[name] for name in ("mean", "scale", "weights", "offset")}
            router = SkillRouter(adapters=about.routed, **parts, bar=about.bar)
    except (msgspec.DecodeError, SafetensorError, OSError, KeyError) as error:
        raise StoreCorruptError(
            f"version {folder.name}: its skills can't be read ({error}); roll back to an earlier version"
        ) from None
    rows = {name[len(_ROWS) :]: value.astype(np.float32) for name, value in tensors.items() if name.startswith(_ROWS)}
    if any(name not in rows or len(owners) != len(rows[name]) for name, owners in whose.items()):
        raise StoreCorruptError(
            f"version {folder.name}: it does not say of each row of its router whose it is; roll back to an earlier one"
        )
    return SkillSet(about.skills, rows, router, whose)


def _read_whose(file: Path) -> dict[str, tuple[str, ...]]:
    """{} of a file from before rows had owners."""
    with safe_open(file, framework="numpy") as opened:
        metadata = opened.metadata() or {}
    return msgspec.json.decode(metadata[_WHOSE], type=dict[str, tuple[str, ...]]) if _WHOSE in metadata else {}
