"""All that can be asked of a store, and how an answer may differ from the sound store's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec.structs import replace

from sona.errors import SonaError, UnknownIdError
from sona.ports import Stored
from sona.storage.store import Store

FIGURES = ("counts", "sources", "current", "state", "collect")
"""What the log's end decides, and what follows from many rows at once."""

Answer = Sequence[Any] | SonaError
Reads = Mapping[str, Callable[[Store], Sequence[Any]]]


def reads(ids: Sequence[str], cycles: int) -> Reads:
    """By name; ``ids`` of trajectories."""
    asked: dict[str, Callable[[Store], Sequence[Any]]] = {
        "iterate": lambda store: list(store.iterate()),
        "collect": lambda store: store.collect(1000).rows,
        "versions": Store.versions,
        "reports": Store.reports,
        "state": lambda store: [store.read_state("probes")],
        "pinned": lambda store: list(store.pinned().items()),
        "sources": Store.sources,
        "counts": lambda store: [replace(store.counts(), bytes_on_disk=0)],
        "current": lambda store: [store.current()],
        "sample": lambda store: store.sample("train", 20, np.random.default_rng(0), balanced=True),
    }
    for cycle in range(1, cycles + 1):
        asked[f"claims {cycle}"] = _with(Store.claims, cycle)
    for id in ids:
        asked[f"get {id}"] = _with(lambda store, id: [store.get(id)], id)
        asked[f"feedback {id}"] = _with(Store.feedback_of, id)
    return asked


def _with(ask: Callable[[Store, Any], Sequence[Any]], value: object) -> Callable[[Store], Sequence[Any]]:
    return lambda store: ask(store, value)


def answer(ask: Callable[[Store], Sequence[Any]], store: Store) -> Answer:
    """What the store gives, or its error; nothing where it knows no such id."""
    try:
        return ask(store)
    except UnknownIdError:
        return []
    except SonaError as error:
        return error


def wrong(what: str, given: Sequence[Any], expected: Sequence[Any], *, may_be_old: bool) -> list[Any]:
    """What was given and never stored so. Older than it should be is not wrong, but hides something."""
    if what in FIGURES and (may_be_old or what in ("counts", "sources")):
        return []
    known = {one.seq: one for one in expected if isinstance(one, Stored)}
    return [one for one in given if one not in expected and not (isinstance(one, Stored) and _is_older(one, known))]


def _is_older(row: Stored, known: Mapping[int, Stored]) -> bool:
    """As it was before its latest feedback."""
    newest = known.get(row.seq)
    if newest is None or newest.trajectory != row.trajectory:
        return False
    return row.feedback_seq is None or row.feedback_seq < (newest.feedback_seq or 0)
