"""The twin without an event loop has everything that the engine has."""

from sona.engine import Engine
from sona.sync import SyncEngine

FOR_HOOKS = {"embed_quietly", "opened", "closed"}


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_every_method_has_its_twin() -> None:
    assert public(Engine) - FOR_HOOKS == public(SyncEngine)
