"""Every version that is in force here is put in force on a model server elsewhere too, by a thread of its own.

The adapters are loaded there under names that the server never had, asked whether they say what the version's proof
says, and only then told to hosts (:attr:`RemotePublisher.in_force`); the old ones are unloaded a while later. Whatever
goes wrong leaves the old ones as they are, and is tried again. Nobody waits for it, and nothing raises into the host.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from msgspec.structs import replace

from sona.config import RemoteConfig
from sona.errors import RemoteError, SonaError
from sona.events import Event, RemoteFailed, RemotePublished
from sona.loops.publication import Publication, SupersededError
from sona.ports import ServedModel, VersionFolders
from sona.serving.remote.server import AdapterServer
from sona.serving.remote.shelf import Shelf
from sona.serving.remote.state import InForce, RemoteStatus
from sona.types import Attestation, Version

log = logging.getLogger("sona.remote")

MOST_RETRY_S = 300.0
UNLOAD_AGAIN_S = 30.0  # after an unloading that failed; nobody waits for it
LOST = "the server has its adapters no more (was it restarted?); they are loaded anew"


class RemotePublisher:
    """Publishes to one server from when it is made until it is closed."""

    def __init__(
        self,
        server: AdapterServer,
        shelf: Shelf,
        folders: VersionFolders,
        model: ServedModel | None,
        settings: RemoteConfig,
        tell: Callable[[Event], None],
    ) -> None:
        """
        Args:
            server: it is closed at the end.
            shelf: where it reads adapters from.
            folders: the versions'.
            model: the one in this process, if there is one: see :class:`Publication`.
            settings: when and how often.
            tell: takes events, from the publisher's thread.
        """
        self._server, self._shelf, self._settings, self._tell = server, shelf, settings, tell
        self._publication = Publication(server, shelf, folders, model, settings.tolerance_nats)
        self._wanted: Version | None = None
        self._closed = False
        self._in_force = InForce()
        self._status = RemoteStatus(kind=settings.kind, url=settings.url, wanted="")
        # The rest is the thread's own. Times are on the monotonic clock.
        self._written: RemoteStatus | None = None
        self._kept: RemoteStatus | None = None  # what an earlier process had in force there, until one is in force now
        self._tried: Version | None = None
        self._in_a_row = 0  # failures
        self._attempt_s = self._check_s = 0.0
        self._leaving: dict[str, float] = {}  # by name when it is to be unloaded
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sona-remote", daemon=True)
        self._thread.start()

    def want(self, version: Version) -> None:
        """``version`` is in force here now. Returns at once."""
        self._wanted = version
        self._wake.set()

    @property
    def in_force(self) -> InForce:
        """What hosts are to ask the server for, now."""
        return self._in_force

    @property
    def status(self) -> RemoteStatus:
        """How it goes."""
        wanted = self._wanted
        return replace(self._status, wanted="" if wanted is None else wanted.id)

    def close(self) -> None:
        """Stop, whatever is under way; what the server has stays there, for the next start to find."""
        self._closed = True
        self._wake.set()
        self._server.close()
        self._thread.join()

    def _run(self) -> None:
        self._take_up()
        wait_s: float | None = None
        while not self._closed:
            self._wake.wait(wait_s)
            self._wake.clear()
            wanted = self._wanted
            if wanted is not None and not self._closed:
                try:
                    self._look(wanted)
                except Exception:  # a fault of ours must not end publishing for good
                    log.exception("a fault in publishing to %s", self._settings.url)
                    self._attempt_s = self._check_s = time.monotonic() + MOST_RETRY_S
                wait_s = self._wait_s(wanted)

    def _take_up(self) -> None:
        """What an earlier process has left there: its adapters in force are used again if they can be, and all others
        go.
        """
        try:
            self._shelf.clean()
            names, kept = self._shelf.names(), self._shelf.read()
        except OSError as error:
            log.warning("what was published before can't be read: %s", error)
            return
        if kept is not None and (kept.kind, kept.url) == (self._settings.kind, self._settings.url):
            self._kept = kept
            names -= set(kept.names.values())
        self._leave(names, 0.0)

    def _look(self, wanted: Version) -> None:
        """Do what is due."""
        if time.monotonic() >= self._check_s:
            self._check(wanted)
        if wanted is not self._tried:
            self._tried, self._in_a_row, self._attempt_s = wanted, 0, 0.0
        if self._is_in_force(wanted):
            self._status = replace(self._status, trouble=None if self._in_a_row == 0 else self._status.trouble)
        elif time.monotonic() >= self._attempt_s:
            self._attempt(wanted)
        self._unload_due()
        self._keep_status()

    def _is_in_force(self, wanted: Version) -> bool:
        return (self._in_force.version, self._in_force.digest) == (wanted.id, wanted.digest)

    def _wait_s(self, wanted: Version) -> float:
        """How long until something is due."""
        at_s = self._check_s if self._is_in_force(wanted) else min(self._check_s, self._attempt_s)
        return max(0.0, min([at_s, *self._leaving.values()]) - time.monotonic())

    # ------------------------------------------------------------------------------------------------ one version

    def _attempt(self, wanted: Version) -> None:
        """Put it in force there, or say why not and when it is tried again."""
        loaded: dict[str, str] = {}
        try:
            made, found = self._publication.make(wanted, self._kept, loaded, lambda: self._wants(wanted))
        except SupersededError:
            self._leave(loaded.values(), 0.0)
        except Exception as error:  # whatever it is, the host goes on
            if self._closed:
                return  # the next start finds on the shelf what was loaded
            if not isinstance(error, (SonaError, OSError)):
                log.exception("a fault in publishing %s", wanted.id)
            if self._kept is not None and loaded == self._kept.names:
                self._kept = None
            self._leave(loaded.values(), 0.0)  # they never were in force
            self._fail(wanted, str(error) or type(error).__name__)
        else:
            self._put_in_force(made, found)

    def _wants(self, version: Version) -> bool:
        return self._wanted is version and not self._closed

    def _put_in_force(self, made: InForce, found: Attestation | None) -> None:
        old, self._in_force = self._in_force, made  # one assignment: a request gets the old names or the new ones
        before = {*old.names.values(), *(self._kept.names.values() if self._kept else ())}
        self._kept = None
        self._leave(before - set(made.names.values()), self._settings.grace_s)
        self._check_s = time.monotonic() + self._settings.check_s
        self._in_a_row = 0
        self._status = replace(
            self._status,
            version=made.version,
            digest=made.digest,
            names=made.names,
            since_ns=made.since_ns,
            published=self._status.published + 1,
            trouble=None,
        )
        how = "" if found is None else f" (they differ by {found.difference:.3g} nats a token from what was proved)"
        log.info("%s is in force on %s: %s%s", made.version, self._settings.url, _listed(made.names), how)
        self._tell(RemotePublished(version=made.version or "", names=made.names))

    def _fail(self, wanted: Version, why: str) -> None:
        wait_s = min(self._settings.retry_s * 2.0 ** min(self._in_a_row, 30), MOST_RETRY_S)
        self._attempt_s = time.monotonic() + wait_s
        self._in_a_row += 1
        log.warning("%s is not in force on %s: %s; tried again in %.0f s", wanted.id, self._settings.url, why, wait_s)
        self._trouble(wanted, why)

    def _trouble(self, wanted: Version, why: str) -> None:
        self._status = replace(self._status, failed=self._status.failed + 1, trouble=why)
        self._tell(RemoteFailed(version=wanted.id, reason=why))

    # ------------------------------------------------------------------------------------------------ afterwards

    def _check(self, wanted: Version) -> None:
        """See whether the server still has what is in force there; where not, hosts get the base until it has."""
        self._check_s = time.monotonic() + self._settings.check_s
        names = self._in_force.names
        if not names:
            return
        try:
            lost = set(names.values()) - self._server.names()
        except RemoteError as error:
            if not self._closed and self._in_a_row == 0:  # told once: it may be away for long
                self._in_a_row = 1
                log.warning("%s can't be asked what it has: %s", self._settings.url, error)
                self._trouble(wanted, str(error))
            return
        if not lost:
            if self._is_in_force(wanted):
                self._in_a_row = 0
            return
        log.warning("%s: %s", self._settings.url, LOST)
        self._in_force = InForce()
        self._leave(names.values(), 0.0)
        self._status = replace(self._status, version=None, digest="", names={}, since_ns=0)
        self._in_a_row, self._attempt_s = 0, 0.0
        self._trouble(wanted, LOST)

    def _leave(self, names: Iterable[str], grace_s: float) -> None:
        """Unload them when the grace is over."""
        self._leaving |= dict.fromkeys(names, time.monotonic() + grace_s)

    def _unload_due(self) -> None:
        now_s = time.monotonic()
        for name in [name for name, at_s in self._leaving.items() if at_s <= now_s]:
            try:
                self._server.unload(name)
            except RemoteError as error:
                if self._closed:
                    return
                log.info("%s could not be unloaded: %s", name, error)
                self._leaving[name] = time.monotonic() + UNLOAD_AGAIN_S
            else:
                self._shelf.remove(name)
                del self._leaving[name]

    def _keep_status(self) -> None:
        self._status = replace(self._status, leaving=len(self._leaving))
        status = self.status
        if status == self._written:
            return
        try:
            self._shelf.write(status)
            self._written = status
        except OSError as error:
            log.warning("how publishing goes could not be written down: %s", error)


def _listed(names: dict[str, str]) -> str:
    return ", ".join(names.values()) or "the base alone"
