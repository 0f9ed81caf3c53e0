"""Which versions requests are answered by, and which of them must stay in memory."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from sona.checks import Float32, check_id
from sona.errors import InvalidInputError, ModelError, SwapError
from sona.ports import Served
from sona.serving.adapters import Adapter
from sona.types import BASE_VERSION


@dataclass(frozen=True, eq=False)
class ServedVersion:
    """A version as its requests see it: whatever is swapped meanwhile, theirs does not change."""

    id: str
    served: Served
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    """By name; in memory for as long as the version is."""

    def route(self, count: int, read_features: Callable[[], Float32]) -> list[str | None]:
        """The adapter of each of ``count`` prompts, None for the base; their features are read only for a router.

        Raises:
            ModelError: the router names an adapter that the version has not, or answers for another number of prompts.
        """
        router = self.served.router
        if router is None or not self.adapters:
            return [next(iter(self.adapters), None)] * count
        names = router.route(read_features())
        odd = [name for name in names if name is not None and name not in self.adapters]
        if odd or len(names) != count:
            raise ModelError(
                f"the router of {self.id} gave {len(names)} answers to {count} prompts, "
                f"{len(odd)} of them none of its {len(self.adapters)} adapters; roll back to another version"
            )
        return names


class ServedVersions:
    """The version in force, the one before, and those that requests under way began with.

    Safe to call from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current = ServedVersion(BASE_VERSION, Served({}))
        self._before = self._current
        self._in_use: Counter[ServedVersion] = Counter()

    @property
    def current(self) -> ServedVersion:
        """The one that the next request gets."""
        return self._current

    def take(self, version: ServedVersion | None = None) -> ServedVersion:
        """A version that is held, or the one in force now, kept in memory until it is released."""
        with self._lock:
            version = version or self._current
            self._in_use[version] += 1
            return version

    def release(self, version: ServedVersion) -> None:
        """The counterpart of :meth:`take`."""
        with self._lock:
            self._in_use[version] -= 1
            self._in_use += Counter()  # drops the zeros

    @contextmanager
    def held(self, version: ServedVersion | None = None) -> Iterator[ServedVersion]:
        """A version that is held already, or the one in force now, kept in memory until the block ends."""
        version = self.take(version)
        try:
            yield version
        finally:
            self.release(version)

    def switch(self, version_id: str, served: Served) -> bool:
        """Put it in force if it needs nothing that is not in memory; whether that is so."""
        with self._lock:
            if not served.adapters:
                self._put(ServedVersion(version_id, served))
                return True
            for known in (self._current, self._before, *self._in_use):
                if known.id == version_id and dict(known.served.adapters) == dict(served.adapters):
                    self._put(replace(known, served=served))
                    return True
        return False

    def put_in_force(self, version: ServedVersion) -> None:
        """Make ``version`` the current one."""
        with self._lock:
            self._put(version)

    def _put(self, version: ServedVersion) -> None:
        if version.id != self._current.id:
            self._before = self._current
        self._current = version


def check_served(version_id: str, served: Served) -> None:
    """Raises SwapError where ``served`` can't be answered with, whatever is in its folders."""
    try:
        check_id(version_id, "version id")
        for name in served.adapters:
            check_id(name, "adapter name")
    except InvalidInputError as error:
        raise SwapError(f"{error}; it is not served") from None
    if len(served.adapters) > 1 and served.router is None:
        raise SwapError(f"{version_id} has {len(served.adapters)} adapters and no router to pick one; give it a router")
