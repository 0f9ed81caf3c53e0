"""The checks at the boundary: each takes what a caller gave, and returns it in its stored form or says what is
wrong.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from sona.errors import InvalidInputError

MAX_TEXT_BYTES = 4 * 1024 * 1024
MAX_VECTOR_WIDTH = 65_536
MAX_ID_LENGTH = 200

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
VectorLike = bytes | Float32 | npt.NDArray[Any] | Sequence[float]
TokensLike = bytes | Int32 | npt.NDArray[Any] | Sequence[int]

_T = TypeVar("_T")


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
        array = np.frombuffer(value, dtype="<f4")
    else:
        try:
            with np.errstate(over="ignore"):  # becomes an infinity, which is refused below
                array = np.asarray(value, dtype="<f4")
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"{name}: not a vector of numbers ({error}); give a 1-d float array") from None
    if array.ndim != 1 or not 0 < array.size <= MAX_VECTOR_WIDTH:
        raise InvalidInputError(f"{name}: shape {array.shape}; a vector of 1 to {MAX_VECTOR_WIDTH} numbers is allowed")
    # One pass over the numbers: a NaN or an infinity anywhere makes the sum of squares one too. An overflow of finite
    # numbers is refused with them: such a vector has no direction in float32.
    square = float(np.dot(array, array))
    if not math.isfinite(square):
        raise InvalidInputError(
            f"{name}: holds NaN, an infinity or numbers beyond float32's range; send finite numbers"
        )
    if square == 0.0:
        raise InvalidInputError(f"{name}: all zero, which has no direction; leave it out instead")
    return value if isinstance(value, bytes) else array.tobytes()


def pack_tokens(value: TokensLike, name: str = "token ids") -> bytes:
    """``value`` (1-d, not empty, each 0 or more) as little-endian int32 bytes.

    Raises:
        InvalidInputError: empty, not 1-d, not whole numbers, or negative.
    """
    if isinstance(value, bytes):
        if len(value) % 4:
            raise InvalidInputError(
                f"{name}: {len(value)} bytes are no int32 ids; give 4 bytes an id, or a list of ids"
            )
        array = np.frombuffer(value, dtype="<i4")
    else:
        try:
            wide = np.asarray(value)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"{name}: not a list of whole numbers ({error})") from None
        if wide.size and wide.dtype.kind not in "iu":
            raise InvalidInputError(f"{name}: {wide.dtype} values; whole numbers are allowed")
        if wide.size and (int(wide.max()) > np.iinfo(np.int32).max or int(wide.min()) < 0):
            raise InvalidInputError(
                f"{name}: {wide.min()}..{wide.max()}; ids from 0 to {np.iinfo(np.int32).max} are allowed"
            )
        array = wide.astype("<i4")
    if array.ndim != 1 or array.size == 0:
        raise InvalidInputError(f"{name}: shape {array.shape}; a list of at least one id is allowed, or leave it out")
    if array.min() < 0:
        raise InvalidInputError(f"{name}: negative id {array.min()}; ids are 0 or more")
    return value if isinstance(value, bytes) else array.tobytes()


def check_quality(value: object, name: str = "quality") -> float:
    """``value`` as a float in [0, 1], or InvalidInputError."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise InvalidInputError(f"{name}: {value!r}; a number from 0 (useless) to 1 (right) is allowed")
    number = float(value)
    if not 0.0 <= number <= 1.0:  # NaN fails too
        raise InvalidInputError(f"{name}: {number}; from 0 (useless) to 1 (right) is allowed, so scale your reward")
    return number


_ID = re.compile("[^\x00\ud800-\udfff]+", re.DOTALL)


def check_id(value: object, name: str) -> None:
    """``value`` is a text of 1 to 200 characters with something in it."""
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_ID_LENGTH or not _ID.fullmatch(value):
        raise InvalidInputError(
            f"{name}: {value!r:.80}; 1 to {MAX_ID_LENGTH} characters, none of them NUL or half a surrogate, are allowed"
        )


def check_text(value: object, name: str, *, empty: bool = False) -> None:
    """``value`` is valid Unicode of at most 4 MiB, and holds something unless ``empty`` is allowed."""
    if not isinstance(value, str):
        raise InvalidInputError(f"{name}: {type(value).__name__}; a text is allowed")
    if not empty and not value.strip():
        raise InvalidInputError(f"{name}: empty; send the text, or leave the record out")
    try:
        size = len(value) if value.isascii() else len(value.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"{name}: half of a surrogate pair at {error.start}; send valid Unicode") from None
    if size > MAX_TEXT_BYTES:
        raise InvalidInputError(f"{name}: {size} bytes; at most {MAX_TEXT_BYTES} are allowed")


def check_finite(value: object, name: str) -> None:
    """``value`` is None or a finite number."""
    if value is None:
        return
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float, np.floating, np.integer))
        or not math.isfinite(value)
    ):
        raise InvalidInputError(f"{name}: {value!r}; a finite number is allowed")


def check_time(value: object, name: str) -> None:
    """``value`` is a whole number of nanoseconds since 1970."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise InvalidInputError(f"{name}: {value!r}; nanoseconds since 1970 as a whole number are allowed")


def tuple_of(value: object, kind: type[_T], name: str) -> tuple[_T, ...]:
    """``value``, any iterable of ``kind``, as a tuple."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise InvalidInputError(f"{name}: {type(value).__name__}; a list of {kind.__name__} is allowed")
    items = tuple(value)
    for index, item in enumerate(items):
        if not isinstance(item, kind):
            raise InvalidInputError(f"{name}[{index}]: {type(item).__name__}; a {kind.__name__} is allowed")
    return items
