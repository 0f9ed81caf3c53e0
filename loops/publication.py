"""One version put on a model server elsewhere: loaded under fresh names, and asked whether it says what it has to."""

from __future__ import annotations

import time
from collections.abc import Callable

from sona.errors import ModelError
from sona.loops.version_files import read_served
from sona.ports import Served, ServedModel, VersionFolders
from sona.serving.proof import Proof, read_proof
from sona.serving.remote.attest import attest
from sona.serving.remote.server import AdapterServer
from sona.serving.remote.shelf import Shelf
from sona.serving.remote.state import InForce, RemoteStatus
from sona.types import BASE_VERSION, Attestation, Version


class SupersededError(Exception):
    """The version is not wanted any more."""


class Publication:
    """Puts versions on one server, one at a time."""

    def __init__(
        self,
        server: AdapterServer,
        shelf: Shelf,
        folders: VersionFolders,
        model: ServedModel | None,
        tolerance_nats: float,
    ) -> None:
        """
        Args:
            server: which one.
            shelf: where it reads adapters from.
            folders: the versions'.
            model: the one in this process; with it a version that is older than proofs can be published too.
            tolerance_nats: see ``remote.tolerance_nats``.
        """
        self._server, self._shelf, self._folders = server, shelf, folders
        self._model, self._tolerance = model, tolerance_nats

    def make(
        self,
        version: Version,
        kept: RemoteStatus | None,
        loaded: dict[str, str],
        wanted: Callable[[], bool],
    ) -> tuple[InForce, Attestation | None]:
        """The version as hosts may ask for it from now on, and what was compared; None where it has no adapter.

        Args:
            version: what to put there.
            kept: what an earlier process had in force there. If that is this very version, and its adapters are there
                still, they are used again.
            loaded: gets the server's name of each adapter before it is loaded, whatever comes of it.
            wanted: whether to go on.

        Raises:
            SupersededError: it is not wanted any more.
            RemoteError: the server does not answer, or refuses an adapter.
            SwapError: it answers otherwise than the version's proof says.
            ModelError: an adapter is none that a server takes, or the version can't be attested.
            StoreError, UnknownIdError, OSError: of the version's files, and of the shelf.
        """
        served = self._read(version)
        if not served.adapters:
            return InForce(version.id, version.digest, since_ns=time.time_ns()), None
        proof, vocabulary = self._proof(version.id, served)
        there = self._server.names()  # first of all, so that nothing is prepared for a server that is away
        if kept is not None and _is_still_there(version, kept, there & self._shelf.names()):
            loaded |= kept.names
        else:
            self._load(version.id, served, loaded, wanted)
        found = attest(self._server, version.id, loaded, proof, vocabulary, self._tolerance)
        _check_wanted(wanted)
        return InForce(version.id, version.digest, dict(loaded), served.router, time.time_ns()), found

    def _read(self, version: Version) -> Served:
        if version.id == BASE_VERSION:
            return Served({})
        self._folders.verify(version)
        return read_served(self._folders, version.id)

    def _load(self, version: str, served: Served, loaded: dict[str, str], wanted: Callable[[], bool]) -> None:
        for adapter, source in served.adapters.items():
            _check_wanted(wanted)
            name, path = self._shelf.put(version, adapter, source)
            loaded[adapter] = name
            self._server.load(name, path)

    def _proof(self, version: str, served: Served) -> tuple[Proof, int]:
        """What its adapters have to say, and the size of the vocabulary that the prompts are drawn from."""
        raw = served.proof
        if raw is None and self._model is not None:
            raw = self._model.prove(served)
        proof = None if raw is None else read_proof(raw)
        vocabulary = (proof.vocabulary if proof else 0) if self._model is None else self._model.vocab_size
        if proof is None or not vocabulary:
            raise ModelError(
                f"{version} was published by an older sona, which wrote down too little to attest it without the "
                "model; open the engine with model=..., or learn another version"
            )
        return proof, vocabulary


def _check_wanted(wanted: Callable[[], bool]) -> None:
    if not wanted():
        raise SupersededError


def _is_still_there(version: Version, kept: RemoteStatus, names: set[str] | frozenset[str]) -> bool:
    same = (kept.version, kept.digest) == (version.id, version.digest)
    return same and bool(kept.names) and set(kept.names.values()) <= names
