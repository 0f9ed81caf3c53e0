"""The checks at the boundary: each takes what a caller gave, and returns it in its stored form or says what is
wrong.
"""

from __future__ import annotations

import difflib
import inspect
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import numpy as np
import numpy.typing as npt

from sona.errors import InvalidInputError

MAX_TEXT_BYTES = 4 * 1024 * 1024
MAX_VECTOR_WIDTH = 65_536
MAX_ID_LENGTH = 200
MAX_NUMBER = 1e9
"""Rewards and durations are no larger, so that no sum of them leaves the floats."""
MAX_COUNT = 2**63 - 1
MAX_TOKEN = 2**31 - 1

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
VectorLike = bytes | Float32 | npt.NDArray[Any] | Sequence[float]
TokensLike = bytes | Int32 | npt.NDArray[Any] | Sequence[int]

_T = TypeVar("_T")

# Made once: from its name, each use makes it anew.
_FLOAT32, _INT32, _UINT32 = np.dtype("<f4"), np.dtype("<i4"), np.dtype("<u4")
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


SHOWN = 80
"""Characters of a value in a message."""


def shown(value: object) -> str:
    """``value`` for a message: at most 80 characters of its repr, which say whether it was cut, or its type where it
    has none.
    """
    try:
        text = repr(value[:SHOWN] if isinstance(value, (str, bytes)) else value)
        if len(text) <= SHOWN and (not isinstance(value, (str, bytes)) or len(value) <= SHOWN):
            return text
        quote = text[-1] if isinstance(value, (str, bytes)) else ""
        return f"{text[: SHOWN - 4]}{quote}..."
    except Exception:  # Python prints no int of more than 4,300 digits, and a foreign type may raise anything
        return f"a {type(value).__name__}"


def did_you_mean(word: object, names: Iterable[str], before: str = "") -> str:
    """A hint at the one of ``names`` that ``word`` is much like, to go behind a message; "" where it is like none.
    ``before`` stands before the name.
    """
    near = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    return f"; did you mean {before}{near[0]!r}?" if near else ""


def pack_vector(value: VectorLike, name: str = "embedding") -> bytes:
    """``value`` (1-d, finite, not all zero) as little-endian float32 bytes.

    Raises:
        InvalidInputError: empty, not 1-d, wider than 65,536, NaN, infinite, all zero, or no numbers.
    """
    if isinstance(value, bytes):
        if len(value) % 4:
            raise InvalidInputError(
                f"{name}: {len(value)} bytes are no float32 vector; give 4 bytes a number, or an array"
            )
        array = np.frombuffer(value, dtype=_FLOAT32)
    elif type(value) is np.ndarray and value.dtype == _FLOAT32:
        array = value
    else:
        array = _as_float32(_array(value, name, "iuf"))  # what overflows is an infinity, which is refused below
    if array.ndim != 1 or not 0 < array.size <= MAX_VECTOR_WIDTH:
        raise InvalidInputError(f"{name}: shape {array.shape}; a vector of 1 to {MAX_VECTOR_WIDTH} numbers is allowed")
    # One pass over the numbers: a NaN or an infinity anywhere makes the sum of squares one too. An overflow of finite
    # numbers is refused with them: such a vector has no direction in float32.
    square = float(np.vdot(array, array))  # as fast as np.dot, which warns of an overflow
    if not math.isfinite(square):
        raise InvalidInputError(
            f"{name}: holds NaN, an infinity or numbers beyond float32's range; send finite numbers"
        )
    if square == 0.0:
        raise InvalidInputError(f"{name}: all zero or next to it, which has no direction; leave it out instead")
    return value if type(value) is bytes else array.tobytes()


def real_numbers(value: object, name: str) -> Float32:
    """``value`` as float32 of any shape, itself where it is that already; what float32 can't hold becomes infinite.

    Raises:
        InvalidInputError: something that is no real number, or no array.
    """
    return _as_float32(_array(value, name, "iuf"))


def _as_float32(numbers: npt.NDArray[Any]) -> Float32:
    """``numbers`` in float32, infinite where that can't hold them.

    Without `np.errstate`, which sets a context variable: a trajectory may be made in a finaliser, and where the
    collector calls that in the midst of a host's own `ContextVar.set`, Python 3.11 crashes.
    """
    if numbers.dtype.kind == "f" and numbers.dtype.itemsize > 4:
        beyond = np.abs(numbers) > _LARGEST_FLOAT32  # NaN is not
        if beyond.any():
            numbers = np.where(beyond, np.copysign(np.inf, numbers), numbers)
    return numbers.astype(_FLOAT32, copy=False)


def _array(value: object, name: str, kinds: str) -> npt.NDArray[Any]:
    """``value`` as an array whose numbers are of one of numpy's ``kinds``; an empty one may be of any."""
    if isinstance(value, (bytearray, memoryview)):  # numpy reads each byte as a number
        raise InvalidInputError(f"{name}: a {type(value).__name__}; give bytes, an array or a list of numbers")
    try:
        array = np.asarray(value)
    except Exception as error:  # a foreign array's own conversion raises what it likes (torch: RuntimeError)
        raise InvalidInputError(f"{name}: not a list of numbers ({error}); give a 1-d array or a list") from None
    if array.size and array.dtype.kind not in kinds:
        allowed = "real" if "f" in kinds else "whole"
        raise InvalidInputError(f"{name}: {array.dtype} values; {allowed} numbers within 64 bits are allowed")
    return array


def pack_tokens(value: TokensLike, name: str = "token ids") -> bytes:
    """``value`` (1-d, not empty, each 0 or more) as little-endian int32 bytes.

    Raises:
        InvalidInputError: empty, not 1-d, not whole numbers, or negative.
    """
    return pack_tokens_and_largest(value, name)[0]


def pack_tokens_and_largest(value: TokensLike, name: str = "token ids") -> tuple[bytes, int]:
    """As :func:`pack_tokens`, with the largest id."""
    if isinstance(value, bytes):
        if len(value) % 4:
            raise InvalidInputError(
                f"{name}: {len(value)} bytes are no int32 ids; give 4 bytes an id, or a list of ids"
            )
        array = np.frombuffer(value, dtype=_INT32)
    elif type(value) is np.ndarray and value.dtype == _INT32:
        array = value
    else:
        wide = _array(value, name, "iu")
        if wide.size and (int(wide.max()) > MAX_TOKEN or int(wide.min()) < 0):
            raise _no_token(wide, name)
        array = wide.astype(_INT32)
    if array.ndim != 1 or array.size == 0:
        raise InvalidInputError(
            f"{name}: shape {array.shape}; one list of at least one id is allowed, as the first row of a batch is"
        )
    largest = largest_token(array)
    if largest > MAX_TOKEN:
        raise _no_token(array, name)
    return value if type(value) is bytes else array.tobytes(), largest


def _no_token(ids: npt.NDArray[Any], name: str) -> InvalidInputError:
    flat = ids.ravel()
    place = int(np.flatnonzero((flat < 0) | (flat > MAX_TOKEN))[0])
    return InvalidInputError(f"{name}: {flat[place]} at place {place}; ids from 0 to {MAX_TOKEN} are allowed")


def largest_token(ids: Int32 | bytes) -> int:
    """The largest of ``ids``, int32 (tokens,) with at least one or its bytes; above :data:`MAX_TOKEN` where one is
    negative: read without their sign, so that one pass finds both ends.
    """
    unsigned = np.frombuffer(ids, dtype=_UINT32) if isinstance(ids, bytes) else ids.view(_UINT32)
    largest: int = unsigned.item(unsigned.argmax())  # half the time of a reduction, which goes through all of numpy
    return largest


def check_quality(value: object, name: str = "quality") -> float:
    """``value`` as a float in [0, 1], or InvalidInputError."""
    if not _is_number(value):
        raise InvalidInputError(f"{name}: {shown(value)}; a number from 0 (useless) to 1 (right) is allowed")
    if not 0.0 <= value <= 1.0:  # NaN fails too
        raise InvalidInputError(
            f"{name}: {shown(value)}; from 0 (useless) to 1 (right) is allowed, so scale your reward"
        )
    return float(value) + 0.0  # -0.0 becomes 0.0: SQLite keeps no sign of a zero, and a checksum does


def check_number(value: object, name: str, low: float = -MAX_NUMBER, high: float = MAX_NUMBER) -> float:
    """``value`` as a float from ``low`` to ``high``, or InvalidInputError."""
    # Compared before it is converted: an int may be larger than any float.
    if not _is_number(value) or not low <= value <= high:
        raise InvalidInputError(f"{name}: {shown(value)}; a number from {low:g} to {high:g} is allowed")
    return float(value)


def check_count(value: object, name: str, high: int = MAX_COUNT) -> None:
    """``value`` is a whole number from 0 to ``high``."""
    if type(value) is not int or not 0 <= value <= high:
        raise InvalidInputError(f"{name}: {shown(value)}; a whole number from 0 to {high} is allowed")


def _is_number(value: object) -> TypeGuard[int | float]:
    if type(value) is float or type(value) is int:
        return True
    return isinstance(value, (int, float, np.floating, np.integer)) and not isinstance(value, bool)


_ID = re.compile("[^\x00\ud800-\udfff]+", re.DOTALL)


def check_id(value: object, name: str) -> None:
    """``value`` is a text of 1 to 200 characters with something in it."""
    if isinstance(value, str) and 0 < len(value) <= MAX_ID_LENGTH:
        if value.isascii() and value.isprintable():  # nearly all are, and a pattern takes as long as the rest
            if not value.isspace():
                return
        elif value.strip() and _ID.fullmatch(value) is not None:
            return
    raise InvalidInputError(
        f"{name}: {shown(value)}; 1 to {MAX_ID_LENGTH} characters without NUL or half a surrogate are allowed"
    )


def check_text(value: object, name: str, *, empty: bool = False) -> None:
    """``value`` is valid Unicode of at most 4 MiB, and holds something unless ``empty`` is allowed."""
    if not isinstance(value, str):
        raise InvalidInputError(f"{name}: {type(value).__name__}; a text is allowed")
    if empty and not value:
        return
    if not empty and not value.strip():
        raise InvalidInputError(f"{name}: empty; a text with something in it is allowed")
    try:
        size = len(value) if value.isascii() else len(value.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"{name}: half of a surrogate pair at {error.start}; send valid Unicode") from None
    if size > MAX_TEXT_BYTES:
        raise InvalidInputError(f"{name}: {size} bytes; at most {MAX_TEXT_BYTES} are allowed")


def check_time(value: object, name: str) -> None:
    """``value`` is a whole number of nanoseconds since 1970."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise InvalidInputError(f"{name}: {shown(value)}; nanoseconds since 1970 as a whole number are allowed")


def check_one_of(value: object, allowed: Sequence[str], name: str) -> None:
    """``value`` is one of the texts in ``allowed``."""
    if not isinstance(value, str) or value not in allowed:
        raise InvalidInputError(f"{name}: {shown(value)}; one of {', '.join(allowed)} is allowed")


def folder_of(path: object, name: str = "store") -> Path:
    """``path`` as a Path, ``~`` as the home; the empty one, which the system takes for the working folder, is
    InvalidInputError.
    """
    # Unlike Path.expanduser this leaves an unknown ~name as it is.
    return Path(os.path.expanduser(_path_of(path, name, "the path of a folder is allowed, '.' for the working folder")))


def file_of(path: object, name: str = "file") -> Path:
    """``path`` as a Path, or InvalidInputError, also where it is empty."""
    return _path_of(path, name, "the path of a file is allowed")


def _path_of(path: object, name: str, allowed: str) -> Path:
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path) or not isinstance(os.fspath(path), str):
        raise InvalidInputError(f"{name}: {shown(path)}; {allowed}")
    return Path(path)


def check_function(value: object, name: str, what: str) -> None:
    """``value`` can be called, and need not be awaited; ``what`` says what it is, as in a message."""
    if not callable(value) or inspect.iscoroutinefunction(value):
        raise InvalidInputError(f"{name}: {shown(value)}; {what} is allowed, and no async one")


def check_kind(value: object, kind: type, name: str) -> None:
    """``value`` is an instance of ``kind``."""
    if not isinstance(value, kind):
        raise InvalidInputError(f"{name}: {type(value).__name__}; a {kind.__name__} is allowed")


def check_mapping(value: object, name: str) -> None:
    """``value`` is a mapping whose keys are ids."""
    if not isinstance(value, Mapping):
        raise InvalidInputError(f"{name}: {type(value).__name__}; a mapping is allowed")
    for key in value:
        check_id(key, f"{name} key")


def tuple_of(value: object, kind: type[_T], name: str) -> tuple[_T, ...]:
    """``value``, any iterable of ``kind``, as a tuple."""
    items = value if type(value) is tuple else _listed(value, kind, name)
    for index, item in enumerate(items):
        # No subclass of a record: what it adds could be stored, and not read.
        if type(item) is not kind and not (kind is str and isinstance(item, str)):
            raise InvalidInputError(f"{name}[{index}]: {type(item).__name__}; a {kind.__name__} is allowed")
    return items


def _listed(value: object, kind: type, name: str) -> tuple[Any, ...]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise InvalidInputError(f"{name}: {type(value).__name__}; a list of {kind.__name__} is allowed")
    return tuple(value)
