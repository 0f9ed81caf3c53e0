"""Approved answers, sent to a real ``sona serve``: by its token, and once, although its answer was lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from sona.config import CandidatesConfig
from sona.errors import SendError
from sona.reviewing import Review
from sona.service.bearer import FILE
from sona.storage.store import Store
from tests.reviews import candidate
from tests.service.process import serving


@contextmanager
def losing(url: str, answers: int) -> Iterator[str]:
    """What stands before a server, and hangs up instead of passing on its first answers."""

    class Between(BaseHTTPRequestHandler):
        left = answers

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name: self.headers[name] for name in ("authorization", "content-type") if name in self.headers}
            answer = httpx.post(url + self.path, content=body, headers=headers, timeout=60)
            Between.left -= 1
            if Between.left >= 0:
                self.close_connection = True
                return
            self.send_response(answer.status_code)
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Between)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.timeout(120)
def test_answers_reach_a_service_by_its_token_and_a_lost_answer_makes_no_second_job(tmp_path: Path) -> None:
    with serving(tmp_path / "served") as server, losing(server.url, 1) as url, Store.open(tmp_path / "own") as store:
        store.candidates.add([candidate(0), candidate(1)])
        stranger = Review(store, CandidatesConfig(train_url=server.url))
        stranger.approve(1, 2)
        with pytest.raises(SendError, match=r"status 401.*train_token_env") as refused:
            stranger.send()
        assert refused.value.outcome == "refused"
        assert stranger.page().counts["approved"] == 2

        settings = CandidatesConfig(train_url=url, train_token_file=str(server.store / FILE))
        review = Review(store, settings)
        with pytest.raises(SendError, match="not confirmed") as lost:
            review.send()
        assert lost.value.outcome == "unknown"
        assert server.token not in str(lost.value)
        assert (review.page().counts["sent"], review.page().unconfirmed) == (2, 2)
        assert store.candidates.approved(10) == [], "a cycle would take nothing"
        sent = review.send()
        assert (sent.ids, review.page().unconfirmed) == ([1, 2], 0)
        with server.client() as client:
            jobs = client.get("/train/status").json()["jobs"]
        assert [(job["id"], job["samples"]) for job in jobs] == [(sent.job, 2)]
