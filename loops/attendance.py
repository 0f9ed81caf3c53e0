"""What a host does for its learner while a cycle runs: it writes what the cycle asks for, and ends it on demand.

A cycle's learner may write two kinds of state, publish a draft whose files are those that it says, and commit once.
Everything else is refused, and so is everything once the cycle is to end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, get_args

import msgspec

from sona.bank.lessons import Distiller, LessonDraft, LessonRequest, listed
from sona.checks import shown
from sona.config import Config
from sona.errors import CycleError, InvalidInputError, LearnerError, SonaError, StoreCorruptError
from sona.loops.frames import Channel, EndOfMessagesError
from sona.loops.learner_ports import raised
from sona.loops.messages import (
    RELEASE,
    Answer,
    Clean,
    Commit,
    Distill,
    Done,
    Failed,
    Logged,
    Progressed,
    Publish,
    Refused,
    Setup,
    Stop,
    Taken,
    WriteState,
)
from sona.loops.readiness import SEEN
from sona.patterns import Lesson
from sona.ports import Report
from sona.storage.store import Store
from sona.storage.versions import DRAFT, Versions
from sona.types import CycleReport, Record

log = logging.getLogger("sona.learner")

Asked = Clean | Taken | WriteState | Distill | Publish | Commit
ASKED = get_args(Asked)
"""What a learner asks for, and waits for."""
LOOK_S = 0.1
"""So often the host looks whether the cycle is to end."""
STOP_S = 5.0
"""A cycle that is to end has so long to come to its next progress."""


@dataclass(frozen=True)
class Host:
    """What a learner works for."""

    store: Store
    folders: Versions
    model: str | None
    """Folder or hub id of the base model."""
    fingerprint: str | None
    config: Config
    distill: Distiller | None = None
    on_taken: Callable[[Collection[int]], None] = lambda ids: None
    """Told which approved candidates a cycle has."""

    def setup(self) -> Setup:
        """The first message to a learner."""
        return Setup(
            release=RELEASE,
            store=str(self.store.path),
            model=self.model,
            fingerprint=self.fingerprint,
            distills=self.distill is not None,
            settings=msgspec.to_builtins(self.config),
        )


def clean(host: Host) -> None:
    """Take away what a cycle that failed has left: see :meth:`Versions.clean`."""
    host.folders.clean(host.store.known_versions())


def tell_log(line: Logged) -> None:
    """Log what the learner has logged."""
    logging.getLogger(line.logger).log(line.level, "%s", line.text)


class Attendance:
    """One cycle, attended to from its beginning to its end."""

    def __init__(self, host: Host, channel: Channel, report: Report) -> None:
        self._host, self._channel, self._report = host, channel, report
        self._published: dict[str, str] = {}  # digest by version id
        self._stopping = False
        self.committed: CycleReport | None = None
        """The cycle, once it counts."""
        self.ended = False
        """Whether the learner has said that the cycle is over, and is ready for another."""

    def attend(self, check: Callable[[], None]) -> CycleReport:
        """Serve the learner until the cycle is over.

        Raises:
            EndOfMessagesError: the learner has died.
            LearnerError: it could not be understood.
            SonaError: what the cycle failed with, or whatever ``check`` or the report raised, which ended it.
        """
        while True:
            try:
                if self.committed is None:  # from then on nothing cancels it
                    check()
                message = self._receive()
                if isinstance(message, Progressed) and self.committed is None:
                    self._report(message.progress)
            except (EndOfMessagesError, LearnerError):
                raise
            except BaseException:
                self._stop()
                raise
            match message:
                case Done(report=report):
                    return report
                case Failed() as failed:
                    return self._failed(failed)
                case Clean() | Taken() | WriteState() | Distill() | Publish() | Commit():
                    self._answer(message)

    def _receive(self) -> Record | None:
        """What the learner says next; None where it says nothing for a while."""
        message = self._channel.receive(LOOK_S)
        if isinstance(message, Logged) and not self._stopping:  # then it has failed at all that it was refused
            tell_log(message)
        elif isinstance(message, (Done, Failed)):
            self.ended = True
        elif not isinstance(message, (Progressed, *ASKED, type(None))):
            raise LearnerError(f"a {type(message).__name__} is nothing that a learner says in a cycle")
        return message

    def _failed(self, failed: Failed) -> CycleReport:
        if self.committed is not None:
            log.warning("cycle %d is committed; %s: %s", self.committed.cycle, failed.error, failed.text)
            return self.committed
        error = raised(failed.error, failed.text)
        if failed.trace:
            error.add_note(f"In the process that learns:\n{failed.trace}")
        raise error

    def _stop(self) -> None:
        """Have the cycle end at its next progress, and refuse it everything until it has."""
        self._stopping, deadline = True, time.monotonic() + STOP_S
        try:
            self._channel.send(Stop())
            while not self.ended and time.monotonic() < deadline:
                message = self._receive()
                if isinstance(message, ASKED):
                    self._channel.send(Refused(error="CycleError", text="the cycle was stopped"))
        except (EndOfMessagesError, LearnerError, OSError):
            self.ended = False

    def _answer(self, request: Asked) -> None:
        answer: Answer | Refused
        try:
            answer = self._done(request)
        except SonaError as error:
            answer = Refused(error=type(error).__name__, text=str(error))
        try:
            self._channel.send(answer)
        except OSError:
            raise EndOfMessagesError from None

    def _done(self, request: Asked) -> Answer:
        match request:
            case Clean():
                clean(self._host)
            case Taken(ids=ids):
                self._host.on_taken(ids)
            case WriteState(name=name, value=value):
                if name != SEEN and not name.startswith("probes/"):
                    raise LearnerError(f"state {shown(name)}: not a cycle's to write")
                self._host.store.write_state(name, value)
            case Publish():
                self._publish(request)
            case Commit():
                self._commit(request)
            case Distill(request=asked):
                assert self._host.distill is not None
                return Answer(drafts=_drafts(self._host.distill, asked))
        return Answer()

    def _publish(self, request: Publish) -> None:
        folders = self._host.folders
        draft = folders.folder / request.draft
        if not request.draft.startswith(DRAFT) or draft.parent != folders.folder or draft.is_symlink():
            raise InvalidInputError(f"draft {shown(request.draft)}: no folder of a version that is being made")
        digest = folders.publish(draft, request.version)
        if digest != request.digest:
            folders.discard(request.version)
            raise StoreCorruptError(
                f"version {request.version}: its files' digest is {digest}, the learner wrote {request.digest}; "
                "see that nobody else writes to the store's folder"
            )
        self._published[request.version] = digest

    def _commit(self, request: Commit) -> None:
        version = request.version
        if self.committed is not None:
            raise CycleError(f"cycle {self.committed.cycle} is committed already")
        if version is not None and self._published.get(version.id) != version.digest:
            raise CycleError(f"version {version.id!r}: digest {version.digest}, no such files were published")
        self._host.store.commit_cycle(request.report, request.claims, version, request.settled)
        self.committed = request.report


def _drafts(distill: Distiller, request: LessonRequest) -> tuple[dict[str, Any] | str, ...]:
    """What the host's distiller answers, in a form that crosses to the learner.

    Raises:
        LearnerError: it raised.
    """
    try:
        return tuple(_plain(draft) for draft in listed(distill(request)))
    except (Exception, SystemExit) as error:  # a host's own function may raise anything; no lesson is worth a cycle
        log.exception("pattern %s: the distiller failed", request.pattern.id)
        raise LearnerError(f"the distiller failed with {type(error).__name__}: {error}") from None


def _plain(draft: object) -> dict[str, Any] | str:
    """A draft as a mapping; what is none as a text, which counts as turned down."""
    if isinstance(draft, (LessonDraft, Lesson)):
        draft = {name: getattr(draft, name) for name in LessonDraft.__struct_fields__}
    try:
        return msgspec.convert(msgspec.msgpack.decode(msgspec.msgpack.encode(draft)), dict[str, Any])
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError):
        return shown(draft)
