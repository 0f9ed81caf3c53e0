"""What a server elsewhere answers with, and how publishing to it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from sona.checks import Float32
from sona.errors import ModelError
from sona.ports import Router


class RemoteStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How publishing to ``remote.url`` goes. It also lies in the store, as ``remote/status.json``."""

    kind: str
    url: str
    wanted: str
    """The version that is in force here; "" before there was one."""
    version: str | None = None
    """The one whose adapters are in force there, attested; None: none is, and hosts are given the base's name."""
    digest: str = ""
    """Its digest."""
    names: dict[str, str] = msgspec.field(default_factory=dict)
    """What the server calls each of its adapters."""
    since_ns: int = 0
    """When they were put in force, in nanoseconds since 1970."""
    published: int = 0
    """Versions that were put in force there since the engine was opened."""
    failed: int = 0
    """Attempts that failed since then."""
    trouble: str | None = None
    """Why the version in force here is not in force there, or the server can't be asked whether it is; None: it is, or
    is on its way for the first time."""
    leaving: int = 0
    """Adapters on the server that are of no use any more, and will be unloaded."""


@dataclass(frozen=True, eq=False)
class InForce:
    """What hosts are told to ask the server for."""

    version: str | None = None
    digest: str = ""
    names: dict[str, str] = field(default_factory=dict)
    """By adapter."""
    router: Router | None = None
    since_ns: int = 0

    def name_for(self, read_features: Callable[[], Float32]) -> str | None:
        """The server's name of the adapter that answers a prompt; None: the untouched base.

        Args:
            read_features: the prompt's, float32 (1, width); called only for a router.

        Raises:
            ModelError: the router names an adapter that the version has not.
        """
        if not self.names:
            return None
        if self.router is None:
            return next(iter(self.names.values()))
        (adapter,) = self.router.route(read_features())
        if adapter is not None and adapter not in self.names:
            raise ModelError(
                f"the router of {self.version} names {adapter!r}, which is none of its {len(self.names)} adapters; "
                "roll back to another version"
            )
        return None if adapter is None else self.names[adapter]
