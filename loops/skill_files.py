"""The skills of a version as files: ``skills.json`` and ``router.safetensors``."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sona.bank.router import SkillRouter
from sona.bank.skills import Skill, SkillSet
from sona.errors import StoreCorruptError
from sona.types import Record

SKILLS = "skills.json"
ROUTER = "router.safetensors"
_ROWS = "rows/"


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
    router = skills.router
    about = _About(
        skills=skills.skills,
        routed=None if router is None else router.adapters,
        bar=0.0 if router is None else router.bar,
    )
    (folder / SKILLS).write_bytes(msgspec.json.format(msgspec.json.encode(about), indent=2) + b"\n")
    tensors = {f"{_ROWS}{name}": rows.astype(np.float16) for name, rows in skills.rows.items()}
    if router is not None:
        tensors |= {
            name: np.ascontiguousarray(getattr(router, name)) for name in ("mean", "scale", "weights", "offset")
        }
    if tensors:
        save_file(tensors, folder / ROUTER)


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
        router = None
        if about.routed is not None:
            parts = {name: tensors[name] for name in ("mean", "scale", "weights", "offset")}
            router = SkillRouter(adapters=about.routed, **parts, bar=about.bar)
    except (msgspec.DecodeError, SafetensorError, OSError, KeyError) as error:
        raise StoreCorruptError(
            f"version {folder.name}: its skills can't be read ({error}); roll back to an earlier version"
        ) from None
    rows = {name[len(_ROWS) :]: value.astype(np.float32) for name, value in tensors.items() if name.startswith(_ROWS)}
    return SkillSet(about.skills, rows, router)
