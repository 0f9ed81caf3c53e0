"""sona makes the model behind an LLM agent better from its own use, hour by hour, on the machine that serves it.

>>> import sona
>>> with sona.open_sync("agent-store", model="tiny") as engine:  # doctest: +SKIP
...     with engine.trajectory("echo blue river", source="support-bot") as t:
...         reply = t.generate(max_new_tokens=16)
...     engine.feedback(t.id, quality=0.9)
...     report = engine.learn()

Importing it loads no torch, FAISS or transformers: each name here is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

__all__ = [
    "Config",
    "CycleReport",
    "Engine",
    "Feedback",
    "Message",
    "Pattern",
    "SonaError",
    "Step",
    "SyncEngine",
    "Trajectory",
    "Version",
    "__version__",
    "open",
    "open_sync",
]

_HOME = {
    "Config": "sona.config",
    "CycleReport": "sona.types",
    "Engine": "sona.engine",
    "Feedback": "sona.types",
    "Message": "sona.types",
    "Pattern": "sona.patterns",
    "SonaError": "sona.errors",
    "Step": "sona.types",
    "SyncEngine": "sona.sync",
    "Trajectory": "sona.types",
    "Version": "sona.types",
    "open": "sona.engine",
    "open_sync": "sona.sync",
}

if TYPE_CHECKING:
    from sona.config import Config
    from sona.engine import Engine, open
    from sona.errors import SonaError
    from sona.patterns import Pattern
    from sona.sync import SyncEngine, open_sync
    from sona.types import CycleReport, Feedback, Message, Step, Trajectory, Version


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sona' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
