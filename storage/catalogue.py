"""The tables as they lie in the file: their columns, what those may hold, and what each row's checksum is over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sona.storage.rows import Value, row_crc

Row = dict[str, Value]

_KEY_WIDTHS = {"claim_groups": 4, "learned": 2, "memory_weights": 2, "candidates": 3}
"""So many of its first columns tell a table's row from others; where it is not named here, one."""
_KINDS: dict[type, str] = {int: "i", float: "r", str: "t", bytes: "b", type(None): "n"}


def _itself(value: Value) -> Value:
    return value


@dataclass(frozen=True)
class Table:
    """One table's form."""

    name: str
    columns: Mapping[str, str]
    """By name, in the file's order, what a value may be: (i)nteger, (r)eal, (t)ext, (b)lob, (n)ull."""
    summed: tuple[str, ...]
    """The columns that the checksum is over, in its order."""
    has_rowid: bool = True
    """Whether it is a tree of rows by number; otherwise of rows by key."""
    numbered: bool = True
    """Whether its first column is the row's number, and so not among the values in the file."""
    in_blobs: tuple[str, ...] = ()
    """Columns whose bytes may lie in a blob file."""

    @property
    def selected(self) -> list[str]:
        """All columns, with the bytes themselves, wherever they lie."""
        return [f"content({name})" if name in self.in_blobs else name for name in self.columns]

    @property
    def selection(self) -> str:
        """... as a SELECT has them."""
        return ", ".join(self.selected)

    def row(self, number: int | None, values: Sequence[Value]) -> Row | None:
        """The values by name; None where they are not those of a row of this table."""
        if len(values) != len(self.columns):
            return None
        row: Row = {}
        for (name, kinds), value in zip(self.columns.items(), values, strict=True):
            # A real without a fraction lies in the file as an integer (sqlite.org/datatype3.html, 2).
            fits = float(value) if kinds == "r" and isinstance(value, int) else value
            if not row and self.numbered:
                fits = number
            if _KINDS[type(fits)] not in kinds:
                return None
            row[name] = fits
        return row

    def is_whole(self, row: Row, content: Callable[[Value], Value] = _itself) -> bool:
        """Whether the row's checksum is that of its values; ``content`` gives what lies in a blob file."""
        try:
            values = (content(row[name]) if name in self.in_blobs else row[name] for name in self.summed)
            return row_crc(*values) == row["crc"]
        except UnicodeEncodeError:  # a text that was none any more
            return False

    def key(self, row: Row) -> str:
        """What a person finds the row by."""
        if self.name in ("trajectories", "feedback", "versions"):
            return f"{self.name} seq {row['seq']!r}, id {row['id']!r}"
        names = list(self.columns)[: _KEY_WIDTHS.get(self.name, 1)]
        return ", ".join([self.name, *(f"{name} {row[name]!r}" for name in names)])


TRAJECTORIES = Table(
    "trajectories",
    {"seq": "i", "id": "t", "source": "t", "created_ns": "i", "embedding": "bn", "payload": "b", "crc": "i"},
    ("id", "source", "created_ns", "embedding", "payload"),
    in_blobs=("payload",),
)
FEEDBACK = Table(
    "feedback",
    {"seq": "i", "id": "t", "trajectory": "i", "quality": "r", "payload": "b", "crc": "i"},
    ("id", "trajectory", "quality", "payload"),
)
_OLD_CLAIM = {
    "seq": "i",
    "cycle": "i",
    "role": "t",
    "ordinal": "i",
    "feedback": "i",
    "prompt_ids": "bn",
    "response_ids": "bn",
    "crc": "i",
}
CLAIMS = Table(
    "claims",
    {**_OLD_CLAIM, "skill": "t", "pattern": "t", "place": "i"},
    ("cycle", "role", "ordinal", "skill", "pattern", "place", "seq", "feedback", "prompt_ids", "response_ids"),
)
OLD_CLAIMS = Table("claims", _OLD_CLAIM, ("cycle", "role", "ordinal", "seq", "feedback", "prompt_ids", "response_ids"))
"""Of schema 1."""
CYCLES = Table(
    "cycles",
    {
        "cycle": "i",
        "status": "t",
        "version": "tn",
        "train": "i",
        "held_out": "i",
        "left_out": "i",
        "report": "b",
        "crc": "i",
    },
    ("cycle", "status", "version", "train", "held_out", "left_out", "report"),
)
VERSIONS = Table(
    "versions",
    {"seq": "i", "id": "t", "parent": "tn", "cycle": "i", "created_ns": "i", "payload": "b", "crc": "i"},
    ("id", "parent", "cycle", "created_ns", "payload"),
)
_TOTALS = ("trajectories", "feedback", "steps", "rewards", "rated", "completed", "failed", "abandoned")
_SOURCE_COLUMNS = (
    ("source", "t"),
    *((name, "i") for name in _TOTALS[:4]),
    ("reward_sum", "r"),
    ("rated", "i"),
    ("quality_sum", "r"),
    *((name, "i") for name in _TOTALS[5:]),
)
SOURCES = Table(
    "sources",
    {**dict(_SOURCE_COLUMNS), "crc": "i"},
    tuple(name for name, _ in _SOURCE_COLUMNS),
    numbered=False,
)
STATE = Table("state", {"name": "t", "value": "b", "crc": "i"}, ("name", "value"), numbered=False)
HEAD = Table(
    "head",
    {"one": "i", "version": "t", "watermark": "i", "left_out": "i", "width": "in", "crc": "i"},
    ("version", "watermark", "left_out", "width"),
)
ARRIVALS = Table(
    "arrivals",
    {"minute": "i", "trajectories": "i", "feedback": "i", "crc": "i"},
    ("minute", "trajectories", "feedback"),
)
LEARNED = Table(
    "learned",
    {"source": "t", "cycle": "i", "trajectories": "i", "crc": "i"},
    ("source", "cycle", "trajectories"),
    has_rowid=False,
    numbered=False,
)
CLAIM_GROUPS = Table(
    "claim_groups",
    {"cycle": "i", "role": "t", "skill": "t", "pattern": "t", "size": "i", "crc": "i"},
    ("cycle", "role", "skill", "pattern", "size"),
    has_rowid=False,
    numbered=False,
)
CANDIDATES = Table(
    "candidates",
    {
        "seq": "i",
        "trajectory": "t",
        "at_ns": "i",
        "source": "t",
        "state": "t",
        "divergence": "r",
        "payload": "b",
        "crc": "i",
    },
    ("seq", "trajectory", "at_ns", "source", "state", "divergence", "payload"),
)
MEMORY_WEIGHTS = Table(
    "memory_weights",
    {"source": "t", "key": "t", "weight": "r", "last_scored_ns": "i", "times": "i", "crc": "i"},
    ("source", "key", "weight", "last_scored_ns", "times"),
    has_rowid=False,
    numbered=False,
)

BLOBS = Table(
    "blobs",
    {"file": "i", "size": "i", "live": "i", "wiped": "i", "first": "i", "crc": "i"},
    ("file", "size", "live", "wiped", "first"),
)

TABLES = (
    TRAJECTORIES,
    FEEDBACK,
    CLAIMS,
    CYCLES,
    VERSIONS,
    SOURCES,
    STATE,
    HEAD,
    ARRIVALS,
    LEARNED,
    CLAIM_GROUPS,
    CANDIDATES,
    MEMORY_WEIGHTS,
    BLOBS,
)
"""All of the schema in force."""
