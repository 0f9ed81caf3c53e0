"""The review over HTTP: the same actions as in the terminal, behind the token, and a page that obeys no text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx
import pytest

from sona.candidate import Candidate
from sona.cli import app as command
from sona.config import CandidatesConfig
from sona.engine import Engine
from sona.errors import (
    ConfigError,
    InvalidInputError,
    ReviewError,
    SendError,
    StateChangeError,
    StoreLockedError,
    UnknownIdError,
)
from sona.http_client import HttpClient, Secret
from sona.review import open_reviewer
from sona.review_view.over_http import HttpReviewer
from sona.reviewing import Review
from sona.sending import STATE
from sona.service.app import make_app
from sona.service.bearer import BearerToken, check_apart
from sona.service.hub import Hub
from sona.storage.store import Store
from tests.engine.small import SMALL, open_small
from tests.reviews import ToldScorer, candidate, dependence, turn
from tests.service.serving import AUTH, TOKEN, app_of, client_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """One without a model is enough, and begins at once."""
    with open_small(tmp_path / "store", model=None) as opened:
        store = opened._engine._started().store
        store.candidates.add([candidate(0), candidate(1, response="<img src=x onerror=alert(1)>")])
        yield opened._engine


@pytest.fixture
def hub(engine: Engine) -> Hub:
    return Hub(engine)


def state(engine: Engine, seq: int) -> str:
    return engine.candidates.get(seq).state


async def test_what_there_is_to_review(client: httpx.AsyncClient, engine: Engine) -> None:
    got = (await client.get("/candidates")).json()
    assert [one["id"] for one in got["candidates"]] == [2, 1]
    assert "context_ids" not in got["candidates"][0], "token ids are not for a person"
    assert got["counts"]["new"] == 2
    assert got["candidates"][1]["mattered"] == [{"key": "memory-0", "nats": 0.5}]
    assert (await client.get("/candidates/1")).json() == got["candidates"][1]


async def test_approve_and_reject(client: httpx.AsyncClient, engine: Engine) -> None:
    got = await client.post("/candidates/1/approve")
    assert (got.status_code, got.json()["state"], state(engine, 1)) == (200, "approved", "approved")
    assert got.json()["changes"][-1]["by"] == "review over HTTP"
    assert (await client.post("/candidates/2/reject")).json()["state"] == "rejected"
    assert (await client.post("/candidates/2/reject")).status_code == 200, "twice is no error"


@pytest.mark.parametrize("id", ["9", "0", "-1", "x", "1e3", "٣", "9" * 30])
async def test_an_unknown_number_is_a_404(client: httpx.AsyncClient, id: str) -> None:
    assert (await client.post(f"/candidates/{id}/approve")).status_code == 404


async def test_many_change_or_none(client: httpx.AsyncClient, engine: Engine) -> None:
    got = await client.post("/candidates/change", json={"ids": [1, 9], "state": "approved"})
    assert (got.status_code, state(engine, 1)) == (404, "new")
    got = await client.post("/candidates/change", json={"ids": [1, 2], "state": "approved", "note": "both"})
    assert [one["state"] for one in got.json()["candidates"]] == ["approved", "approved"]
    assert engine.candidates.get(2).changes[-1].note == "both"


@pytest.mark.parametrize(
    "body",
    [
        {"ids": [1], "state": "trained"},
        {"ids": [1], "state": "sent"},
        {"ids": "1", "state": "new"},
        {"ids": [2**70], "state": "new"},
        {"ids": [0], "state": "new"},
        {"state": "new"},
        {"ids": [1], "state": "approved", "force": True},
        {"ids": [1] * 10_001, "state": "approved"},
    ],
)
async def test_what_only_training_may_say_is_refused(
    client: httpx.AsyncClient, engine: Engine, body: dict[str, Any]
) -> None:
    assert (await client.post("/candidates/change", json=body)).status_code == 400
    assert state(engine, 1) == "new"


async def test_a_change_that_can_t_be_is_a_409(client: httpx.AsyncClient, engine: Engine) -> None:
    rows = engine._started().store.candidates
    rows.change([1], "approved", by="ana")
    rows.change([1], "sent", by="train")
    got = await client.post("/candidates/1/reject")
    assert got.status_code == 409
    assert "'sona candidates confirm' says what came of it" in got.json()["error"]["message"]


async def test_the_list_is_filtered_as_in_the_terminal(client: httpx.AsyncClient) -> None:
    everything = (await client.get("/candidates")).json()["candidates"]
    heaviest = everything[0]
    words = f"nats>={heaviest['divergence']} state:{heaviest['state']}"
    found = (await client.get("/candidates", params={"filter": words})).json()["candidates"]
    assert [one["id"] for one in found] == [heaviest["id"]]
    assert (await client.get("/candidates", params={"filter": "source:nobody"})).json()["candidates"] == []
    wrong = await client.get("/candidates", params={"filter": "sorce:bot"})
    assert wrong.status_code == 400
    assert "did you mean 'source'" in wrong.json()["error"]["message"]


async def test_threshold_and_alternates_are_kept(client: httpx.AsyncClient, engine: Engine) -> None:
    assert (await client.post("/candidates/threshold", json={"nats": 1.5})).json() == {"nats": 1.5}
    assert (await client.post("/candidates/alternates", json={"wanted": True})).json() == {"wanted": True}
    got = (await client.get("/candidates")).json()
    assert (got["threshold"], got["alternates"], [one["id"] for one in got["candidates"]]) == (1.5, True, [2])
    for wrong in (-1, "x", None):
        assert (await client.post("/candidates/threshold", json={"nats": wrong})).status_code == 400


async def test_nothing_without_the_token(hub: Hub, engine: Engine) -> None:
    transport = httpx.ASGITransport(app_of(hub))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as stranger:
        assert (await stranger.get("/candidates")).status_code == 401
        assert (await stranger.post("/candidates/1/approve")).status_code == 401
        assert (await stranger.post("/candidates/send")).status_code == 401
        assert (await stranger.get("/review")).status_code == 401
        assert (await stranger.get("/review", auth=("anyone", "wrong"))).status_code == 401
        assert (await stranger.get("/candidates", auth=("anyone", TOKEN))).status_code == 401
        assert (await stranger.post("/candidates/1/approve", auth=("anyone", TOKEN))).status_code == 401
    assert state(engine, 1) == "new"


REVIEWER = "a-token-of-the-reviewer"


async def test_with_a_token_of_the_reviewers_own_no_other_changes_candidates(hub: Hub, engine: Engine) -> None:
    app = make_app(hub, BearerToken(TOKEN), reviewer=BearerToken(REVIEWER))
    async with client_of(hub, app) as client, client_of(hub, app, authorization=f"Bearer {REVIEWER}") as reviewer:
        for path, body in (
            ("1/approve", None),
            ("1/reject", None),
            ("change", {"ids": [1], "state": "approved"}),
            ("confirm", {"ids": [1], "trained": True}),
            ("threshold", {"nats": 0.0}),
            ("alternates", {"wanted": True}),
            ("send", None),
        ):
            got = await client.post(f"/candidates/{path}", json=body)
            assert (got.status_code, got.json()["error"]["code"]) == (403, "no_reviewer"), path
        assert state(engine, 1) == "new"
        assert (await client.get("/candidates")).status_code == (await client.get("/candidates/1")).status_code == 200
        assert (await client.get("/versions")).status_code == 200
        assert (await reviewer.post("/candidates/1/approve")).status_code == 200
        assert (await reviewer.get("/candidates")).status_code == (await reviewer.get("/review")).status_code == 200
        for path in ("/versions", "/metrics", "/candidatesx"):
            assert (await reviewer.get(path)).status_code == 401, "it is good for the review alone"
        assert (await reviewer.post("/learn")).status_code == 401
    assert state(engine, 1) == "approved"
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000") as browser:
        page = await browser.get("/review", auth=("anyone", REVIEWER))
        assert (page.status_code, f'content="{REVIEWER}"' in page.text) == (200, True)
        assert (await browser.post("/candidates/1/reject", auth=("anyone", REVIEWER))).status_code == 401
        assert (await browser.post("/candidates/1/reject")).status_code == 401


async def test_where_clients_show_no_token_reviewers_still_do(hub: Hub, engine: Engine) -> None:
    app = make_app(hub, None, reviewer=BearerToken(REVIEWER))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000") as client:
        assert (await client.get("/candidates")).status_code == 200
        assert (await client.post("/candidates/1/approve")).status_code == 401
        assert (await client.get("/review")).headers["www-authenticate"].startswith("Basic ")
        shown = {"authorization": f"Bearer {REVIEWER}"}
        assert (await client.post("/candidates/1/approve", headers=shown)).status_code == 200
        elsewhere = {**shown, "origin": "http://evil.example"}
        assert (await client.post("/candidates/2/approve", headers=elsewhere)).status_code == 403
    assert (state(engine, 1), state(engine, 2)) == ("approved", "new")


def test_the_reviewer_s_token_is_another_than_the_server_s() -> None:
    check_apart(BearerToken(TOKEN), BearerToken(REVIEWER))
    with pytest.raises(ConfigError, match="reviewer_token_file") as caught:
        check_apart(BearerToken(TOKEN), BearerToken(TOKEN))
    assert TOKEN not in str(caught.value)


async def test_a_browser_shows_the_token_as_a_password_for_the_page_alone(hub: Hub) -> None:
    transport = httpx.ASGITransport(app_of(hub))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as browser:
        asked = await browser.get("/review")
        assert asked.headers["www-authenticate"].startswith("Basic ")
        page = await browser.get("/review", auth=("anyone", TOKEN))
        assert page.status_code == 200
        assert f'<meta name="token" content="{TOKEN}">' in page.text
        assert page.headers["cache-control"] == "no-store"
        assert "answer 0" not in page.text, "the page holds no data"
        by_bearer = await browser.get("/review", headers={"authorization": f"Bearer {TOKEN}"})
        assert TOKEN not in by_bearer.text


async def test_the_page_runs_its_own_script_and_nothing_else(client: httpx.AsyncClient) -> None:
    got = await client.get("/review")
    policy = got.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert got.headers["content-type"].startswith("text/html")
    for tag in ("script", "style"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", got.text, re.DOTALL)
        wanted = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{wanted}'" in policy
    assert not re.findall(r'(?:src|href|action)\s*=\s*["\']?(?:https?:)?//', got.text), "no external assets"
    assert not re.findall(r"<\w[^>]*\son\w+\s*=|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", got.text)


async def test_sending_says_what_is_missing_and_what_came_back(
    client: httpx.AsyncClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = await client.post("/candidates/send")
    assert (got.status_code, got.json()["error"]["code"]) == (409, "no_training_service")
    monkeypatch.setattr(engine.candidates, "_settings", CandidatesConfig(train_url="http://127.0.0.1:9"))
    got = await client.post("/candidates/send")
    assert (got.status_code, got.json()["error"]["code"]) == (502, "not_sent")
    assert "nothing is approved" in got.json()["error"]["message"]
    engine.candidates.approve(1)
    got = await client.post("/candidates/send")
    assert (got.status_code, state(engine, 1)) == (502, "approved")
    assert "nothing was marked as sent" in got.json()["error"]["message"]


async def test_an_answer_that_is_lost_leaves_them_not_confirmed(
    hub: Hub, client: httpx.AsyncClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("slow", request=request)

    reviewer = HttpReviewer("http://127.0.0.1:8000", Secret(TOKEN), transport=Bridge(hub))
    monkeypatch.setattr(
        "sona.attribution.training_service.HttpClient",
        lambda url, secret, **how: HttpClient(url, secret, **how, transport=httpx.MockTransport(slow)),
    )
    monkeypatch.setattr(engine.candidates, "_settings", CandidatesConfig(train_url="http://127.0.0.1:9"))
    engine.candidates.approve(1)
    got = await client.post("/candidates/send")
    assert (got.status_code, got.json()["error"]["code"], state(engine, 1)) == (504, "not_confirmed", "sent")
    assert (await client.get("/candidates")).json()["unconfirmed"] == 1
    with pytest.raises(SendError, match="send again to find out") as caught:
        await anyio.to_thread.run_sync(reviewer.send)
    assert caught.value.outcome == "unknown"


async def test_a_person_says_what_came_of_what_was_sent(client: httpx.AsyncClient, hub: Hub, engine: Engine) -> None:
    rows = engine._started().store.candidates
    rows.change([1, 2], "approved", by="ana")
    rows.change([1, 2], "sent", by="train")
    got = await client.post("/candidates/confirm", json={"ids": [1], "trained": True, "note": "job 12"})
    assert (got.status_code, got.json()["candidates"][0]["state"], state(engine, 1)) == (200, "trained", "trained")
    assert engine.candidates.get(1).changes[-1].note == "job 12"
    again = await client.post("/candidates/confirm", json={"ids": [1], "trained": True})
    assert (again.status_code, len(engine.candidates.get(1).changes)) == (200, 4), "twice is no error"
    wrong = await client.post("/candidates/confirm", json={"ids": [2, 1], "trained": False})
    assert (wrong.status_code, state(engine, 2)) == (409, "sent"), "all or none"
    reviewer = HttpReviewer("http://127.0.0.1:8000", Secret(TOKEN), transport=Bridge(hub))
    given_up = await anyio.to_thread.run_sync(lambda: reviewer.confirm([2], trained=False))
    assert [one.state for one in given_up] == ["approved"]
    got = await client.post("/candidates/confirm", json={"ids": [2], "trained": True})
    assert (got.status_code, "only sent or trained ones" in got.json()["error"]["message"]) == (409, True)
    for body in ({"ids": [2]}, {"ids": [2] * 10_001, "trained": True}, {"trained": True}):
        assert (await client.post("/candidates/confirm", json=body)).status_code == 400


async def test_an_approval_that_a_cycle_learns_from_is_a_409_that_says_when(
    client: httpx.AsyncClient, engine: Engine
) -> None:
    engine.candidates.approve(1)
    with engine._cycles.in_training.cycle(7):
        got = await client.post("/candidates/1/reject")
        assert (got.status_code, state(engine, 1)) == (409, "approved")
        assert "cycle 7, which is under way" in got.json()["error"]["message"]
        assert "once that has ended" in got.json()["error"]["message"]
    assert (await client.post("/candidates/1/reject")).status_code == 200


async def test_background_scoring_shows_on_the_page(client: httpx.AsyncClient, engine: Engine) -> None:
    engine.candidates.watch(ToldScorer(lambda one: [dependence(5, 7.0)]))
    engine.record(turn(5))
    assert engine.candidates.wait_scored(10)
    got = (await client.get("/candidates")).json()
    assert got["candidates"][0]["divergence"] == 7.0
    assert got["is_scoring"]
    assert got["activity"] == "scoring: 1 turns done, 0 wait"


async def test_an_erased_source_is_gone_from_review(engine: Engine) -> None:
    engine.record(turn(0))
    await engine.erase("agent")
    assert engine.candidates.page().candidates == []


# The terminal's client on it


class Bridge(httpx.BaseTransport):
    """A blocking client's requests, asked of the application on the test's event loop."""

    def __init__(self, hub: Hub) -> None:
        self._inner = httpx.ASGITransport(app_of(hub))

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def ask() -> httpx.Response:
            answer = await self._inner.handle_async_request(
                httpx.Request(request.method, request.url, headers=request.headers, content=request.content)
            )
            return httpx.Response(answer.status_code, headers=answer.headers, content=await answer.aread())

        return anyio.from_thread.run(ask)


async def test_the_terminal_reviews_over_it(hub: Hub, engine: Engine) -> None:
    def scenario() -> None:
        reviewer = HttpReviewer("http://127.0.0.1:8000", Secret(TOKEN), transport=Bridge(hub))
        assert [one.id for one in reviewer.page().candidates] == [2, 1]
        assert reviewer.change([1, 2], "approved", "fine")[1].state == "approved"
        assert reviewer.get(1).changes[-1].note == "fine"
        assert reviewer.set_threshold(3.0) == 3.0
        reviewer.set_alternates(True)
        assert reviewer.page().alternates
        for raised, work in (
            (UnknownIdError, lambda: reviewer.get(9)),
            (UnknownIdError, lambda: reviewer.change([9], "new")),
            (StateChangeError, reviewer.send),
        ):
            with pytest.raises(raised, match=r"^http://127\.0\.0\.1:8000: "):
                work()
        reviewer.close()
        with pytest.raises(ReviewError, match="does not take the token"):
            HttpReviewer("http://127.0.0.1:8000", Secret("x" * 20), transport=Bridge(hub)).page()
        with pytest.raises(ReviewError, match="asks for a token"):
            HttpReviewer("http://127.0.0.1:8000", transport=Bridge(hub)).page()

    await anyio.to_thread.run_sync(scenario)


def test_a_server_that_is_not_there_or_another_s_is_told() -> None:
    with pytest.raises(ReviewError, match="see that 'sona serve' runs there"):
        HttpReviewer("http://127.0.0.1:9").page()
    other = httpx.MockTransport(lambda request: httpx.Response(200, text="<html>"))
    with pytest.raises(ReviewError, match=r"none of sona's"):
        HttpReviewer("http://127.0.0.1:9", transport=other).page()
    away = httpx.MockTransport(lambda request: httpx.Response(302, headers={"location": "http://elsewhere/"}))
    with pytest.raises(ReviewError, match="it answered 302"):
        HttpReviewer("http://127.0.0.1:9", Secret(TOKEN), transport=away).page()
    long = httpx.MockTransport(lambda request: httpx.Response(200, content=b"[" + b" " * 1000 + b"]"))
    with pytest.raises(ReviewError, match=r"none of sona's .*more than 1000 bytes, which is not taken"):
        HttpReviewer("http://127.0.0.1:9", max_bytes=1000, transport=long).page()
    for wrong in ("ftp://x", "http://user:secret@host", "//", "http://"):
        with pytest.raises(ConfigError, match="--url") as caught:
            HttpReviewer(wrong)
        assert "secret" not in str(caught.value)


def test_the_training_service_s_answer_decides(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    """Trained is marked only after 2xx."""
    bodies: list[Any] = []
    statuses = iter([500, 302, 202])

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url == "http://127.0.0.1:9/base/train"
        bodies.append(json.loads(request.content))
        return httpx.Response(next(statuses), json={"job_id": 12})

    client = httpx.Client
    monkeypatch.setattr(httpx, "Client", lambda **how: client(**how | {"transport": httpx.MockTransport(answer)}))
    settings = CandidatesConfig(train_url="http://127.0.0.1:9/base/")
    monkeypatch.setattr(engine.candidates, "_settings", settings)
    engine.candidates.approve(1)
    for status in (500, 302):
        with pytest.raises(SendError, match=f"status {status}.*; nothing was marked as sent"):
            engine.candidates.send()
        assert state(engine, 1) == "approved"
    sent = engine.candidates.send()
    assert (sent.ids, sent.job, state(engine, 1)) == ([1], "12", "sent")
    assert len({body.pop("id") for body in bodies}) == 1, "what was refused is the same request"
    assert bodies[-1] == {"training_data": {"samples": [{"context_ids": [1, 3], "continuation_ids": [4, 5]}]}}
    assert engine._started().store.candidates.add([one_again()]) == [0], "what is sent is no candidate again"
    with pytest.raises(StateChangeError, match="only sent or trained ones"):
        engine.candidates.confirm([2], trained=True, by="train")
    assert engine.candidates.confirm([1], trained=True, by="train", note="job 12")[0].state == "trained"


def one_again() -> Candidate:
    return candidate(0)


# The command line


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as left:
        command(words)
    assert left.value.code == 0
    return capsys.readouterr().out


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A store that nobody has open."""
    path = tmp_path / "closed"
    with open_small(path, model=None) as opened:
        wild = candidate(2, source="bot", response="[bold]x[/] \x1b]0;owned\x07")
        opened._engine._started().store.candidates.add([candidate(0), candidate(1), wild])
    return path


def test_scripts_list_approve_reject_and_show(closed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ("--store", str(closed))
    listed = run(capsys, "candidates", "list", *store)
    assert "[bold]x[/]" in listed
    assert "\x1b" not in listed
    assert "1 candidate is approved" in run(capsys, "candidates", "approve", *store, "--filter", "source:bot")
    assert "1 candidate is rejected" in run(capsys, "candidates", "reject", "1", *store, "--note", "private")
    told = json.loads(run(capsys, "candidates", "list", *store, "--json", "--filter", "state:rejected"))
    assert [one["changes"][-1]["note"] for one in told["candidates"]] == ["private"]
    assert "1 candidate is approved" in run(capsys, "candidates", "approve", *store, "--all"), "new ones alone"
    assert json.loads(run(capsys, "candidates", "show", "3", *store, "--json"))["state"] == "approved"
    text = run(capsys, "candidates", "show", "3", *store)
    assert "Memories that mattered" in text
    assert "\x1b" not in text
    assert "Nothing fits" in run(capsys, "candidates", "list", *store, "--filter", "nothing-has-this")


def test_scripts_say_what_came_of_what_was_sent(closed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ("--store", str(closed))
    with Store.open(closed) as opened:
        review = Review(opened, CandidatesConfig())
        review.approve(1, 2)
        with pytest.raises(SendError):
            review.send(Deaf())
    listed = run(capsys, "candidates", "list", *store)
    assert "Sent, and not confirmed: 1, 2 (to http://deaf)" in listed
    assert json.loads(run(capsys, "candidates", "list", *store, "--json"))["unconfirmed"][0]["ids"] == [1, 2]
    assert "Sent, and not confirmed: 1, 2" in run(capsys, "status", *store)
    assert json.loads(run(capsys, "status", *store, "--json"))["unconfirmed"][0]["service"] == "http://deaf"
    assert "1 candidate is trained" in run(capsys, "candidates", "confirm", "1", "--trained", *store)
    for words in (("status",), ("candidates", "list")):
        assert "2 (to http://deaf); set aside, as others of the same request" in run(capsys, *words, *store)
    assert "1 candidate is approved" in run(capsys, "candidates", "confirm", "2", "--given-up", *store, "--note", "x")
    assert "not confirmed" not in run(capsys, "status", *store)
    with pytest.raises(StateChangeError, match="only sent or trained ones"):
        command(("candidates", "confirm", "3", "--trained", *store))
    with pytest.raises(InvalidInputError, match="give the numbers"):
        command(("candidates", "confirm", "--trained", *store))


def test_a_store_s_status_is_told_beside_damaged_review_state(closed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(closed) as opened:
        opened.write_state(STATE, b"[nonsense")
    told = json.loads(run(capsys, "status", "--store", str(closed), "--json"))
    assert (told["unconfirmed"], told["version"]) == (None, "v0")
    assert "restore the store from a backup" in told["review_trouble"]
    assert "trajectories" in run(capsys, "status", "--store", str(closed))


class Deaf:
    """A training service that says nothing."""

    name = "http://deaf"

    def train(self, samples: object, request_id: str) -> str:
        raise SendError("no answer", outcome="unknown")


@pytest.mark.parametrize("words", [("1", "--all"), (), ("1", "--filter", "x")])
def test_a_script_says_which_ones_it_means(closed: Path, words: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInputError, match="one of the three"):
        command(("candidates", "approve", *words, "--store", str(closed)))


def test_beside_an_engine_it_shows_and_says_how_to_change(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    store = ("--store", str(engine.path))
    assert "answer 0" in run(capsys, "candidates", "list", *store)
    with pytest.raises(StoreLockedError, match="--url"):
        command(("candidates", "approve", "1", *store))
    assert state(engine, 1) == "new"


def test_without_a_terminal_review_says_what_else_there_is(closed: Path) -> None:
    from sona.errors import InvalidInputError

    assert not sys.stdout.isatty()
    with pytest.raises(InvalidInputError, match="'sona candidates' does the same"):
        command(("review", "--store", str(closed)))


def test_a_missing_extra_is_told_as_others_are(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sona.errors import ExtraMissingError

    monkeypatch.setattr("sona.review_view.find_spec", lambda name: None)
    with pytest.raises(ExtraMissingError, match=r"pip install 'sona\[tui\]'"):
        command(("review", "--store", str(closed)))


def test_the_token_of_the_store_is_shown_to_its_server(closed: Path, tmp_path: Path) -> None:
    (closed / "service.token").write_text(TOKEN + "\n")
    reviewer = open_reviewer(closed, "http://127.0.0.1:9", None, SMALL)
    assert isinstance(reviewer, HttpReviewer)
    assert shown_by(reviewer) == AUTH["authorization"]
    assert TOKEN not in repr(vars(reviewer)) + repr(vars(reviewer._client))
    (tmp_path / "short").write_text("two words")
    with pytest.raises(ConfigError, match="holds no token"):
        open_reviewer(closed, "http://127.0.0.1:9", tmp_path / "short", SMALL)
    with pytest.raises(ConfigError, match="without --url"):
        open_reviewer(closed, None, tmp_path / "short", SMALL)


@pytest.mark.parametrize(
    ("url", "is_here"),
    [
        ("http://127.0.0.1:9", True),
        ("http://localhost:9", True),
        ("http://[::1]:9", True),
        ("http://10.0.0.9:9", False),
        ("http://127.0.0.1.elsewhere.test", False),
        ("https://elsewhere.test/127.0.0.1", False),
    ],
)
def test_the_token_of_the_store_goes_to_no_other_machine(closed: Path, url: str, is_here: bool) -> None:
    (closed / "service.token").write_text(TOKEN + "\n")
    reviewer = open_reviewer(closed, url, None, SMALL)
    assert shown_by(reviewer) == (AUTH["authorization"] if is_here else None)
    reviewer = open_reviewer(closed, url, closed / "service.token", SMALL)
    assert shown_by(reviewer) == AUTH["authorization"], "which was named for it"


def shown_by(reviewer: object) -> str | None:
    assert isinstance(reviewer, HttpReviewer)
    shown: str | None = reviewer._client._client.headers.get("authorization")
    return shown


async def test_a_client_of_it_has_no_model(hub: Hub) -> None:
    async with client_of(hub) as client:
        assert (await client.get("/candidates")).status_code == 200
