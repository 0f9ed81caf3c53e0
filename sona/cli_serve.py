"""``sona serve``."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from sona.config import settings_of
from sona.errors import ConfigError, StoreLockedError
from sona.terminal import ConfigPath, ModelName, StorePath, out, plain

if TYPE_CHECKING:
    from sona.service.server import Serving


def serve(
    store: StorePath,
    *,
    model: ModelName,
    host: Annotated[str, Parameter(help="Address to serve on; beyond this machine only if you name it.")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="0: any that is free.")] = 8000,
    token_file: Annotated[
        Path | None, Parameter(help="File with the bearer token; otherwise the store's service.token, which is made.")
    ] = None,
    no_token: Annotated[bool, Parameter(name="--no-token", negative="", help="Ask for no token.")] = False,
    anyone: Annotated[
        bool,
        Parameter(name="--anyone", negative="", help="With --no-token and a --host beyond this machine: I mean it."),
    ] = False,
    config: ConfigPath = None,
    learn: Annotated[bool, Parameter(help="A cycle every cycle.interval_s seconds, in a process of its own.")] = True,
) -> None:
    """Serve the model to OpenAI clients, record what it answers, take feedback, and learn. Needs sona[server]."""
    from sona.service import check_extra
    from sona.service.address import bind

    check_extra()
    if not 0 <= port <= 65_535:
        raise ConfigError(f"--port {port}; from 0 (any that is free) to 65535 is allowed")
    if no_token and token_file is not None:
        raise ConfigError("--token-file and --no-token: one of them is allowed")
    settings = settings_of(config)
    # Before the libraries that serve are imported, which takes seconds:
    _check_free(store)
    bind(host, port, is_open=no_token and not anyone).close()
    from sona.service.server import ServeOptions, run_server

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for chatty in ("uvicorn", "httpx"):  # they tell of every request
        logging.getLogger(chatty).setLevel(logging.WARNING)
    options = ServeOptions(
        store=store,
        model=model,
        config=settings,
        host=host,
        port=port,
        token_file=token_file,
        no_token=no_token,
        anyone=anyone,
        learn=learn,
    )
    run_server(options, _say)


def _check_free(store: Path) -> None:
    """Raises StoreLockedError where another process writes to the store, whose lock is looked at and not taken; what
    else is wrong with it is told by who opens it.
    """
    from sona.storage.layout import LOCK
    from sona.storage.lock import WriterLock, owner_of

    owner = None
    with suppress(OSError):
        owner = owner_of(store / LOCK)
    if owner is not None:
        raise StoreLockedError(f"{store}: another process {WriterLock.role} (pid {owner}), {WriterLock.remedy}")


def _say(serving: Serving) -> None:
    token = (
        "no token is asked for" if serving.token_file is None else f"the token is in {plain(str(serving.token_file))}"
    )
    out.print(f"{serving.version} answers on [bold]{serving.url}[/]; {token}", highlight=False, soft_wrap=True)
