"""The server that the settings name."""

from __future__ import annotations

from collections.abc import Callable

from sona.config import RemoteConfig
from sona.http_client import HttpClient, read_secret
from sona.serving.remote.server import AdapterServer
from sona.serving.remote.sglang import SglangServer
from sona.serving.remote.vllm import VllmServer

KINDS: dict[str, Callable[[HttpClient], AdapterServer]] = {"vllm": VllmServer, "sglang": SglangServer}


def open_server(settings: RemoteConfig) -> AdapterServer:
    """A client of it; nothing is asked yet.

    Raises:
        ConfigError: ``remote.url`` is no address, or its token can't be read.
    """
    secret = read_secret(settings.token_env, settings.token_file)
    return KINDS[settings.kind](HttpClient(settings.url, secret, timeout_s=settings.timeout_s))
