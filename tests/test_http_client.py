"""One server is asked, within bounds, and its token goes nowhere else."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sona.errors import ConfigError, RemoteError, RemoteRefusedError, RemoteUnclearError, UnreachableError
from sona.http_client import HttpClient, Secret, check_url, read_secret

Answer = tuple[int, dict[str, str], bytes]
TOKEN = "a-token-of-a-test"


class Desk:
    """A server that gives one answer after another, the last one for ever, and keeps what it was asked."""

    def __init__(self, *answers: Answer | Callable[[BaseHTTPRequestHandler], None]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str, str | None, bytes]] = []
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("content-length") or 0))
        self.asked.append((handler.command, handler.path, handler.headers.get("authorization"), body))
        what = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(what):
            what(handler)
            return
        status, headers, said = what
        handler.send_response(status)
        for name, value in {"content-length": str(len(said)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(said)


@contextmanager
def served(*answers: Answer | Callable[[BaseHTTPRequestHandler], None]) -> Iterator[Desk]:
    desk = Desk(*answers)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 5

        def do_GET(self) -> None:
            desk.answer(self)

        def do_POST(self) -> None:
            desk.answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    desk.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield desk
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def client_of(url: str, secret: Secret | None = None, **bounds: Any) -> Iterator[HttpClient]:
    client = HttpClient(url, secret, **{"timeout_s": 5.0, "backoff_s": 0.001, **bounds})
    try:
        yield client
    finally:
        client.close()


def ok(value: object) -> Answer:
    return 200, {}, json.dumps(value).encode()


def test_json_goes_out_and_comes_back_with_the_token() -> None:
    with served(ok({"a": 1})) as desk, client_of(f"{desk.url}/", Secret(TOKEN)) as client:
        assert client.post_json("/x", {"q": [1]}, dict[str, int]) == {"a": 1}
        assert client.get_json("/y", dict[str, int]) == {"a": 1}
    assert [(method, path, token) for method, path, token, _ in desk.asked] == [
        ("POST", "/x", f"Bearer {TOKEN}"),
        ("GET", "/y", f"Bearer {TOKEN}"),
    ]
    assert json.loads(desk.asked[0][3]) == {"q": [1]}


def test_the_token_is_in_no_repr_log_or_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = Secret(TOKEN)
    with served((503, {}, b"busy")) as desk, client_of(desk.url, secret) as client:
        with pytest.raises(RemoteRefusedError) as refused:
            client.get("/x")
        told = f"{secret!r} {secret} {client!r} {refused.value!r} {caplog.text}"
    assert TOKEN not in told


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_what_may_pass_is_asked_again(status: int) -> None:
    with served((status, {}, b""), (status, {}, b""), ok(7)) as desk, client_of(desk.url) as client:
        assert client.get_json("/x", int) == 7
        assert len(desk.asked) == 3


def test_a_server_that_stays_busy_is_given_up_after_so_many_tries() -> None:
    with served((503, {}, b"busy")) as desk, client_of(desk.url, tries=3) as client:
        with pytest.raises(RemoteRefusedError, match="status 503: busy") as refused:
            client.get("/x")
        assert (refused.value.status, len(desk.asked)) == (503, 3)


@pytest.mark.parametrize(
    ("status", "said", "words"),
    [
        (400, b'{"error":{"message":"LoRA rank 64","code":400}}', "LoRA rank 64"),
        (400, b'{"object":"error","message":"no","code":400}', "no"),
        (400, b'{"success":false,"error_message":"taken"}', "taken"),
        (404, b'{"detail":"Not Found"}', "Not Found"),
        (422, b'{"detail":[{"loc":["body"]}]}', '[{"loc":["body"]}]'),
        (401, b'{"error":"Unauthorized"}', "Unauthorized"),
        (403, b"<p>\nno \xff</p>", "<p> no \ufffd</p>"),
        (400, b"", ""),
    ],
)
def test_a_refusal_is_told_at_once_in_the_servers_words(status: int, said: bytes, words: str) -> None:
    with served((status, {}, said)) as desk, client_of(desk.url) as client:
        with pytest.raises(RemoteRefusedError) as refused:
            client.post("/x", {})
        assert (refused.value.status, refused.value.said, len(desk.asked)) == (status, words, 1)


@pytest.mark.parametrize("when", ["0", "date"])
def test_a_server_that_says_when_is_asked_then(when: str) -> None:
    header = {"retry-after": when if when == "0" else formatdate(time.time(), usegmt=True)}
    with served((429, header, b""), ok(1)) as desk, client_of(desk.url, backoff_s=60.0) as client:
        began_s = time.monotonic()
        assert client.get_json("/x", int) == 1
        assert time.monotonic() - began_s < 10, "its own back-off would have been a minute"


def test_a_server_that_wants_too_long_a_wait_is_not_waited_for() -> None:
    with served((503, {"retry-after": "3600"}, b"")) as desk, client_of(desk.url) as client:
        with pytest.raises(RemoteRefusedError) as refused:
            client.get("/x")
        assert (refused.value.retry_after_s, len(desk.asked)) == (3600.0, 1)


def test_no_redirect_is_followed() -> None:
    with served(ok(1)) as other, served((302, {"location": other.url}, b"")) as desk, client_of(desk.url) as client:
        with pytest.raises(RemoteRefusedError, match="a redirect, which is not followed"):
            client.get("/x")
        assert not other.asked


def test_who_is_not_there_is_told_as_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with (
        client_of(f"http://127.0.0.1:{port}", tries=2) as client,
        pytest.raises(UnreachableError, match="gave no answer") as caught,
    ):
        client.get("/x")
    assert not caught.value.was_connected


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def drip(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    try:
        for _ in range(1000):
            handler.wfile.write(b"x")
            time.sleep(0.02)
    except OSError:
        handler.close_connection = True


def wait_long(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(3)
    handler.close_connection = True


def test_a_connection_that_breaks_is_tried_again() -> None:
    with served(hang_up, ok(2)) as desk, client_of(desk.url) as client:
        assert client.get_json("/x", int) == 2


def test_a_connection_that_breaks_may_have_done_what_was_asked() -> None:
    with served(hang_up) as desk, client_of(desk.url, tries=1) as client:
        with pytest.raises(UnreachableError) as caught:
            client.post("/x", 1)
        assert caught.value.was_connected


@pytest.mark.parametrize("slow", [drip, wait_long])
def test_a_slow_server_is_given_up_and_not_asked_again(slow: Callable[[BaseHTTPRequestHandler], None]) -> None:
    with served(slow) as desk, client_of(desk.url, timeout_s=0.2) as client:
        began_s = time.monotonic()
        with pytest.raises(UnreachableError, match=r"within 0\.2 s"):
            client.get("/x")
        assert time.monotonic() - began_s < 2
        assert len(desk.asked) == 1


def test_closing_wakes_who_waits_for_an_answer() -> None:
    with served(wait_long) as desk, client_of(desk.url, timeout_s=60.0) as client:
        ended: list[RemoteError] = []

        def ask() -> None:
            try:
                client.get("/x")
            except RemoteError as error:
                ended.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        while not desk.asked:
            time.sleep(0.005)
        began_s = time.monotonic()
        client.close()
        thread.join(10)
        assert time.monotonic() - began_s < 2
        assert "the client was closed" in str(ended[0])
        with pytest.raises(UnreachableError, match="the client was closed"):
            client.get("/x")


@pytest.mark.parametrize("said", [b"", b"<html>", b'{"a": "text"}', b"[" * 10_000])
def test_an_answer_that_is_none_is_told(said: bytes) -> None:
    with (
        served((200, {}, said)) as desk,
        client_of(desk.url) as client,
        pytest.raises(RemoteUnclearError, match="can't be understood"),
    ):
        client.get_json("/x", dict[str, int])


def test_an_answer_that_is_too_long_is_not_taken() -> None:
    with served((200, {}, b"x" * 1001), (200, {}, b"x" * 1000)) as desk, client_of(desk.url, max_bytes=1000) as client:
        with pytest.raises(RemoteUnclearError, match="more than 1000 bytes"):
            client.get("/x")
        assert len(client.get("/x")) == 1000


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://a", "http://", "file:///etc/passwd", "http://a?b", "http://a#b", "http://a:b", 7],
)
def test_what_is_no_address_is_refused(url: Any) -> None:
    with pytest.raises(ConfigError, match="is allowed"):
        check_url(url)


def test_an_address_with_a_password_is_refused_without_telling_it() -> None:
    with pytest.raises(ConfigError) as refused:
        HttpClient("http://me:swordfish@host")
    assert "swordfish" not in str(refused.value)


def test_a_token_is_read_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", f" {TOKEN}\n")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    for secret in (read_secret("MY_TOKEN"), read_secret(file=str(tmp_path / "token"))):
        assert secret is not None
        assert secret.header() == {"Authorization": f"Bearer {TOKEN}"}
    assert read_secret() is None


@pytest.mark.parametrize("text", ["", "two words", "é", "a\x07b"])
def test_what_is_no_token_is_refused_without_telling_it(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", text)
    (tmp_path / "token").write_text(text)
    for where in ({"env": "MY_TOKEN"}, {"file": str(tmp_path / "token")}):
        with pytest.raises(ConfigError, match="holds no token") as refused:
            read_secret(**where)
        assert not text or text not in str(refused.value)
    with pytest.raises(ConfigError, match="can't be read"):
        read_secret(file=str(tmp_path / "none"))
