"""A server elsewhere gets every version, attested and without a gap, whatever becomes of it."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sona.config import RemoteConfig
from sona.events import Event, RemoteFailed, RemotePublished
from sona.loops.version_files import PROOF
from sona.ports import ServedModel
from sona.remote_publishing import RemotePublisher
from sona.serving.local import LocalModel
from sona.serving.remote.opening import open_server
from sona.serving.remote.shelf import Shelf
from sona.storage.store import Store
from sona.storage.versions import Versions
from sona.types import Version
from tests.remote.elsewhere import Elsewhere, Weights
from tests.remote.published import forget_vocabulary, publish_noisy

KINDS = ["vllm", "sglang"]
QUICK: dict[str, Any] = {"tolerance_nats": 0.01, "timeout_s": 10.0, "grace_s": 0.0, "check_s": 0.05, "retry_s": 0.02}


def until(claim: Callable[[], object], within_s: float = 20.0) -> None:
    end_s = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < end_s, "it did not come true"
        time.sleep(0.005)


@dataclass
class Publishing:
    """A publisher of a store, and what it told."""

    store: Store
    publisher: RemotePublisher
    told: list[Event] = field(default_factory=list)

    def version(self, name: str) -> Version:
        return next(version for version in self.store.versions() if version.id == name)

    def want(self, name: str) -> None:
        self.publisher.want(self.version(name))

    def publish(self, name: str) -> dict[str, str]:
        """Want it, wait until it is in force there, and return its names."""
        self.want(name)
        until(lambda: self.publisher.status.version == name)
        return self.publisher.in_force.names

    def failures(self) -> list[str]:
        return [event.reason for event in self.told if isinstance(event, RemoteFailed)]


@contextmanager
def publishing(
    store: Store, elsewhere: Elsewhere, model: ServedModel | None = None, **settings: Any
) -> Iterator[Publishing]:
    chosen = RemoteConfig(kind=elsewhere.kind, url=elsewhere.url, **{**QUICK, **settings})  # type: ignore[arg-type]
    shelf, told = Shelf(store.path / "remote", chosen.path_prefix), list[Event]()
    publisher = RemotePublisher(open_server(chosen), shelf, Versions(store.path), model, chosen, told.append)
    try:
        yield Publishing(store, publisher, told)
    finally:
        publisher.close()
        assert not publisher._thread.is_alive()


def names_on(elsewhere: Elsewhere) -> set[str]:
    return set(elsewhere.loaded)


def on_shelf(store: Store) -> set[str]:
    return Shelf(store.path / "remote").names()


@pytest.fixture(params=KINDS)
def elsewhere(request: pytest.FixtureRequest, weights: Weights) -> Iterator[Elsewhere]:
    with Elsewhere(request.param, weights) as opened:
        yield opened


@pytest.fixture
def vllm(weights: Weights) -> Iterator[Elsewhere]:
    """For what is the publisher's own, whatever the server is."""
    with Elsewhere("vllm", weights) as opened:
        yield opened


def test_versions_follow_one_another_under_fresh_names_and_are_taken_back(store: Store, elsewhere: Elsewhere) -> None:
    with publishing(store, elsewhere, grace_s=0.3) as running:
        assert running.publisher.in_force.names == {}, "until then hosts are given the base"
        first = running.publish("v1")
        assert first["s1"].startswith("sona-v1-s1-")
        assert names_on(elsewhere) == set(first.values())
        second = running.publish("v3")
        assert set(second) == {"s1", "s 2 ü"}
        assert names_on(elsewhere) == {*first.values(), *second.values()}, "the old one stays for a while"
        until(lambda: names_on(elsewhere) == set(second.values()))
        again = running.publish("v1")  # rolled back
        assert again != first, "a name is never loaded a second time"
        until(lambda: names_on(elsewhere) == set(again.values()) == on_shelf(store))
        assert running.publish("v0") == {}
        until(lambda: not names_on(elsewhere) and not on_shelf(store))
        until(lambda: running.publisher.status.leaving == 0)
        assert running.failures() == []
        named = [event.version for event in running.told if isinstance(event, RemotePublished)]
        assert named == ["v1", "v3", "v1", "v0"]
        status = running.publisher.status
        assert (status.published, status.failed, status.trouble, status.wanted) == (4, 0, None, "v0")


def test_an_adapter_that_changes_nothing_is_published_too(store: Store, vllm: Elsewhere) -> None:
    with publishing(store, vllm) as running:
        assert set(running.publish("v4")) == {"s1"}


def test_stale_weights_abort_and_the_old_names_stay_in_force(store: Store, elsewhere: Elsewhere) -> None:
    with publishing(store, elsewhere, retry_s=0.2) as running:
        first = running.publish("v1")
        elsewhere.stale = True
        running.want("v2")
        until(lambda: len(running.failures()) >= 2)
        assert "does not answer on the server as when it was published" in running.failures()[0]
        assert running.publisher.in_force.names == first
        until(lambda: names_on(elsewhere) == set(first.values()))
        status = running.publisher.status
        assert (status.version, status.wanted) == ("v1", "v2")
        assert "v2" in str(status.trouble)
        elsewhere.stale = False
        second = running.publish("v2")
        assert running.publisher.status.trouble is None
        until(lambda: names_on(elsewhere) == set(second.values()))


def test_a_rollback_ends_the_attempts_at_a_version_that_fails(store: Store, vllm: Elsewhere) -> None:
    with publishing(store, vllm) as running:
        first = running.publish("v1")
        vllm.stale = True
        running.want("v2")
        until(running.failures)
        running.want("v1")
        until(lambda: running.publisher.status.trouble is None)
        assert running.publisher.in_force.names == first
        until(lambda: names_on(vllm) == set(first.values()))


@pytest.mark.parametrize("fault", [{"runtime": False}, {"max_rank": 4}])
def test_a_refusal_is_told_and_tried_again_ever_later(fault: dict[str, Any], store: Store, weights: Weights) -> None:
    with Elsewhere("vllm", weights, **fault) as elsewhere, publishing(store, elsewhere, retry_s=0.1) as running:
        running.want("v1")
        until(lambda: len(running.failures()) == 3)
        at_s = [event.at_ns / 1e9 for event in running.told]
        assert at_s[1] - at_s[0] >= 0.1
        assert at_s[2] - at_s[1] >= 0.2
        words = "VLLM_ALLOW_RUNTIME_LORA_UPDATING" if "runtime" in fault else "rank 8 is greater than max_lora_rank 4"
        assert all(words in reason for reason in running.failures())
        assert running.publisher.in_force.version is None
        until(lambda: not on_shelf(store))


def test_a_wrong_token_is_told_without_being_shown(
    store: Store, weights: Weights, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_TOKEN", "wrong-token")
    with (
        Elsewhere("vllm", weights, token="right-token") as elsewhere,
        publishing(store, elsewhere, token_env="MY_TOKEN") as running,
    ):
        running.want("v1")
        until(running.failures)
        assert "status 401" in running.failures()[0]
        assert "wrong-token" not in f"{running.told} {running.publisher.status} {caplog.text}"
        assert not on_shelf(store), "nothing was prepared for a server that does not let us in"


def test_a_server_that_dies_in_the_middle_is_published_to_when_it_is_back(store: Store, elsewhere: Elsewhere) -> None:
    def die(path: str) -> None:
        if path in ("/v1/completions", "/generate"):
            elsewhere.delay_s = 5.0  # it dies before it answers
            elsewhere.die()

    with publishing(store, elsewhere) as running:
        elsewhere.before = die
        running.want("v1")
        until(running.failures)
        elsewhere.before, elsewhere.delay_s = lambda path: None, 0.0
        elsewhere.stop()
        assert running.publisher.in_force.names == {}
        elsewhere.start()
        until(lambda: running.publisher.status.version == "v1")
        names = set(running.publisher.in_force.names.values())
        assert names_on(elsewhere) == names


def test_a_restarted_server_is_noticed_and_gets_its_adapters_again(store: Store, elsewhere: Elsewhere) -> None:
    with publishing(store, elsewhere) as running:
        first = running.publish("v1")
        elsewhere.stop()
        until(lambda: running.publisher.status.trouble)
        assert running.publisher.in_force.names == first, "it may only be away"
        elsewhere.start()
        until(lambda: running.publisher.in_force.names not in (first, {}))
        assert names_on(elsewhere) == set(running.publisher.in_force.names.values())
        assert any("has its adapters no more" in reason for reason in running.failures())
        until(lambda: running.publisher.status.trouble is None and on_shelf(store) == names_on(elsewhere))


def test_a_slow_server_holds_up_nobody(store: Store, vllm: Elsewhere) -> None:
    with publishing(store, vllm, timeout_s=0.2) as running:
        vllm.delay_s = 30.0
        began_s = time.monotonic()
        running.want("v1")
        assert running.publisher.status.wanted == "v1"
        assert time.monotonic() - began_s < 0.1
        until(running.failures)
        assert "no whole answer within 0.2 s" in running.failures()[0]


def test_closing_waits_for_no_answer(store: Store, vllm: Elsewhere) -> None:
    vllm.delay_s = 3.0
    with publishing(store, vllm, timeout_s=60.0) as running:
        running.want("v1")
        until(lambda: vllm.asked)
        began_s = time.monotonic()
    assert time.monotonic() - began_s < 2
    assert running.told == []


def test_the_next_start_uses_what_is_there_and_removes_what_is_left(store: Store, elsewhere: Elsewhere) -> None:
    with publishing(store, elsewhere) as running:
        first = running.publish("v1")
    assert names_on(elsewhere) == set(first.values()), "who closes leaves the server answering"
    shelf = Shelf(store.path / "remote")
    left, path = shelf.put("v9", "s1", Versions(store.path).path("v2") / "skills" / "s1" / "adapter")
    elsewhere._load(left, path)  # as by a process that was killed in the middle
    with publishing(store, elsewhere) as running:
        assert running.publish("v1") == first
        until(lambda: names_on(elsewhere) == set(first.values()) == on_shelf(store))
    with publishing(store, elsewhere) as running:  # another version meanwhile
        second = running.publish("v2")
        until(lambda: names_on(elsewhere) == set(second.values()) == on_shelf(store))
    elsewhere.stop()
    elsewhere.start()
    with publishing(store, elsewhere) as running:  # restarted meanwhile
        third = running.publish("v2")
        assert third != second
        until(lambda: names_on(elsewhere) == set(third.values()) == on_shelf(store))


def test_what_is_there_is_attested_before_it_is_used_again(store: Store, vllm: Elsewhere) -> None:
    with publishing(store, vllm) as running:
        first = running.publish("v1")
        other = Versions(store.path).path("v2") / "skills" / "s1" / "adapter"
    vllm.loaded[first["s1"]] = ("", vllm.weights.load(str(other)))
    with publishing(store, vllm) as running:
        again = running.publish("v1")
        assert again != first
        assert len(running.failures()) == 1
        until(lambda: names_on(vllm) == set(again.values()))


def test_a_store_that_the_server_sees_elsewhere_is_mapped(store: Store, weights: Weights) -> None:
    sees = ("/mnt/sona", str(store.path))
    with (
        Elsewhere("vllm", weights, sees=sees) as elsewhere,
        publishing(store, elsewhere, path_prefix="/mnt/sona") as running,
    ):
        running.publish("v1")
        assert all(path.startswith("/mnt/sona/remote/sona-v1-s1-") for path, _ in elsewhere.loaded.values())


def test_the_version_s_files_may_go_while_the_server_has_its_adapter(
    store: Store, weights: Weights, model: LocalModel
) -> None:
    with Elsewhere("vllm", weights) as elsewhere, publishing(store, elsewhere) as running:
        running.publish("v1")
        shutil.rmtree(Versions(store.path).path("v1"))
        ((path, _),) = elsewhere.loaded.values()
        assert (Path(path) / "adapter_model.safetensors").is_file()


def test_a_damaged_version_is_not_published(store: Store, weights: Weights) -> None:
    folder = Versions(store.path).path("v2") / "skills" / "s1" / "adapter"
    with open(folder / "adapter_model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with Elsewhere("vllm", weights) as elsewhere, publishing(store, elsewhere) as running:
        first = running.publish("v1")
        running.want("v2")
        until(running.failures)
        assert "digest" in running.failures()[0]
        assert running.publisher.in_force.names == first


def test_a_version_older_than_proofs_needs_the_model(store: Store, weights: Weights, model: LocalModel) -> None:
    old = publish_noisy(store, model, {"s1": 6}, proof=False)
    with Elsewhere("vllm", weights) as elsewhere:
        with publishing(store, elsewhere) as running:
            running.want(old.id)
            until(running.failures)
            assert "open the engine with model=" in running.failures()[0]
        with publishing(store, elsewhere, model) as running:
            assert set(running.publish(old.id)) == {"s1"}


def test_a_proof_without_the_vocabulary_s_size_needs_the_model(tmp_path: Path) -> None:
    import msgspec

    from sona.serving.proof import read_proof

    written = {"form": 1, "dtype": "float32", "base": [[0.0] * 15] * 4, "adapters": {}, "vocabulary": 7}
    (tmp_path / PROOF).write_bytes(msgspec.json.encode(written))
    forget_vocabulary(tmp_path / PROOF)
    assert read_proof((tmp_path / PROOF).read_bytes()).vocabulary == 0


def test_hosts_see_whole_versions_only_while_they_change(store: Store, weights: Weights) -> None:
    """Names of two versions are never mixed, and what is named is on the server."""
    with Elsewhere("vllm", weights) as elsewhere, publishing(store, elsewhere, grace_s=5.0) as running:
        running.publish("v1")
        wrong: list[object] = []
        done = threading.Event()

        def ask() -> None:
            while not done.is_set():
                seen = running.publisher.in_force
                if not all(name.startswith(f"sona-{seen.version}-") for name in seen.names.values()):
                    wrong.append(seen)
                if not set(seen.names.values()) <= names_on(elsewhere) or not seen.names:
                    wrong.append((seen, names_on(elsewhere)))
                time.sleep(0.0005)

        thread = threading.Thread(target=ask)
        thread.start()
        for name in ("v2", "v3", "v1"):
            running.publish(name)
        done.set()
        thread.join()
        assert wrong == []
