"""What memories were worth so far: one row a memory of a source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import apsw
import msgspec

from sona.candidate import MemoryWeight
from sona.storage.rows import check_crc, row_crc

if TYPE_CHECKING:
    from sona.storage.transactions import Snapshot, Transact

_COLUMNS = "source, key, weight, last_scored_ns, times, crc"
_GET = f"SELECT {_COLUMNS} FROM memory_weights WHERE source = ? AND key = ?"
_OLDEST = f"SELECT {_COLUMNS} FROM memory_weights WHERE source = ? ORDER BY last_scored_ns, key LIMIT ?"
_LIGHTEST = f"""
SELECT {_COLUMNS} FROM memory_weights WHERE source = ? AND weight < ? AND times >= ? ORDER BY weight, key LIMIT ?
"""


class MemoryWeightRows:
    """The weights of a store; the port is :class:`sona.ports.MemoryWeights`."""

    def __init__(self, transact: Transact, snapshot: Snapshot) -> None:
        self._transact, self._snapshot = transact, snapshot

    def get(self, key: str, source: str = "default") -> MemoryWeight | None:
        """A memory's weight; None where it was never scored."""
        with self._snapshot() as connection:
            row = connection.execute(_GET, (source, key)).get
        return None if row is None else _read(row)

    def put(self, weights: Sequence[MemoryWeight]) -> None:
        """Replace the weights of these memories, durably, all or none."""

        def work(connection: apsw.Connection) -> None:
            for one in weights:
                values = (one.source, one.key, one.weight, one.last_scored_ns, one.times)
                sql = "INSERT OR REPLACE INTO memory_weights VALUES (?, ?, ?, ?, ?, ?)"
                connection.execute(sql, (*values, row_crc(*values)))

        self._transact(work)

    def of(self, source: str) -> SourceWeights:
        """Those of one source, for whoever scores its memories one by one."""
        return SourceWeights(self, source)

    def remove(self, keys: Sequence[str], source: str = "default") -> None:
        """Forget memories that the host has no more, durably; of unknown ones nothing comes."""

        def work(connection: apsw.Connection) -> None:
            for key in keys:
                connection.execute("DELETE FROM memory_weights WHERE source = ? AND key = ?", (source, key))

        self._transact(work)

    def oldest(self, limit: int, source: str = "default") -> list[MemoryWeight]:
        """Those that were not scored for the longest time, first."""
        with self._snapshot() as connection:
            return [_read(row) for row in connection.execute(_OLDEST, (source, limit))]

    def prune_candidates(
        self, below: float, source: str = "default", *, min_times: int = 3, limit: int = 100
    ) -> list[MemoryWeight]:
        """Memories that were scored at least ``min_times`` times and are worth less than ``below`` nats, the least
        first.
        """
        with self._snapshot() as connection:
            return [_read(row) for row in connection.execute(_LIGHTEST, (source, below, min_times, limit))]


class SourceWeights:
    """The weights of one source's memories."""

    def __init__(self, rows: MemoryWeightRows, source: str) -> None:
        self._rows, self._source = rows, source

    def weight_of(self, key: str) -> MemoryWeight | None:
        """None: never scored."""
        return self._rows.get(key, self._source)

    def write_weight(self, weight: MemoryWeight) -> None:
        """Replace what was there for its key, durably; whatever source it names, it is this one's."""
        self._rows.put([msgspec.structs.replace(weight, source=self._source)])


def _read(row: tuple[Any, ...]) -> MemoryWeight:
    *values, crc = row
    source, key, weight, last_scored_ns, times = values
    check_crc(crc, *values, row=f"weight of memory {key!r} of {source!r}")
    return MemoryWeight(source=source, key=key, weight=weight, last_scored_ns=last_scored_ns, times=times)
