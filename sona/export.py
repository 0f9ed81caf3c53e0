"""One adapter of a version as a folder of its own, for PEFT, vLLM and SGLang, with a record of where it is from."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import msgspec

from sona.errors import InvalidInputError, UnknownIdError
from sona.history import find_version
from sona.loops.adapter_change import CONFIG_FILE, WEIGHTS_FILE
from sona.loops.skill_files import read_skills
from sona.loops.version_files import ADAPTER, adapter_names, adapter_root
from sona.serving.remote.folder import check_plain
from sona.storage.connection import store_error
from sona.storage.store import Store
from sona.storage.version_retention import ancestors
from sona.storage.versions import Versions
from sona.types import BASE_VERSION, Record, new_id

ABOUT = "sona.json"


class Exported(Record, kw_only=True):
    """What ``sona.json`` says of an exported adapter."""

    about: str
    """For a person."""
    version: str
    digest: str
    """SHA-256 over the names and contents of all of the version's files, which they were compared with."""
    adapter: str
    skills: tuple[str, ...]
    """The skills that it answers for."""
    routed: bool
    """Whether the version has a router, which sends only some queries to this adapter. It is not exported."""
    base_model: str | None
    """Fingerprint of the base model that it belongs to (:mod:`sona.serving.fingerprint`); None where the store does not
    know it."""
    rank: int
    parents: tuple[str, ...]
    """The version's ancestors, its parent first."""
    created_ns: int
    files: dict[str, str]
    """SHA-256 of each of the adapter's files, as hex digits."""


def export_peft(store: Store, version_id: str, target: Path, adapter: str | None = None) -> Exported:
    """Copy an adapter of a version to the folder ``target``, all at once. It may be open for reading only.

    All of the version's files are compared with its digest first. What is there then are two files in PEFT's format, of
    plain LoRA (keys without an adapter's name, ``target_modules`` a list, no biases, no whole modules), and
    ``sona.json``.

    Args:
        store: the version's.
        version_id: which one.
        target: a folder that does not exist, or is empty; it is made.
        adapter: its name; None where the version has only one.

    Raises:
        UnknownIdError: there is no such version or adapter, or the version's files are gone.
        InvalidInputError: the version has no adapter, or several and none was named; or ``target`` is not empty or lies
            in the store.
        StoreCorruptError: files of the version are damaged.
        ModelError: the adapter is none that the servers take.
        StoreFullError, StoreReadOnlyError, StoreError: of the target's disk; nothing is left there.
    """
    target = target.absolute()
    _check_target(target, store.path)
    version = find_version(store, version_id)
    if version.id == BASE_VERSION:
        raise InvalidInputError(f"{BASE_VERSION} is the base model itself, and has no adapter; name a later version")
    folder = Versions(store.path).verify(version)
    name = _named(version.id, adapter_names(folder), adapter)
    source, skills, base = adapter_root(folder, name) / ADAPTER, read_skills(folder), store.read_state("model")
    rank = check_plain(source, f"adapter {name!r} of {version.id}")
    about = Exported(
        about=f"LoRA adapter {name!r} of version {version.id} of a sona store, in PEFT's format",
        version=version.id,
        digest=version.digest,
        adapter=name,
        skills=tuple(skill.id for skill in skills.of_adapter(name)),
        routed=skills.router is not None,
        base_model=None if base is None else base.decode(),
        rank=rank,
        parents=tuple(ancestors(store.versions(), version.id)),
        created_ns=version.created_ns,
        files={file: _sha256(source / file) for file in (CONFIG_FILE, WEIGHTS_FILE)},
    )
    _write(source, target, about)
    return about


def _check_target(target: Path, store: Path) -> None:
    if target.resolve().is_relative_to(store.resolve()):
        raise InvalidInputError(f"{target} lies within the store; give the export a place outside of it")
    try:
        is_free = not target.is_symlink() and (not target.exists() or (target.is_dir() and not any(target.iterdir())))
    except OSError as error:
        raise store_error(error, target) from error
    if not is_free:
        raise InvalidInputError(f"{target} exists and is no empty folder; give the export a name that is not taken")


def _named(version: str, known: list[str], wanted: str | None) -> str:
    """The adapter that is meant."""
    if not known:
        raise InvalidInputError(f"{version} has no adapter: its cycle taught the bank alone; name another version")
    if wanted is None and len(known) > 1:
        raise InvalidInputError(f"{version} has {len(known)} adapters; name one by --adapter: {', '.join(known)}")
    if wanted is not None and wanted not in known:
        raise UnknownIdError(f"adapter {wanted!r} is not in {version}; it has {', '.join(known)}")
    return wanted or known[0]


def _write(source: Path, target: Path, about: Exported) -> None:
    draft = target.with_name(f"{target.name}.part-{new_id()}")
    try:
        draft.mkdir(parents=True)
        for file in about.files:
            shutil.copyfile(source / file, draft / file)  # no link: whoever has the export may change it
        (draft / ABOUT).write_bytes(msgspec.json.format(msgspec.json.encode(about), indent=2) + b"\n")
        for path in (*draft.iterdir(), draft):
            _sync(path)
        draft.rename(target)
        _sync(target.parent)
    except OSError as error:
        raise store_error(error, target) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
