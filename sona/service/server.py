"""The process of ``sona serve``: a socket, an engine, a server, and an orderly end."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
import uvicorn
from msgspec.structs import replace
from starlette.types import ASGIApp

from sona.config import Config
from sona.engine import Engine
from sona.engine import open as open_engine
from sona.errors import StoreError
from sona.service.address import bind, is_loopback
from sona.service.app import make_app
from sona.service.bearer import FILE, BearerToken, check_apart, own_token, read_token
from sona.service.beside import beside
from sona.service.guard import LOCAL
from sona.service.hub import Hub

log = logging.getLogger("sona.service")
LEEWAY_S = 2.0
"""What was cancelled may take this long to end."""


@dataclass(frozen=True)
class ServeOptions:
    """What ``sona serve`` is told."""

    store: Path
    model: str
    config: Config
    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None
    """None: the store's own, which is made."""
    no_token: bool = False
    anyone: bool = False
    """Let in whoever reaches an address beyond this machine, without a token."""
    learn: bool = True


@dataclass(frozen=True)
class Serving:
    """Where it serves, for a person to read."""

    url: str
    version: str
    token_file: Path | None
    """None: no token is asked for."""


def run_server(options: ServeOptions, on_ready: Callable[[Serving], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, then end in order: answers under way have ``service.shutdown_s``, and what was
    recorded is flushed. A second signal ends them at once.

    Raises:
        ConfigError: the address is taken or none, the token file is none, or it would let anyone in.
        SonaError: as opening and closing an engine.
    """
    anyio.run(_Process(options, on_ready).run, backend="asyncio")


def served(config: Config) -> Config:
    """The settings for a server, whose cycles run in a process of their own unless they say otherwise."""
    if config.learner.mode != "auto":
        return config
    return replace(config, learner=replace(config.learner, mode="process"))


class _Process:
    def __init__(self, options: ServeOptions, on_ready: Callable[[Serving], None]) -> None:
        self._options, self._on_ready = options, on_ready
        self._hub: Hub | None = None
        self._server: _Server | None = None

    async def run(self) -> None:
        options = self._options
        # What can be wrong with tokens and the address is said before the model is loaded.
        token, reviewer = _tokens(options)
        listener = bind(options.host, options.port, is_open=options.no_token and not options.anyone)
        with listener, anyio.CancelScope() as scope:
            async with (
                beside(lambda: self._watch_signals(scope)),
                open_engine(options.store, model=options.model, config=served(options.config)) as engine,
            ):
                if token is None and not options.no_token:
                    token = own_token(options.store)  # a new one, which is like no other
                self._hub = Hub(engine)
                await _resume(engine)
                told = self._told(listener, engine.model.version)
                app = make_app(self._hub, token, self._names(listener), reviewer)
                self._server = self._make_server(app, lambda: self._on_ready(told))
                learning = [engine.run] if options.learn else []
                async with beside(self._cancel_in_time, self._hub.learn_when_asked, *learning):
                    await self._server.serve(sockets=[listener])

    def _names(self, listener: socket.socket) -> tuple[str, ...]:
        """What a request may call this server; () where it is reached from elsewhere: by any name."""
        return (*LOCAL, self._options.host.lower()) if is_loopback(listener.getsockname()[0]) else ()

    def _make_server(self, app: ASGIApp, on_started: Callable[[], None]) -> _Server:
        limits = self._options.config.service
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            proxy_headers=False,  # they say what a client likes, and the rate limit goes by the address
            server_header=False,
            timeout_graceful_shutdown=round(limits.shutdown_s + LEEWAY_S) + 1,
        )
        return _Server(config, on_started)

    async def _watch_signals(self, starting: anyio.CancelScope) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                if self._server is None or self._hub is None:
                    starting.cancel()
                elif self._hub.stopping.is_set():
                    self._hub.cancel_work()
                else:
                    self._hub.stop()
                    self._server.should_exit = True

    async def _cancel_in_time(self) -> None:
        assert self._hub is not None
        await self._hub.stopping.wait()
        await anyio.sleep(self._hub.limits.shutdown_s)
        self._hub.cancel_work()

    def _told(self, listener: socket.socket, version: str) -> Serving:
        options = self._options
        host, port = listener.getsockname()[:2]
        file = None if options.no_token else options.token_file or options.store / FILE
        return Serving(url=f"http://{f'[{host}]' if ':' in host else host}:{port}", version=version, token_file=file)


async def _resume(engine: Engine) -> None:
    """Go on with trainings that were accepted before."""
    try:
        await anyio.to_thread.run_sync(engine.training.resume)
    except StoreError:  # it answers all the same
        log.exception("what was trained before can't be gone on with; 'sona doctor' says what is wrong")


class _Server(uvicorn.Server):
    """uvicorn's, but for the signals, which are ours: it would raise them again after its end, and so the process
    would not exit with 0.
    """

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """... and tell that it listens."""
        await super().startup(sockets)
        self._on_started()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield


def _tokens(options: ServeOptions) -> tuple[BearerToken | None, BearerToken | None]:
    """Those that clients and reviewers show, as far as there are files: the store's own may still have to be made.

    Raises:
        ConfigError: a file can't be read, or holds none; or both are the same.
    """
    token = None if options.token_file is None else read_token(options.token_file)
    if token is None and not options.no_token and (options.store / FILE).exists():
        token = read_token(options.store / FILE)
    file = options.config.service.reviewer_token_file
    reviewer = read_token(Path(file)) if file else None
    if token is not None and reviewer is not None:
        check_apart(token, reviewer)
    return token, reviewer
