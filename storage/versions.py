"""The folders in which versions keep their files: written aside, synced, and named in one step."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from sona.errors import ConflictError, InvalidInputError, StoreCorruptError, StoreError, UnknownIdError
from sona.storage.connection import store_error
from sona.storage.layout import QUARANTINE
from sona.storage.syncing import sync_path
from sona.types import Version, new_id

_log = logging.getLogger("sona.storage")
SUFFIXES = (".safetensors", ".json", ".msgpack")
NAMES = ("README.md",)
DRAFT = ".draft-"
"""Before an id: what is being made, or taken away."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_CHUNK = 1 << 20


class Versions:
    """``<store>/versions/<id>/`` for each published version, ``.draft-<id>`` for what is being made.

    A version's folder holds safetensors, JSON and msgpack files and a README.md, in folders of its own too; no links,
    and nothing that could be unpickled. Only the store's writer may call anything but :meth:`path` and :meth:`verify`.
    """

    def __init__(self, store: str | os.PathLike[str]) -> None:
        """``store`` is the store's folder."""
        self.folder = Path(store).absolute() / "versions"
        self._published: set[str] = set()

    def path(self, version_id: str) -> Path:
        """The folder of a published version; UnknownIdError where there is none, as for the base model's."""
        folder = self._named(version_id)
        if folder.is_symlink() or not folder.is_dir():
            raise UnknownIdError(f"version {version_id!r}: no folder {folder}; it was pruned or never published")
        return folder

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """An empty temporary folder beside the versions, gone at the end of the block unless it was published.

        Raises:
            StoreFullError, StoreReadOnlyError: it can't be made.
        """
        folder = self.folder / f"{DRAFT}{new_id()}"
        try:
            folder.mkdir(mode=0o700, parents=True)
        except OSError as error:
            raise store_error(error, folder) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, draft: Path, version_id: str) -> str:
        """Sync ``draft``, give it the version's name in one rename, and return the digest of its files.

        After a crash there is the whole folder or none; one that no committed version names is moved away
        by :meth:`clean`.

        Raises:
            InvalidInputError: the id is no file name, or the draft holds a link or a file that is not allowed.
            ConflictError: the version has a folder already.
            StoreFullError, StoreReadOnlyError, StoreError: the disk's trouble.
        """
        target = self._named(version_id)
        files = _files(draft)
        if target.exists() or target.is_symlink():
            raise ConflictError(
                f"version {version_id!r}: {target} exists; take another id, or clean() if a crash left it"
            )
        try:
            digest = _digest(draft, files)
            _sync(draft, files)
            self._published.add(version_id)
            draft.rename(target)
            sync_path(self.folder)
        except OSError as error:
            raise store_error(error, draft) from error
        return digest

    def verify(self, version: Version) -> Path:
        """The version's folder, after its files were compared with the version's digest.

        Raises:
            UnknownIdError: it has no folder.
            StoreCorruptError: a file was changed, added or lost.
            StoreError: a file may not be read.
        """
        folder = self.path(version.id)
        try:
            found = _digest(folder, _files(folder))
        except PermissionError as error:
            raise StoreError(f"version {version.id!r}: {error}; see that this user may read its files") from error
        except (OSError, InvalidInputError) as error:
            self.path(version.id)  # retention may have removed it just now
            raise _damaged(version, folder, str(error)) from error
        if found != version.digest:
            raise _damaged(version, folder, f"digest {found}, published as {version.digest}")
        return folder

    def digest_of(self, version_id: str, instead: Mapping[str, bytes] = MappingProxyType({})) -> str:
        """The digest that the version's files have, or would have with other contents in place of some, by name.

        Raises:
            UnknownIdError: it has no folder.
            InvalidInputError: there is something in it that must not be.
            StoreError: a file can't be read.
        """
        folder = self.path(version_id)
        try:
            return _digest(folder, _files(folder), {folder / name: data for name, data in instead.items()})
        except OSError as error:
            raise store_error(error, folder) from error

    def put(self, version_id: str, name: str, data: bytes) -> None:
        """Replace the file ``name`` of a version, durably, and all at once; other links to it keep what it was.

        Raises:
            UnknownIdError: it has no folder.
            StoreFullError, StoreReadOnlyError, StoreError: the disk's trouble; the file is what it was.
        """
        target, draft = self.path(version_id) / name, self.folder / f"{DRAFT}{new_id()}"
        try:
            draft.write_bytes(data)
            sync_path(draft)
            draft.replace(target)
            sync_path(target.parent)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise store_error(error, target) from error

    def clean(self, known_ids: set[str]) -> list[str]:
        """Remove drafts, which a crash left, and what was published here and could not be committed. What else is not
        among ``known_ids``, of another process that was killed before its commit, or newer than the database, is moved
        to the store's quarantine. Returns their names.

        Give it :meth:`Store.known_versions` after a commit has failed: it may be on the disk, and come into force at
        the next start, though nobody sees it now.
        """
        failed = self._published - known_ids
        kept = {one.name for one in self._entries() if not one.name.startswith(DRAFT) and one.name not in failed}
        away = self._remove(kept, drafts=True)
        for entry in self._entries():
            if entry.name not in known_ids:
                into = self.folder.parent / QUARANTINE
                _log.warning("%s: no version of this store has this name, so it is moved to %s", entry, into)
                self.set_aside(entry.name, into)
                away.append(entry.name)
        return away

    def _entries(self) -> list[Path]:
        try:
            return sorted(self.folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise store_error(error, self.folder) from error

    def discard(self, version_id: str) -> None:
        """Remove the folder of one version; StoreError where the disk does not let it go."""
        self._remove({entry.name for entry in self.folder.iterdir()} - {version_id}, drafts=False)

    def set_aside(self, name: str, into: Path) -> None:
        """Move what is in the folder under ``name`` to another one on the same disk, under a name of its own.

        Raises:
            StoreFullError, StoreReadOnlyError, StoreError: the disk's trouble.
        """
        try:
            into.mkdir(mode=0o700, exist_ok=True)
            (self.folder / name).rename(into / f"{name.removeprefix('.')}-{new_id()}")
            sync_path(into)
            sync_path(self.folder)
        except OSError as error:
            raise store_error(error, self.folder) from error

    def prune(self, keep: set[str]) -> list[str]:
        """Remove the folders of all versions but ``keep``, and return their ids."""
        return self._remove(keep, drafts=False)

    def _remove(self, keep: set[str], *, drafts: bool) -> list[str]:
        """No version ever has its name and not all of its files, whatever comes in between: all names go first, for
        good. What is left then is a draft. A file that another version shares is only one of its names less.
        """
        leaving = [
            entry
            for entry in self._entries()
            if entry.name not in keep and (drafts or not entry.name.startswith(DRAFT))
        ]
        try:
            away = [self._nameless(entry) for entry in leaving]
            if away != leaving:
                sync_path(self.folder)
            for entry in away:
                _remove_entry(entry)
        except OSError as error:
            raise store_error(error, self.folder) from error
        return [entry.name for entry in leaving]

    def _nameless(self, entry: Path) -> Path:
        return entry if entry.name.startswith(DRAFT) else entry.rename(self.folder / f"{DRAFT}{new_id()}")

    def _named(self, version_id: str) -> Path:
        if not _ID.fullmatch(version_id):
            raise InvalidInputError(
                f"version id {version_id!r}: 1 to 100 of letters, digits, '.', '_', '-' are allowed, the first no sign"
            )
        return self.folder / version_id


def digest_of_draft(draft: Path) -> str:
    """The digest that :meth:`Versions.publish` will give it.

    Raises:
        InvalidInputError: there is something in it that must not be.
        StoreError: a file can't be read.
    """
    try:
        return _digest(draft, _files(draft))
    except OSError as error:
        raise store_error(error, draft) from error


def _remove_entry(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


def _damaged(version: Version, folder: Path, what: str) -> StoreCorruptError:
    return StoreCorruptError(f"version {version.id!r} in {folder} is damaged: {what}; roll back to another version")


def _files(folder: Path) -> list[Path]:
    """All files of a version, sorted by name; InvalidInputError for what must not be in it."""
    files = []
    for entry in sorted(folder.rglob("*")):
        if entry.is_symlink() or not (entry.is_dir() or entry.is_file()):
            raise InvalidInputError(f"{entry}: a link or special file; a version holds plain files only")
        if entry.is_dir():
            continue
        if entry.suffix not in SUFFIXES and entry.name not in NAMES:
            allowed = ", ".join((*SUFFIXES, *NAMES))
            raise InvalidInputError(f"{entry}: no file of a version; allowed are {allowed}")
        files.append(entry)
    return sorted(files, key=lambda file: file.relative_to(folder).as_posix().encode())


def _digest(folder: Path, files: list[Path], instead: Mapping[Path, bytes] = MappingProxyType({})) -> str:
    """SHA-256 over each file's name and content, in the order of names, each with its length before it; with what
    ``instead`` has in place of some contents.
    """
    sha = hashlib.sha256()
    for file in files:
        name = file.relative_to(folder).as_posix().encode()
        if (data := instead.get(file)) is not None:
            sha.update(len(name).to_bytes(8, "little") + name + len(data).to_bytes(8, "little") + data)
            continue
        with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            sha.update(len(name).to_bytes(8, "little") + name + size.to_bytes(8, "little"))
            while chunk := stream.read(_CHUNK):
                sha.update(chunk)
    return sha.hexdigest()


def _sync(folder: Path, files: list[Path]) -> None:
    """Files first, then the folders that name them, innermost first."""
    folders = sorted({above for file in files for above in file.relative_to(folder).parents}, reverse=True)
    for path in (*files, *(folder / inner for inner in folders), folder):
        sync_path(path)
