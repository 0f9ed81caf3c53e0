"""What a training service may have is free for nobody else, whatever happens on the way to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from sona.attribution.training_service import HttpTrainingService, Sample
from sona.candidate import Candidate
from sona.config import CandidatesConfig
from sona.errors import ConfigError, SendError, StateChangeError
from sona.reviewed import open_requests
from sona.reviewing import Review
from sona.sending import STATE, TRIES, Batch, Sending, request_id
from sona.storage.store import Store
from tests.reviews import candidate

UNKNOWN = SendError("no answer", outcome="unknown")
REFUSED = SendError("no")
FAILED = SendError("it failed there", outcome="failed")


class Service:
    """Takes what it is sent, and then raises what a test wants."""

    def __init__(self, *raises: BaseException | None, name: str = "http://train") -> None:
        self.name, self._raises = name, list(raises)
        self.asked: list[tuple[str, list[Sample]]] = []

    def train(self, samples: Sequence[Sample], request_id: str) -> str:
        self.asked.append((request_id, list(samples)))
        error = self._raises.pop(0) if self._raises else None
        if error is not None:
            raise error
        return f"job-{len(self.asked)}"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        opened.candidates.add([candidate(place, continuation_ids=[4, 5 + place]) for place in range(3)])
        yield opened


def review_of(store: Store, **settings: str) -> Review:
    return Review(store, CandidatesConfig(**settings))  # type: ignore[arg-type]


def states(store: Store) -> list[str]:
    return [store.candidates.get(seq).state for seq in (1, 2, 3)]


@pytest.mark.parametrize("lost", [UNKNOWN, KeyboardInterrupt(), MemoryError()], ids=["no answer", "ctrl-c", "fault"])
def test_what_may_have_been_taken_is_sent_again_as_the_same_request(store: Store, lost: BaseException) -> None:
    review, service = review_of(store), Service(lost)
    review.approve(1, 2)
    with pytest.raises(type(lost)):
        review.send(service)
    assert states(store) == ["sent", "sent", "new"], "no cycle takes them"
    assert review.page().unconfirmed == 2
    with pytest.raises(StateChangeError):
        review.reject(1)
    review.approve(3)

    again = review_of(store, train_on="with_memories")  # another process, and other settings
    sent = again.send(service)
    assert (sent.ids, sent.job) == ([1, 2, 3], "job-2, job-3")
    first, second, third = service.asked
    assert first == second, "the same samples under the same id"
    assert third[0] != first[0]
    assert third[1] == [Sample(context_ids=[1, 2, 3], continuation_ids=[4, 7])]
    assert again.page().unconfirmed == 0
    notes = [change.note for change in store.candidates.get(1).changes]
    assert notes == ["", "", f"request {first[0]}, not confirmed", "job-2"]
    with pytest.raises(SendError, match="nothing is approved, so nothing was sent"):
        again.send(service)


def test_what_was_refused_is_approved_again_and_the_same_request(store: Store) -> None:
    review, service = review_of(store), Service(REFUSED)
    review.approve(1)
    with pytest.raises(SendError, match="nothing was marked as sent"):
        review.send(service)
    assert (states(store)[0], review.page().unconfirmed) == ("approved", 0)
    assert review.send(service).ids == [1]
    assert service.asked[0] == service.asked[1]


def test_a_refusal_says_nothing_of_what_was_asked_before(store: Store) -> None:
    review, service = review_of(store), Service(UNKNOWN, REFUSED)
    review.approve(1)
    for _ in range(2):
        with pytest.raises(SendError, match="not confirmed") as caught:
            review.send(service)
        assert caught.value.outcome == "unknown"
        assert (states(store)[0], review.page().unconfirmed) == ("sent", 1)
    assert review.send(service).ids == [1]
    assert len({asked for asked, _ in service.asked}) == 1


def test_what_a_service_gave_up_is_another_job_when_it_is_sent_again(store: Store) -> None:
    review, service = review_of(store), Service(UNKNOWN, FAILED, None)
    review.approve(1)
    for _ in range(2):
        with pytest.raises(SendError):
            review.send(service)
    assert states(store)[0] == "approved"
    review.send(service)
    review.confirm([1], trained=False, by="train")
    review.send(service)
    ids = [asked for asked, _ in service.asked]
    assert ids[0] == ids[1]
    assert len(set(ids[1:])) == 3


def test_what_one_service_may_have_is_sent_to_no_other(store: Store) -> None:
    review, other = review_of(store), Service(name="http://other")
    review.approve(1)
    with pytest.raises(SendError):
        review.send(Service(UNKNOWN))
    with pytest.raises(SendError, match=r"\[1\] can't be sent again, as they went to http://train, and .*confirm"):
        review.send(other)
    review.approve(2)
    assert review.send(other).ids == [2]
    assert review.page().unconfirmed == 1
    review.confirm([1], trained=True, by="ana")
    assert review.page().unconfirmed == 0
    assert states(store) == ["trained", "sent", "new"]


def test_what_was_confirmed_by_hand_is_not_sent_again(store: Store) -> None:
    review, service = review_of(store), Service(UNKNOWN)
    review.approve(1, 2)
    with pytest.raises(SendError):
        review.send(service)
    review.confirm([1], trained=True, by="ana")
    why = "others of the same request were confirmed by hand"
    (left,) = review.page().requests
    assert (left.ids, left.is_aside, left.why, review.page().to_send_again) == ([2], True, why, 0)
    with pytest.raises(SendError, match=rf"candidates \[2\] can't be sent again, as {why}; say what came of them"):
        review.send(service)
    assert len(service.asked) == 1
    assert open_requests([left]) == [
        f"Sent, and not confirmed: 2 (to http://train); set aside, as {why}; say what came of them "
        "(sona candidates confirm)."
    ]
    review.confirm([2], trained=False, by="ana")
    assert review.send(service).ids == [2]


def test_what_is_not_sent_again_since_another_service_is_named_is_told_so(store: Store) -> None:
    review = review_of(store, train_url="http://train/")
    review.approve(1)
    with pytest.raises(SendError):
        review.send(Service(UNKNOWN))
    (same,), (unknown,) = review.page().requests, review_of(store).page().requests
    assert same == unknown, "who has no address to compare with asks the one that it was sent to"
    assert (same.is_aside, review.page().to_send_again) == (False, 1)
    assert open_requests([same])[0].endswith("; sending to it asks again, as the same request.")
    page = review_of(store, train_url="http://other").page()
    assert (page.requests[0].is_aside, page.to_send_again) == (True, 0)
    told = "they went to http://train, and sending goes to http://other now (candidates.train_url)"
    assert page.requests[0].why == told
    assert told in open_requests(page.requests)[0]


def test_what_a_service_refuses_each_time_is_set_aside_and_keeps_nothing_waiting(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    review, service = review_of(store), Service(UNKNOWN, *[REFUSED] * TRIES)
    review.approve(1)
    with pytest.raises(SendError):
        review.send(service)
    review.approve(2)
    for tries in range(1, TRIES):
        with pytest.raises(SendError, match="not confirmed"):
            review.send(service)
        (waiting,) = review.page().requests
        assert (waiting.ids, waiting.refused, waiting.said, waiting.is_aside) == ([1], tries, "no", False)
    sent = review.send(service)
    assert sent.ids == [2], "what came after it is sent in the same call"
    assert "set aside" in caplog.text
    page = review_of(store).page()
    assert (page.unconfirmed, page.to_send_again, page.requests[0].is_aside) == (1, 0, True)
    (told,) = open_requests(page.requests)
    assert "refused 3 times: no" in told
    assert "sona candidates confirm" in told
    asked = len(service.asked)
    with pytest.raises(SendError, match=r"candidates \[1\] can't be sent again.*refused them 3 times"):
        review.send(service)
    assert len(service.asked) == asked, "it is not asked again"
    review.confirm([1], trained=False)
    assert (states(store)[0], review.page().requests) == ("approved", [])
    assert review.send(service).ids == [1]
    assert service.asked[-1][0] != service.asked[0][0], (
        "another job: a person has said that the service has not the first"
    )


def test_a_service_that_is_down_or_takes_no_token_sets_nothing_aside(store: Store) -> None:
    down = SendError("connection refused", of_samples=False)
    review, service = review_of(store), Service(UNKNOWN, *[down] * (TRIES + 2))
    review.approve(1)
    for _ in range(TRIES + 3):
        with pytest.raises(SendError):
            review.send(service)
    assert [one.refused for one in review.page().requests] == [0]
    assert review.send(service).ids == [1]


def test_what_was_confirmed_in_part_is_told_of_no_more(store: Store) -> None:
    review = review_of(store)
    review.approve(1, 2)
    with pytest.raises(SendError):
        review.send(Service(UNKNOWN))
    review.confirm([1], trained=False)
    assert review.send(Service(name="http://other")).ids == [1]
    assert [one.ids for one in review.page().requests] == [[2]]


def test_a_batch_that_was_noted_and_never_posted_is_forgotten(store: Store) -> None:
    """A crash came between the two writes."""
    review, service = review_of(store), Service()
    review.approve(1)
    found = store.candidates.get(1)
    lost = Batch(id=request_id([found], "with_memories"), service=service.name, train_on="with_memories", seqs=(1,))
    Sending(store, CandidatesConfig())._keep([lost])
    assert review.page().unconfirmed == 0
    assert review.send(service).ids == [1]
    assert service.asked[0][1][0].context_ids == [1, 3]
    assert store.read_state(STATE) == b"[]"


@pytest.mark.parametrize("is_erased", [True, False])
def test_what_was_deleted_meanwhile_is_not_sent_again(tmp_path: Path, is_erased: bool) -> None:
    from tests.engine.small import open_small
    from tests.reviews import turn

    with open_small(tmp_path / "store", model=None) as engine:
        engine.record(turn(0))
        engine.flush()
        store = engine._engine._started().store
        store.candidates.add([candidate(0), candidate(1, source="other")])
        engine.candidates.approve(1, 2)
        service = Service(UNKNOWN)
        with pytest.raises(SendError):
            engine.candidates.send(service)
        if is_erased:
            engine.erase("agent")
        else:
            store._transact(forget)
        with pytest.raises(SendError, match="their texts are gone"):
            engine.candidates.send(service)
        assert len(service.asked) == 1


def forget(connection: object) -> None:
    from sona.storage.candidates import forget_candidates

    forget_candidates(connection, "turn-0")  # type: ignore[arg-type]


def test_the_id_follows_the_samples() -> None:
    def one(**more: object) -> Candidate:
        return candidate(0, **more)

    first = request_id([one()], "without_memories")
    assert first == request_id([one(response="another text of the same tokens")], "without_memories")
    others = [
        request_id([one()], "with_memories"),
        request_id([one(continuation_ids=[4, 6])], "without_memories"),
        request_id([one(), one()], "without_memories"),
    ]
    assert len({first, *others}) == 4


@pytest.mark.parametrize("url", ["ftp://x", "http://user:secret@host", "//", "nowhere"])
def test_what_is_no_address_is_refused_by_its_setting(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^candidates\.train_url: ") as caught:
        HttpTrainingService(url)
    assert "secret" not in str(caught.value)


def test_a_token_comes_from_one_place(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="one of them is allowed"):
        CandidatesConfig(train_token_env="A", train_token_file="b")
    monkeypatch.delenv("TRAIN_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="TRAIN_TOKEN holds no token"):
        review_of(store, train_url="http://127.0.0.1:9", train_token_env="TRAIN_TOKEN").send()


def test_what_was_sent_is_not_approved_again_by_hand(store: Store) -> None:
    """A cycle would take what a service may have."""
    review = review_of(store)
    review.approve(1, 2)
    with pytest.raises(SendError):
        review.send(Service(UNKNOWN))
    with pytest.raises(StateChangeError, match=r"only new or approved or rejected ones are allowed.*confirm"):
        review.approve(3, 1)
    assert (states(store), review.page().unconfirmed) == (["sent", "sent", "new"], 2), "all or none"


def test_what_was_turned_down_meanwhile_does_not_come_back_by_a_confirmation(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service refuses them, and a person rejects them, just before somebody says that the job was given up."""
    review = review_of(store)
    review.approve(1)
    with pytest.raises(SendError):
        review.send(Service(UNKNOWN))
    change = store.candidates.change

    def late(*given: object, **how: object) -> object:
        monkeypatch.undo()
        change([1], "approved", by="train")
        change([1], "rejected", by="ana")
        return change(*given, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(store.candidates, "change", late)
    with pytest.raises(StateChangeError, match="it is rejected; only sent or trained ones"):
        review.confirm([1], trained=False)
    assert states(store)[0] == "rejected"
