"""What all groups of settings are: frozen, and each value checked against its annotation."""

from __future__ import annotations

from typing import Any, dataclass_transform

import msgspec

from sona.checks import shown
from sona.errors import ConfigError
from sona.wording import choices_of, wrong


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))  # type checkers don't inherit ``frozen``
class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What all groups of settings share: each value is checked against its annotation, built in code or read from a
    file.
    """

    def __post_init__(self) -> None:
        group = type(self).__name__.removesuffix("Config").lower()
        for field in msgspec.structs.fields(self):
            name = f"{group}.{field.name}" if group else field.name
            # What was converted is kept: an int where a float is declared becomes one, a list a tuple.
            msgspec.structs.force_setattr(self, field.name, checked(getattr(self, field.name), field.type, name))


def checked(value: object, kind: Any, name: str) -> object:
    """``value`` as the declared type of the setting ``name``."""
    if isinstance(kind, type) and issubclass(kind, Settings):
        if not isinstance(value, kind):
            raise ConfigError(f"{name}: a {type(value).__name__}; a {kind.__name__} is allowed")
        return value
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, OverflowError) as error:  # an int may be larger than any float
        raise ConfigError(f"{name}: {shown(value)}; {_why(error, kind)}") from None


def _why(error: Exception, kind: Any) -> str:
    if choices := choices_of(kind):
        return f"one of {', '.join(choices)} is allowed"
    found = wrong(error, kind)
    return f"{'in ' + found.path + ': ' if found.path else ''}{found.why}"
