"""A model that is asked for by its name at a model hub."""

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants, get_hf_file_metadata

from sona.config import ServeConfig
from sona.errors import ModelNotFoundError
from sona.serving import model_hub
from sona.serving.loading import load, load_tokenizer
from sona.serving.model_hub import reachable
from sona.tiny import model_path

COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """Knows no model, and takes its time to say so."""

    def do_HEAD(self) -> None:
        time.sleep(0.3)
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Not on the tests' terminal."""


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def nobody() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache on this machine, with one model in it."""
    repository = tmp_path / "models--acme--known"
    shutil.copytree(model_path(), repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(model_hub, "_AGAIN_S", 0.0)
    return tmp_path


def at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(model_hub, "hf_hub_url", lambda name, file: f"{url}/{name}/resolve/main/{file}")


def test_a_hub_that_is_not_reached_is_told_with_what_is_allowed(nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at(nobody, monkeypatch)
    began = time.monotonic()
    for loading in (lambda: load("acme/none", ServeConfig(device="cpu")), lambda: load_tokenizer("acme/none")):
        with pytest.raises(ModelNotFoundError, match=r"no such folder .* refused.* give the path of a folder"):
            loading()
    assert time.monotonic() - began < 10  # asked once, and not once a file with waits between


def test_a_model_in_the_cache_needs_no_hub(nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at(nobody, monkeypatch)
    began = time.monotonic()
    base, tokenizer = load("acme/known", ServeConfig(device="cpu"))
    assert time.monotonic() - began < 20
    assert base.config.vocab_size >= len(tokenizer.get_vocab())


def test_a_hub_that_answers_or_is_slow_is_left_to_transformers(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at(hub, monkeypatch)
    assert reachable("acme/none") == "acme/none"
    monkeypatch.setattr(model_hub, "get_hf_file_metadata", lambda url: get_hf_file_metadata(url, timeout=0.05))
    assert reachable("acme/none") == "acme/none"


def test_a_folder_and_what_is_no_name_are_not_asked_for(nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(model_hub, "get_hf_file_metadata", asked)
    assert reachable(model_path()) == model_path()
    assert reachable("no name!") == "no name!"


def test_offline_mode_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert reachable("acme/known").endswith(COMMIT)
    with pytest.raises(ModelNotFoundError, match="HF_HUB_OFFLINE is set"):
        reachable("acme/none")
