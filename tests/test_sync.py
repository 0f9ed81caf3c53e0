"""The twin without an event loop has everything that the engine has."""

from sona.engine import Engine
from sona.sync import SyncEngine

# The same under the name that each world gives it.
NAMES = {"aclose": "close"}


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_every_method_has_its_twin() -> None:
    assert {NAMES.get(name, name) for name in public(Engine)} == public(SyncEngine)
