"""``sona review``: the screen on which a person approves what may be learned."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from sona.config import Config, settings_of
from sona.errors import ConfigError, InvalidInputError
from sona.service.bearer import secret_for
from sona.terminal import ConfigPath, StorePath

if TYPE_CHECKING:
    from sona.review_view.of_store import StoreReviewer
    from sona.review_view.over_http import HttpReviewer

Url = Annotated[
    str | None,
    Parameter(name="--url", help="Of the 'sona serve' that has the store open, such as http://127.0.0.1:8000."),
]
TokenFile = Annotated[
    Path | None,
    Parameter(name="--token-file", help="File with its bearer token; else, of a server on this machine, the store's."),
]


def review(
    store: StorePath,
    *,
    url: Url = None,
    token_file: TokenFile = None,
    config: ConfigPath = None,
) -> None:
    """Approve or reject answers that depend on memory, on a screen. Needs sona[tui]."""
    from sona.review_view import check_extra

    check_extra()
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):  # it draws on the last one
        raise InvalidInputError("sona review needs a terminal; 'sona candidates' does the same in scripts")
    reviewer = open_reviewer(store, url, token_file, settings_of(config))
    from sona.review_view.app import ReviewApp

    try:
        reviewer.page()  # what is wrong is told before the screen is taken
        app = ReviewApp(reviewer, reviewer.name)
        try:
            app.run()
        finally:
            app.finish()
    finally:
        reviewer.close()


def open_reviewer(
    store: Path, url: str | None, token_file: Path | None, config: Config
) -> StoreReviewer | HttpReviewer:
    """The way to a store's candidates: through the server at ``url``, or straight to its folder.

    Raises:
        ConfigError: of the address or the token.
        StoreError: there is no store, or it can't be read.
        ExtraMissingError: the server is asked, and httpx is not installed.
    """
    if url is not None:
        from sona.review_view import check_extra

        check_extra()
        from sona.review_view.over_http import HttpReviewer

        return HttpReviewer(url, secret_for(url, store, token_file))
    if token_file is not None:
        raise ConfigError("--token-file without --url: name the server that it is for")
    from sona.review_view.of_store import StoreReviewer

    return StoreReviewer(store, config, _who())


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user, as in some containers
        return "reviewer"
