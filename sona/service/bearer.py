"""The token that a client shows."""

from __future__ import annotations

import base64
import hmac
import logging
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from sona.errors import ConfigError
from sona.http_client import Secret, is_on_this_machine, read_secret

FILE = "service.token"
SHORTEST = 16
log = logging.getLogger("sona.service")


class BearerToken:
    """Compared in constant time; nothing that shows it, its repr included, holds it."""

    def __init__(self, text: str) -> None:
        self._bytes = text.encode("ascii")

    def __repr__(self) -> str:
        return "BearerToken(...)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BearerToken) and hmac.compare_digest(self._bytes, other._bytes)

    __hash__ = None  # type: ignore[assignment]  # no key of anything: what is hashed may be told

    def matches(self, header: bytes | None) -> bool:
        """Whether an ``Authorization`` header shows it."""
        scheme, _, shown = (header or b"").partition(b" ")
        # Compared whatever the scheme is, so that the time tells nothing.
        same = hmac.compare_digest(shown.strip(), self._bytes)
        return same and scheme.lower() == b"bearer"


def check_apart(token: BearerToken, reviewer: BearerToken) -> None:
    """Raises ConfigError where the reviewer's token is the server's own."""
    if token == reviewer:
        raise ConfigError(
            "service.reviewer_token_file: it holds the server's own token, which every client has; write another there"
        )


def password_of(header: bytes | None) -> bytes:
    """What an ``Authorization`` header shows as a password; nothing where it is none of that kind."""
    scheme, _, shown = (header or b"").partition(b" ")
    if scheme.lower() != b"basic":
        return b""
    try:
        return base64.b64decode(shown.strip(), validate=True).partition(b":")[2]
    except ValueError:
        return b""


def read_token(file: Path) -> BearerToken:
    """The token in ``file``.

    Raises:
        ConfigError: it can't be read, or holds none. It says where, and never what.
    """
    try:
        text = file.read_text(encoding="utf-8").strip()
        mode = file.stat().st_mode
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"token file {str(file)!r} can't be read: {why}") from None
    if len(text) < SHORTEST or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError(
            f"token file {str(file)!r}: one line of at least {SHORTEST} printable ASCII characters without spaces is "
            "allowed"
        )
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        log.warning("token file %s can be read by others than its owner; chmod 600", file)
    return BearerToken(text)


def secret_for(url: str, store: Path | None, token_file: Path | None) -> Secret | None:
    """The token to show to a sona server: that of the file that was named, or else the store's own, which is the
    business of no server but one on this machine; None where there is neither.

    Raises:
        ConfigError: the file can't be read, or holds none. It says where, and never what.
    """
    file = token_file
    if file is None and store is not None and is_on_this_machine(url) and (store / FILE).is_file():
        file = store / FILE
    return read_secret(file="" if file is None else str(file))


def own_token(store: Path) -> BearerToken:
    """The token of the store's own file, which is made, for its owner alone (0600), where there is none.

    Raises:
        ConfigError: it can't be read or made.
    """
    file = store / FILE
    if not file.exists():
        try:
            _make(file)
        except OSError as error:
            why = f"token file {str(file)!r} can't be made: {error.strerror}"
            raise ConfigError(f"{why}; give one with --token-file") from None
    return read_token(file)


def _make(file: Path) -> None:
    draft = file.with_name(f"{FILE}.{secrets.token_hex(8)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as opened:
            opened.write(secrets.token_urlsafe(32) + "\n")
            opened.flush()
            os.fsync(opened.fileno())
        with suppress(FileExistsError):  # another process was quicker
            os.link(draft, file)  # whole or not at all, unlike a file that is written under its name
    finally:
        draft.unlink()
