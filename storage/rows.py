"""Records as rows and back: msgpack payloads, raw vectors, and a checksum for each row."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
from crc32c import crc32c

from sona.errors import InvalidInputError, SonaError, StoreCorruptError
from sona.types import Feedback, Record, Trajectory

Value = str | bytes | memoryview | int | float | None
"""What a column holds, or is given."""

_R = TypeVar("_R", bound=Record)


def _plain(value: object) -> Any:
    if isinstance(value, np.generic):  # the checks let numpy's numbers in
        return value.item()
    if isinstance(value, str):  # and classes of a host's own, such as markupsafe's
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    raise TypeError(f"{type(value).__name__} can't be stored")


UNENCODABLE = (TypeError, ValueError, OverflowError)
"""What :data:`encoder` raises of what msgpack has no form for, such as half of a surrogate pair."""
encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
"""Of records as msgpack. Whoever calls it raises :func:`without_form` of an :data:`UNENCODABLE`."""
_decoders: dict[type[Record], msgspec.msgpack.Decoder[Any]] = {}


def row_crc(*values: Value) -> int:
    """CRC-32C over the msgpack form of a row's values, which tells apart types and where one value ends."""
    return crc32c(encoder.encode(values))


def check_crc(crc: Value, *values: Value, row: str) -> None:
    """Raise StoreCorruptError, naming ``row``, unless ``crc`` is that of ``values``. In a damaged row either may be of
    any kind.
    """
    if (found := row_crc(*values)) != crc:
        raise damaged(row, f"its checksum is {found}, written as {crc!r}")


def damaged(row: str, what: str) -> StoreCorruptError:
    """The error that names a damaged row."""
    return StoreCorruptError(f"{row} is damaged: {what}; 'sona doctor' says what else is, and repairs what can be")


def encode(record: Record) -> bytes:
    """A record as msgpack.

    Raises:
        InvalidInputError: it holds something that msgpack has no form for, such as half of a surrogate pair.
    """
    try:
        return encoder.encode(record)
    except UNENCODABLE as error:
        raise without_form(record, error) from None


def encode_onto(record: Record, data: bytearray) -> None:
    """As :func:`encode`, behind what is in ``data``; a batch made so takes half the time, as new bytes grow by copying
    themselves. Where it raises, ``data`` is as before.
    """
    before = len(data)
    try:
        encoder.encode_into(record, data, -1)
    except UNENCODABLE as error:
        del data[before:]
        raise without_form(record, error) from None


def without_form(record: Record, error: Exception) -> InvalidInputError:
    """The error of a record that has no stored form."""
    return InvalidInputError(f"{type(record).__name__.lower()}: {error}; send plain numbers and valid Unicode")


def decode(payload: bytes, kind: type[_R], row: str) -> _R:
    """A record from its msgpack; StoreCorruptError, naming ``row``, where it is none."""
    if (decoder := _decoders.get(kind)) is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        record: _R = decoder.decode(payload)
    except (msgspec.DecodeError, SonaError) as error:
        raise damaged(row, str(error)) from error
    return record


class TrajectoryRow(NamedTuple):
    """The columns of a trajectory, in the table's order."""

    id: str
    source: str
    created_ns: int
    embedding: bytes | None
    payload: bytes | memoryview
    """The trajectory without its embedding, or with it, where that column has none."""
    crc: int


TRAJECTORY_COLUMNS = "id, source, created_ns, embedding, content(payload), crc"
"""What to select for a :class:`TrajectoryRow`: with the payload itself, wherever it lies."""


class FeedbackRow(NamedTuple):
    """The columns of a feedback, in the table's order."""

    id: str
    trajectory: int
    quality: float
    payload: bytes
    crc: int


def trajectory_row(record: Trajectory) -> TrajectoryRow:
    """``record`` as a row; InvalidInputError where it has no stored form."""
    bare = record
    if record.embedding is not None:
        # Not `replace`: it would check the whole again, and refuse it without a prompt. Not copy.copy: half as fast.
        bare = record.__copy__()  # type: ignore[attr-defined]  # msgspec has it, its stubs do not
        msgspec.structs.force_setattr(bare, "embedding", None)
    values = (record.id, record.source, record.created_ns, record.embedding, encode(bare))
    return TrajectoryRow(*values, row_crc(*values))


def whole_row(record: Trajectory, payload: memoryview) -> TrajectoryRow:
    """... with the embedding in its ``payload``, which lies in a blob file and was made by :func:`encode_onto`."""
    values = (record.id, record.source, record.created_ns, None, payload)
    return TrajectoryRow(*values, row_crc(*values))


def feedback_row(record: Feedback, trajectory: int) -> FeedbackRow:
    """``record`` as a row, for the trajectory with this seq; InvalidInputError where it has no stored form."""
    values = (record.id, trajectory, float(record.quality), encode(record))
    return FeedbackRow(*values, row_crc(*values))


_EMBEDDING_KEY = msgspec.msgpack.encode("embedding")
_MAP16 = b"\xde"


def read_trajectory(row: TrajectoryRow, *claimed: tuple[str, bytes | None]) -> Trajectory:
    """The trajectory of a row, with ``claimed`` fields filled in where it has none.

    Raises:
        StoreCorruptError: the row is damaged.
    """
    name = f"trajectory {row.id!r}"
    check_crc(row.crc, *row[:-1], row=name)
    payload = bytes(row.payload)
    if row.embedding is not None:
        payload = _with_embedding(payload, row.embedding)
    trajectory = decode(payload, Trajectory, name)
    for field, value in claimed:
        if value is not None and getattr(trajectory, field) is None:
            msgspec.structs.force_setattr(trajectory, field, value)  # ours alone: decoded just now
            trajectory.__dict__.clear()  # its largest token is another one
    return trajectory


def _with_embedding(payload: bytes, embedding: bytes) -> bytes:
    """``payload`` with one more entry in its msgpack map, so that the record is built, and checked, once and whole.

    A map begins with 0x80 plus the number of its entries, or from 16 of them on with 0xde and two bytes
    (github.com/msgpack/msgpack/blob/master/spec.md, "map format family").
    """
    if payload[:1] == _MAP16:
        entries, rest = int.from_bytes(payload[1:3], "big"), payload[3:]
    else:
        entries, rest = payload[0] - 0x80, payload[1:]
    header = _MAP16 + (entries + 1).to_bytes(2, "big")
    return header + rest + _EMBEDDING_KEY + msgspec.msgpack.encode(embedding)


def read_feedback(row: FeedbackRow) -> Feedback:
    """The feedback of a row; StoreCorruptError where it is damaged."""
    name = f"feedback {row.id!r}"
    check_crc(row.crc, *row[:-1], row=name)
    return decode(row.payload, Feedback, name)
