"""Record, learn, gate, swap, roll back: on a real model, with real gradients."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import sona
from sona.config import BankConfig, Config, CycleConfig, GateConfig, LoraConfig, SkillsConfig, StoreConfig, TrainConfig
from sona.errors import ConfigError, CycleError, NothingToRollBackError, UnknownIdError
from sona.parts import Parts
from sona.tiny import model_path
from sona.types import Progress
from tests.engine.small import SMALL, WORLD, open_small, record_task

PROMPTS = [example.prompt for example in WORLD.sample("tool_call", 8, 99, "held_out")]


def record_all(engine: sona.Engine, seed: int) -> None:
    """60 right answers to one task."""
    for example in WORLD.sample("tool_call", 60, seed):
        engine.record(sona.Trajectory(messages=example.prompt, response=example.response), quality=1.0)


def told_of(stage: str) -> tuple[asyncio.Event, Callable[[Progress], None]]:
    """An event of this loop's, and the progress callback that sets it when ``stage`` begins."""
    event, loop = asyncio.Event(), asyncio.get_running_loop()

    def on_progress(progress: Progress) -> None:
        if progress.stage == stage:
            loop.call_soon_threadsafe(event.set)

    return event, on_progress


def answers(engine: sona.SyncEngine) -> list[tuple[int, ...]]:
    return [reply.token_ids for reply in engine.generate_batch(PROMPTS, max_new_tokens=16)]


def test_a_cycle_changes_the_answers_and_a_rollback_restores_them(tmp_path: Path) -> None:
    with open_small(tmp_path / "store") as engine:
        untouched = answers(engine)
        record_task(engine, 60, seed=1)
        report = engine.learn()
        assert (report.status, report.version) == ("published", "v1"), report.reason
        learned = answers(engine)
        assert learned != untouched
        assert {reply.version for reply in engine.generate_batch(PROMPTS, max_new_tokens=4)} == {"v1"}
        assert report.metrics["new_nats_after"] < report.metrics["new_nats_before"]
        assert engine.roll_back().id == "v0"
        assert answers(engine) == untouched
        assert engine.bank.patterns == ()
        assert engine.roll_back("v1").id == "v1"
        assert answers(engine) == learned
    with open_small(tmp_path / "store") as again:
        assert answers(again) == learned
        assert again.bank.patterns


def test_the_funnel_accounts_for_every_trajectory(tmp_path: Path) -> None:
    with open_small(tmp_path / "store") as engine:
        record_task(engine, 40, seed=1)
        for place in range(5):
            engine.record(sona.Trajectory(messages=f"bad {place}", response="no"), quality=0.1)
        engine.record(sona.Trajectory(messages="echo a", response="b " * 700), quality=1.0)
        engine.record(sona.Trajectory(messages="echo a", outcome="failed"), quality=1.0)
        engine.record(sona.Trajectory(messages="echo a", response="a"))
        funnel = engine.learn().funnel
        assert funnel.collected == 47 == funnel.trained + funnel.held_out + sum(funnel.left_out.values())
        assert funnel.left_out == {"quality below 0.5": 5, "longer than 512 tokens": 1, "outcome failed": 1}
        assert funnel.waiting_for_feedback == 1
        assert engine.status().store.uncollected == 0


def test_too_little_is_left_for_the_next_cycle(tmp_path: Path) -> None:
    with open_small(tmp_path / "store") as engine:
        record_task(engine, 10, seed=1)
        report = engine.learn()
        assert (report.status, report.funnel.left_out) == ("skipped", {"left for the next cycle": 10})
        record_task(engine, 50, seed=2)
        assert engine.learn().funnel.collected == 60


def test_late_feedback_is_learned_once(tmp_path: Path) -> None:
    with open_small(tmp_path / "store") as engine:
        late = [sona.Trajectory(messages=x.prompt, response=x.response) for x in WORLD.sample("tool_call", 60, 5)]
        for trajectory in late:
            engine.record(trajectory)
        record_task(engine, 60, seed=1)
        assert engine.learn().funnel.collected == 60
        for trajectory in late:
            engine.feedback(trajectory.id, 1.0)
        assert engine.learn().funnel.collected == 60
        engine.feedback(late[0].id, 0.0)
        assert engine.learn().funnel.collected == 0


def test_a_rejected_challenger_leaves_everything_as_it_was(tmp_path: Path) -> None:
    impossible = GateConfig(min_held_out=4, min_gain=1.0, bootstrap_samples=200)
    with open_small(tmp_path / "store", config=Config(**{**_fields(SMALL), "gate": impossible})) as engine:
        untouched = answers(engine)
        record_task(engine, 60, seed=1)
        report = engine.learn()
        assert (report.status, report.version) == ("rejected", None)
        assert "gain" in report.reason
        assert answers(engine) == untouched
        assert [version.id for version in engine.versions()] == ["v0"]
        assert engine.learn().status == "skipped"
    assert [path.name for path in (tmp_path / "store" / "versions").iterdir()] == []


def test_a_challenger_that_changes_nothing_is_rejected(tmp_path: Path) -> None:
    """Without a single step there is nothing to gain, whatever was recorded: the gate must see that."""
    frozen = Config(**{**_fields(SMALL), "train": _no_steps()})
    with open_small(tmp_path / "store", config=frozen) as engine:
        record_task(engine, 60, seed=1)
        report = engine.learn()
        assert report.status == "rejected"
        assert report.gate is not None
        assert {check.name: check.passed for check in report.gate.checks}["gain"] is False


def test_the_published_adapter_is_a_plain_peft_folder(tmp_path: Path) -> None:
    with open_small(tmp_path / "store") as engine:
        record_task(engine, 60, seed=1)
        engine.learn()
        served = engine.generate(PROMPTS[0], max_new_tokens=16)
    base = AutoModelForCausalLM.from_pretrained(model_path())
    assert served.adapter == "s1"
    folder = tmp_path / "store" / "versions" / "v1" / "skills" / served.adapter / "adapter"
    model = PeftModel.from_pretrained(base, str(folder))
    ids = torch.tensor([served.prompt_ids])
    generate: Any = model.generate
    out = generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
    assert tuple(out[0, ids.shape[1] :].tolist()) == served.token_ids


def test_the_same_store_settings_and_seed_learn_the_same(tmp_path: Path) -> None:
    digests = []
    for name in ("a", "b"):
        with open_small(tmp_path / name) as engine:
            for place, example in enumerate(WORLD.sample("tool_call", 60, 1)):
                one = sona.Trajectory(
                    id=f"t{place}", messages=example.prompt, response=example.response, created_ns=place
                )
                engine.record(one, quality=1.0)
            engine.learn()
            version = tmp_path / name / "versions" / "v1"
            files = [
                version / "router.safetensors",
                version / "skills" / "s1" / "adapter" / "adapter_model.safetensors",
            ]
            digests.append([file.read_bytes() for file in files])
    assert digests[0] == digests[1]


@pytest.mark.parametrize(("mode", "task"), [("shared", "routing_policy"), ("auto", "tool_call")])
def test_an_adapter_s_second_lesson_replays_its_first_and_is_held_by_ewc(tmp_path: Path, mode: str, task: str) -> None:
    config = Config(**{**_fields(SMALL), "skills": SkillsConfig(mode=mode)})  # type: ignore[arg-type]
    with open_small(tmp_path / "store", config=config) as engine:
        record_task(engine, 60, seed=1)
        first = engine.learn()
        record_task(engine, 60, seed=2, task=task)
        second = engine.learn()
    assert first.metrics["replayed"] == 0 < second.metrics["replayed"]
    if mode == "shared":
        assert first.metrics["ewc_gradient_share"] > 0, "the first cycle is held by the base model's own probes"
    assert second.metrics["ewc_penalty_last"] > 0
    assert "earlier_nats_after" in second.metrics


def test_cancelling_a_cycle_changes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with sona.open(tmp_path / "store", model="tiny", config=SMALL) as engine:
            record_all(engine, seed=1)
            training, on_progress = told_of("train")
            task = asyncio.create_task(engine.learn(on_progress))
            await training.wait()
            with pytest.raises(CycleError, match="under way"):
                await engine.learn()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert engine.version.id == "v0"
            assert engine.status().store.uncollected == 60
            assert (await engine.learn()).status == "published"

    asyncio.run(scenario())


def test_a_rollback_during_a_cycle_keeps_the_cycle_from_publishing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with sona.open(tmp_path / "store", model="tiny", config=SMALL) as engine:
            record_all(engine, seed=1)
            assert (await engine.learn()).version == "v1"
            record_all(engine, seed=2)
            training, on_progress = told_of("train")
            learning = asyncio.create_task(engine.learn(on_progress))
            await training.wait()
            assert engine.roll_back().id == "v0"
            with pytest.raises(CycleError):
                await learning
            assert engine.version.id == "v0"
            assert [version.id for version in engine.versions()] == ["v0", "v1"]
            assert engine.status().store.uncollected == 60
            assert (await engine.learn()).version == "v2", "the folder that the failed cycle left is in nobody's way"

    asyncio.run(scenario())


def test_requests_go_on_during_a_cycle_and_name_their_version(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with sona.open(tmp_path / "store", model="tiny", config=SMALL) as engine:
            record_all(engine, seed=1)
            await engine.flush()
            before = (await engine.generate(PROMPTS[0], max_new_tokens=16)).token_ids
            learning = asyncio.create_task(engine.learn())
            seen: dict[str, set[tuple[int, ...]]] = {}
            while not learning.done():
                reply = await engine.generate(PROMPTS[0], max_new_tokens=16)
                seen.setdefault(reply.version, set()).add(reply.token_ids)
            assert (await learning).version == "v1"
            reply = await engine.generate(PROMPTS[0], max_new_tokens=16)
            seen.setdefault(reply.version, set()).add(reply.token_ids)
            assert seen["v0"] == {before}
            assert seen["v1"] == {reply.token_ids}

    asyncio.run(scenario())


def test_the_context_manager_records_what_happened(tmp_path: Path) -> None:
    with open_small(tmp_path / "store") as engine:
        with engine.trajectory("echo blue river", source="support-bot", metadata={"ticket": "7"}) as t:
            reply = t.generate(max_new_tokens=8)
            t.step("tool:lookup", reward=0.2)
            engine.feedback(t.id, quality=0.9)
        engine.flush()
        stored = engine.get(t.id)
        assert stored.quality == 0.9
        assert stored.trajectory.response == reply.text
        assert stored.trajectory.version == "v0"
        assert stored.trajectory.source == "support-bot"
        assert [step.name for step in stored.trajectory.steps] == ["tool:lookup"]
        vector = stored.trajectory.vector()
        assert vector is not None
        assert vector.shape == (128,)
        with pytest.raises(ZeroDivisionError), engine.trajectory("echo red") as failed:
            raise ZeroDivisionError
        with engine.trajectory("echo green") as silent:
            pass
        engine.flush()
        assert engine.get(failed.id).trajectory.outcome == "failed"
        assert engine.get(silent.id).trajectory.outcome == "abandoned"
        assert engine.status().hook_errors == 0


def test_a_store_of_other_embeddings_still_records_what_the_model_answers(tmp_path: Path) -> None:
    with open_small(tmp_path / "store") as engine:
        engine.record(sona.Trajectory(messages="a", response="b", embedding=[1.0, 2.0]))
        with engine.trajectory("echo blue") as t:
            t.generate(max_new_tokens=4)
        engine.flush()
        assert engine.get(t.id).trajectory.embedding is None
        assert engine.status().hook_errors == 0


def test_a_host_with_a_model_of_its_own_records_and_the_bank_learns(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    config = Config(**{**_fields(SMALL), "bank": BankConfig(exemplars=1)})
    with open_small(tmp_path / "store", model=None, config=config) as engine:
        for place in range(40):
            vector = rng.normal(size=16) + 5 * (place % 2) * np.eye(16)[0]
            engine.record(sona.Trajectory(embedding=vector, response=f"r{place}"), quality=float(place % 2))
        report = engine.learn()
        assert (report.status, report.version) == ("published", "v1")
        assert report.funnel.left_out == {"no model to train": 40}
        (best, *_) = engine.recall(np.eye(16)[0].astype(np.float32) * 5)
        assert best.pattern.verdict.mean == 1.0
        assert engine.learn().status == "skipped"


def test_a_full_load_without_evidence_is_not_in_the_way_of_what_comes_next(tmp_path: Path) -> None:
    cycle = CycleConfig(min_trajectories=24, max_trajectories=30, probes=16, probe_tokens=16)
    with open_small(tmp_path / "store", config=Config(**{**_fields(SMALL), "cycle": cycle})) as engine:
        for _ in range(30):
            engine.record(sona.Trajectory(messages="always the same", response="answer"), quality=1.0)
        record_task(engine, 60, seed=1)
        assert engine.learn().funnel.collected == 30
        assert engine.status().store.uncollected == 60
        assert engine.learn().funnel.collected == 30


def test_without_a_gate_no_held_out_answers_are_needed(tmp_path: Path) -> None:
    given = _fields(SMALL) | {
        "gate": GateConfig(enabled=False),
        "cycle": CycleConfig(min_trajectories=24, held_out_share=0.0, probes=16, probe_tokens=16),
    }
    with open_small(tmp_path / "store", config=Config(**given)) as engine:
        record_task(engine, 30, seed=1)
        report = engine.learn()
        assert (report.status, report.funnel.trained) == ("published", 30)


def test_another_adapter_shape_is_a_typed_error(tmp_path: Path) -> None:
    with open_small(tmp_path / "store") as engine:
        record_task(engine, 60, seed=1)
        assert engine.learn().version == "v1"
    wider = Config(**{**_fields(SMALL), "lora": LoraConfig(rank=4)})
    with open_small(tmp_path / "store", config=wider) as engine:
        record_task(engine, 60, seed=2)
        with pytest.raises(ConfigError, match=r"rank 4.*adapter has rank 8"):
            engine.learn()
        assert engine.status().store.uncollected == 60


def test_old_versions_leave_the_disk_and_say_so(tmp_path: Path) -> None:
    given = _fields(SMALL) | {"store": StoreConfig(keep_versions=1), "gate": GateConfig(enabled=False)}
    with open_small(tmp_path / "store", config=Config(**given)) as engine:
        for seed in (1, 2, 3):
            record_task(engine, 40, seed=seed)
            assert engine.learn().version == f"v{seed}"
        assert sorted(path.name for path in (tmp_path / "store" / "versions").iterdir()) == ["v2", "v3"]
        with pytest.raises(UnknownIdError):
            engine.roll_back("v1")
        assert engine.version.id == "v3"
        assert engine.roll_back().id == "v2"


def test_closing_ends_the_cycle_and_the_hourly_loop(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = sona.open(tmp_path / "store", model="tiny", config=SMALL)
        await engine.__aenter__()
        record_all(engine, seed=1)
        training, on_progress = told_of("train")
        learning = asyncio.create_task(engine.learn(on_progress))
        await training.wait()
        await engine.__aexit__(None, None, None)
        with pytest.raises(CycleError):
            await learning
        async with sona.open(tmp_path / "store", model="tiny", config=SMALL) as again:
            assert again.status().store.uncollected == 60
            running = asyncio.create_task(again.run())
            while again.version.id == "v0":  # noqa: ASYNC110 - the engine has no event for it yet
                await asyncio.sleep(0.05)
        await asyncio.wait_for(running, 30)

    asyncio.run(scenario())


def test_an_open_that_nobody_waits_for_any_more_leaves_the_store_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    start = Parts.start

    def slow_start(*given: Any) -> Parts:
        began.set()
        assert go_on.wait(30)
        return start(*given)

    async def scenario() -> None:
        opening = asyncio.create_task(sona.open(tmp_path / "store", config=SMALL).__aenter__())
        await asyncio.to_thread(began.wait, 30)
        opening.cancel()
        await asyncio.sleep(0)  # the cancellation reaches it while its thread still works
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await opening

    monkeypatch.setattr(Parts, "start", slow_start)
    asyncio.run(scenario())
    monkeypatch.undo()
    with open_small(tmp_path / "store", model=None) as engine:
        assert engine.version.id == "v0"


def test_feedback_that_meets_the_end_of_its_block_is_never_lost(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", model=None) as engine:
        ids: list[str] = []
        for _ in range(30):
            with engine.trajectory("q") as t:
                t.respond("a")
                rater = threading.Thread(target=lambda name=t.id: engine.feedback(name, 1.0))
                rater.start()
            rater.join()
            ids.append(t.id)
        engine.flush()
        assert [engine.get(name).quality for name in ids] == [1.0] * 30


def test_there_is_nothing_before_the_first_version(tmp_path: Path) -> None:
    with open_small(tmp_path / "store", model=None) as engine:
        with pytest.raises(NothingToRollBackError):
            engine.roll_back()
        with pytest.raises(UnknownIdError, match="v7"):
            engine.roll_back("v7")


def _fields(config: Config) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__struct_fields__}


def _no_steps() -> TrainConfig:
    return TrainConfig(passes=0.0, min_steps=0)
