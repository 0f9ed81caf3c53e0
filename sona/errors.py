"""The exceptions of sona. Each message names the value, what is allowed and what to do.

::

    SonaError
    ├── InvalidInputError (ValueError)      a record, argument or file row that must not enter
    │   ├── DimensionMismatchError          an embedding of another width than the store's
    │   ├── UnknownTokenError               token ids outside the model's vocabulary
    │   ├── ConflictError                   an id that is already taken by other content
    │   └── StateChangeError                a state that can't become the other
    │       └── InTrainingError             ... as long as a cycle learns from what has it
    ├── UnknownIdError (LookupError)        no trajectory, version, pattern or source is called so
    ├── ConfigError (ValueError)            a setting outside its range, or an unknown key
    ├── ExtraMissingError (ImportError)     packages that an extra brings are not installed
    ├── StoreError                          the store on disk
    │   ├── StoreLockedError                another process is writing to it
    │   ├── StoreReadOnlyError              it can't be written to
    │   ├── StoreFullError                  the disk has no room
    │   ├── StoreCorruptError               its bytes are damaged, or it is no store
    │   ├── StoreVersionError               written by a newer sona, or SQLite is too old
    │   └── ClosedError                     used after close()
    ├── ModelError                          the served model
    │   ├── ModelNotFoundError              no such folder or hub id
    │   ├── QueueFullError                  as many requests wait as may
    │   ├── RequestCancelledError           the answer was not wanted to its end
    │   ├── ScoringError                    tokens could not be scored
    │   └── SwapError                       an adapter that is not what its version says
    ├── RemoteError                         a server elsewhere, which a setting names
    │   ├── UnreachableError                no connection, or no whole answer in time
    │   ├── RemoteRefusedError              it answered that it does not do it
    │   └── RemoteUnclearError              its answer is not what such a server says
    ├── ReviewError                         a server could not be asked for its candidates
    ├── SendError                           a training service did not accept what was sent, or may not have
    ├── TrainingError                       no full-weight training, as things are
    │   └── ModelTooLargeError              ... of a model of this size, on this machine
    └── CycleError                          a cycle of the background loop failed
        ├── LearnerError                    the process that learns died, or could not be understood
        └── NothingToRollBackError          there is no earlier version
"""

from __future__ import annotations

from typing import Literal

Outcome = Literal["refused", "failed", "unknown"]
"""Of a request to train: see :attr:`SendError.outcome`."""


class SonaError(Exception):
    """Base of everything that sona raises on purpose."""


class InvalidInputError(SonaError, ValueError):
    """A record or argument was refused at the boundary; nothing was stored."""


class DimensionMismatchError(InvalidInputError):
    """An embedding has another width than the store's embeddings."""


class UnknownTokenError(InvalidInputError):
    """Token ids lie outside the model's vocabulary."""


class ConflictError(InvalidInputError):
    """The id is taken by a record with other content."""


class StateChangeError(InvalidInputError):
    """Something is in a state that can't become the one that was asked for; nothing has changed."""


class InTrainingError(StateChangeError):
    """A cycle under way learns from the candidate; the same change may go through once it has ended."""


class UnknownIdError(SonaError, LookupError):
    """No trajectory, version or pattern has the id."""


class ConfigError(SonaError, ValueError):
    """A setting is outside its range, or its key is unknown."""


class ExtraMissingError(SonaError, ImportError):
    """Packages are missing that come with one of sona's extras."""


class StoreError(SonaError):
    """The store on disk can't do what was asked."""


class StoreLockedError(StoreError):
    """Another process holds the store's writer lock."""


class StoreReadOnlyError(StoreError):
    """The store can't be written to."""


class StoreFullError(StoreError):
    """The disk that holds the store has no room left."""


class StoreCorruptError(StoreError):
    """The store's bytes are damaged, or the file is no store of sona's."""


class StoreVersionError(StoreError):
    """The store was written by a newer sona, or the SQLite library is too old to be safe."""


class ClosedError(StoreError):
    """The engine or store was used after it was closed."""


class ModelError(SonaError):
    """The served model can't do what was asked."""


class ModelNotFoundError(ModelError):
    """The model's folder or hub id does not exist, or lacks a file."""


class QueueFullError(ModelError):
    """As many requests wait for the model as ``serve.max_waiting`` allows."""


class RequestCancelledError(ModelError):
    """The request was cancelled before its answer was whole."""


class ScoringError(ModelError):
    """Whoever scores tokens can't be reached, or what it says is no log-probability."""


class SwapError(ModelError):
    """An adapter's files or answers are not those that its version recorded; it was not served."""


class RemoteError(SonaError):
    """A server elsewhere did not do what it was asked."""

    again: bool = False
    """Whether the same request may go through a little later."""


class UnreachableError(RemoteError):
    """There was no connection, or no whole answer in time."""

    was_connected: bool = True
    """False: the last try had no connection, so it asked the server nothing. True: that may have done what it was
    asked."""


class RemoteRefusedError(RemoteError):
    """The server answered with an error status."""

    def __init__(self, message: str, *, status: int, said: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        """Of HTTP, from 300 on."""
        self.said = said
        """The server's own words, at most 500 characters; "" where there were none."""
        self.retry_after_s = retry_after_s
        """After how many seconds it wants to be asked again; None: it said nothing of that."""
        self.again = status >= 500 or status == 429


class RemoteUnclearError(RemoteError):
    """The server's answer can't be understood, or is none that such a server gives."""


class ReviewError(SonaError):
    """A server could not be asked for its candidates, or refused."""


class SendError(SonaError):
    """A training service did not accept what was sent, or nobody knows whether it did."""

    def __init__(self, message: str, *, outcome: Outcome = "refused", of_samples: bool = True) -> None:
        super().__init__(message)
        self.of_samples = of_samples
        """False: it says nothing of what was sent, as the service can't be reached, is busy, or does not take this
        client's token; True: the same samples are likely to fail again.
        """
        self.outcome = outcome
        """``refused``: it took nothing of this request. ``failed``: it had taken it before, and has given it up.
        ``unknown``: it may have taken it, so nothing else may train the same.
        """


class TrainingError(SonaError):
    """Full weights can't be trained as things are; nothing was accepted."""


class ModelTooLargeError(TrainingError):
    """The model is larger than ``full.max_parameters``, or its training than the memory that is free."""


class CycleError(SonaError):
    """A cycle failed; everything is as it was before it."""


class LearnerError(CycleError):
    """The process that learns could not be started, has died, or said what can't be understood."""


class NothingToRollBackError(CycleError):
    """The current version has no parent."""
