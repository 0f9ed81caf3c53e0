"""What all records are: frozen, checked when they are built, of a known schema, with ids that sort by time."""

from __future__ import annotations

import os
import time
from typing import NoReturn, dataclass_transform

import msgspec

from sona.checks import shown
from sona.errors import InvalidInputError

SCHEMA = 1
"""Version of the records that this code writes; a reader refuses a higher one. The fields' default stays 1 for good:
defaults are not written, so a record without a version is of the first."""


def new_id() -> str:
    """A time-ordered random id: UUID version 7 (RFC 9562 §5.7), as 32 hex digits."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | (0x7 << 76)
    value = value & ~(0x3 << 62) | (0x2 << 62)
    return f"{value:032x}"


class Texts(dict[str, str]):
    """Texts by name that can't be changed: what is part of a record stays as it was checked."""

    def __reduce__(self) -> tuple[type[Texts], tuple[dict[str, str]]]:
        return Texts, (dict(self),)  # copies are built at once, too

    def __setitem__(self, key: str, value: str) -> NoReturn:
        raise TypeError(_FROZEN)

    def __delitem__(self, key: str) -> NoReturn:
        raise TypeError(_FROZEN)

    def __ior__(self, other: object) -> NoReturn:  # type: ignore[misc]
        raise TypeError(_FROZEN)

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError(_FROZEN)

    clear = pop = popitem = setdefault = update = _refuse


_FROZEN = "a record can't be changed: give its metadata when it is built, or build another by msgspec.structs.replace()"
NO_TEXTS = Texts()
"""By its identity it is known as a default, and not written."""


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))  # type checkers don't inherit ``frozen``
class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What all records share: frozen, unknown fields refused. (``kw_only`` is not inherited, so each says it again.)"""


def check_schema(schema: object) -> None:
    """Raise InvalidInputError where a record was written by a newer sona."""
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise InvalidInputError(f"schema: {shown(schema)}; this sona reads 1 to {SCHEMA}, so update it")
