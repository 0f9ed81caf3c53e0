"""Adapters that come and go under load: whatever fails, the version before goes on answering."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import pytest
import torch

from sona.config import LoraConfig, ServeConfig, TrainConfig
from sona.errors import SwapError
from sona.learn.dataset import Example
from sona.learn.lora import attach, save_adapter, weights
from sona.learn.trainer import train
from sona.serving.adapters import Adapter, ResidentAdapters
from sona.serving.local import LocalModel
from sona.types import Message
from tests.serving.noisy_adapter import one, write_noisy_adapter

ASK = [Message(role="user", content="echo blue river")]


class WatchedLock:
    """A lock that tells how many threads wait for it."""

    def __init__(self) -> None:
        self.lock, self.waiting = threading.Lock(), 0

    def __enter__(self) -> Self:
        self.waiting += 1
        self.lock.acquire()
        self.waiting -= 1
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()


@pytest.fixture
def model() -> LocalModel:
    return LocalModel("tiny", ServeConfig(device="cpu", threads=1))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = LocalModel("tiny", ServeConfig(device="cpu", threads=1))
    made = tmp_path_factory.mktemp("adapters")
    return {f"v{seed}": write_noisy_adapter(base, made / f"v{seed}", seed) for seed in range(1, 6)}


def answer(model: LocalModel) -> tuple[str, tuple[int, ...]]:
    reply = model.generate(model.encode_prompt(ASK), max_new_tokens=8)
    return reply.version, reply.token_ids


def together(model: LocalModel, swaps: list[Callable[[], None]]) -> None:
    """Run the swaps in threads of their own that have all begun before any may load."""
    lock = WatchedLock()
    model._swapping = lock  # type: ignore[assignment]
    with ThreadPoolExecutor(len(swaps)) as pool:
        with lock:
            futures = [pool.submit(swap) for swap in swaps]
            while lock.waiting < len(swaps):
                time.sleep(0.001)
        for future in futures:
            future.result(timeout=60)


def test_concurrent_swaps_to_one_version_load_it_once(
    model: LocalModel, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    put: list[str] = []
    original = ResidentAdapters._load

    def counted(self: ResidentAdapters, key: str, folder: Path) -> Adapter:
        put.append(folder.name)
        return original(self, key, folder)

    monkeypatch.setattr(ResidentAdapters, "_load", counted)
    together(model, [lambda: model.swap("v1", one(folders["v1"]))] * 3)
    assert put == ["v1"]
    wanted = answer(model)
    for name in ("v2", "v3", "v4", "v1"):
        model.swap(name, one(folders[name]))
        assert answer(model)[0] == name == model.version
        assert len(model._adapters) <= 2
    assert answer(model) == wanted


def test_concurrent_swaps_to_several_versions_all_succeed(model: LocalModel, folders: dict[str, Path]) -> None:
    together(model, [partial(model.swap, name, one(folder)) for name, folder in folders.items()])
    assert answer(model)[0] == model.version
    assert len(model._adapters) <= 2


def test_answers_and_swaps_from_many_threads_fit_together(model: LocalModel, folders: dict[str, Path]) -> None:
    wanted = {}
    for name, folder in [*folders.items(), ("v0", None)]:
        model.swap(name, one(folder))
        wanted[name] = answer(model)

    def swap_about(seed: int) -> None:
        for name in np.random.default_rng(seed).permutation(sorted(folders)):
            model.swap(str(name), one(folders[str(name)]))

    with ThreadPoolExecutor(5) as pool:
        swapping = [pool.submit(swap_about, seed) for seed in range(2)]
        answering = [pool.submit(answer, model) for _ in range(12)]
        for done in swapping:
            done.result(timeout=60)
        for reply in answering:
            version, tokens = reply.result(timeout=60)
            assert wanted[version] == (version, tokens)


def test_a_version_is_not_served_before_it_is_verified(
    model: LocalModel, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second swap that came while the first still compared the files could switch to what was then dropped."""
    seen: list[bool] = []

    def differs(*_: object) -> bool:
        seen.append(len(model._adapters) > 0)
        return False

    monkeypatch.setattr("sona.serving.adapters._holds", differs)
    before = answer(model)
    with pytest.raises(SwapError, match="v1"):
        model.swap("v1", one(folders["v1"]))
    assert seen == [False]
    assert answer(model) == before


@pytest.mark.parametrize("current", ["v0", "v1"])
@pytest.mark.parametrize("raised", [ValueError, AttributeError, AssertionError, KeyboardInterrupt])
def test_a_failed_load_changes_nothing(
    model: LocalModel,
    folders: dict[str, Path],
    current: str,
    raised: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model.swap(current, one(folders.get(current)))
    before = answer(model)
    with monkeypatch.context() as patch:

        def fail(*_: object) -> bool:
            raise raised("no")

        patch.setattr("sona.serving.adapters._holds", fail)
        with pytest.raises(SwapError if issubclass(raised, Exception) else raised):
            model.swap("v2", one(folders["v2"]))
    assert model.version == current
    assert answer(model) == before
    model.swap("v2", one(folders["v2"]))
    assert answer(model)[0] == "v2"
    model.swap(current, one(folders.get(current)))
    assert answer(model) == before


def test_an_id_that_was_the_bare_model_s_serves_its_adapter(model: LocalModel, folders: dict[str, Path]) -> None:
    model.swap("v1", one(None))
    bare = answer(model)
    model.swap("v1", one(folders["v1"]))
    assert answer(model)[1] != bare[1]


def test_a_half_precision_base_learns_and_serves_what_it_learned(tmp_path: Path) -> None:
    model = LocalModel("tiny", ServeConfig(device="cpu", threads=1, dtype="bfloat16"))
    prompt, wish = model.encode_prompt(ASK), model.encode_response("stone")
    before, vector = model.generate(prompt, max_new_tokens=8), model.embed([prompt])
    learner = attach(model.trainable_copy(), LoraConfig(rank=4), seed=0)
    train(
        learner,
        lambda _: [Example(prompt, wish)],
        steps=30,
        settings=TrainConfig(),
        learning_rate=5e-3,
        pad_id=model.pad_id,
    )
    assert {value.dtype for value in weights(learner).values()} == {torch.float32}
    save_adapter(learner, tmp_path)
    assert model.generate(prompt, max_new_tokens=8) == before  # training touched nothing that is served
    model.swap("v1", one(tmp_path))
    learned = model.generate(prompt, max_new_tokens=8)
    assert (learned.version, learned.token_ids) == ("v1", tuple(wish.tolist()))
    assert model.embed([prompt]).dtype == np.float32
    np.testing.assert_array_equal(model.embed([prompt]), vector)
    model.swap("v0", one(None))
    assert model.generate(prompt, max_new_tokens=8) == before
