"""The peers and the base model, at a size that takes no time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.forgetting.adapter import Adapter
from benchmarks.forgetting.base import Recipe, base_folder
from benchmarks.forgetting.batch import collate, share_right
from benchmarks.forgetting.course import travel, travel_at_once
from benchmarks.forgetting.peers import PEERS, AvalancheEwc, Joint, OLora, Replay
from benchmarks.forgetting.stream import Stream, StreamSize, make_stream
from benchmarks.forgetting.vocabulary import PAD_ID, VOCABULARY, prompt_ids
from benchmarks.forgetting.world import Question, plain_world
from sona.config import ServeConfig
from sona.serving.local import LocalModel
from sona.types import Message

SMALL = StreamSize(per_hour=8, base_hours=1, hours=1, jitter=0, tasks=2, exam=4, base_exam=7)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_folder(Recipe(0, steps=4, batch_size=8), tmp_path_factory.mktemp("bases"))


@pytest.fixture
def stream() -> Stream:
    return make_stream("plain", 0, SMALL)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.forgetting.peers.STEPS", 2)


def test_base_model_is_made_once(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.forgetting.base.pretrain", None)
    assert base_folder(Recipe(0, steps=4, batch_size=8), base.parent) == base


def test_base_model_is_served_with_the_ids_that_the_stream_records(base: Path) -> None:
    served = LocalModel(base, ServeConfig(device="cpu"))
    words = "user please set alarm in bath to n3"
    assert served.encode_prompt([Message(role="user", content=words)]).tolist() == list(prompt_ids(words.split()))
    assert (served.vocab_size, served.pad_id) == (len(VOCABULARY), PAD_ID)


def test_batch_learns_from_answers_alone() -> None:
    batch = collate([Question((1, 5, 2), (7, 3)), Question((1, 2), (8, 9, 9, 3))])
    assert batch.input_ids.tolist() == [[1, 5, 2, 7, 3, 0], [1, 2, 8, 9, 9, 3]]
    assert batch.labels.tolist() == [[-100, -100, -100, 7, 3, -100], [-100, -100, 8, 9, 9, 3]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]


def test_answer_is_right_only_to_its_last_token() -> None:
    class Parrot(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            logits = torch.nn.functional.one_hot(torch.full_like(input_ids, 7), 10).float()  # always says 7
            return type("Output", (), {"logits": logits})

    assert share_right(Parrot(), [Question((1, 2), (7, 7)), Question((1, 2), (7, 3))]) == 0.5


def test_step_changes_the_adapter_and_nothing_else(base: Path) -> None:
    adapter = Adapter(base, 1e-2, seed=0)
    everything = {name: value.detach().clone() for name, value in adapter.model.named_parameters()}
    batch = plain_world(0).sample("tool", 4, "a")
    adapter.step(batch)
    adapter.step(batch)  # A moves only once B is not 0
    changed = {name for name, value in adapter.model.named_parameters() if not torch.equal(value, everything[name])}
    assert changed == set(adapter.parameters)


@pytest.mark.parametrize("method", PEERS)
def test_peer_goes_through_a_stream_and_does_the_same_again(method: str, base: Path, stream: Stream) -> None:
    first, second = (travel(stream, PEERS[method](base, 0)) for _ in range(2))
    assert first.matrix == second.matrix
    assert len(first.matrix.rows) == 1 + len(stream.segments)


def test_joint_training_has_no_order(base: Path, stream: Stream) -> None:
    matrix = travel_at_once(stream, Joint(base, 0)).matrix
    assert matrix.la == matrix.acc
    assert matrix.bwt == 0.0


def test_replay_draws_half_of_a_batch_from_earlier_hours(base: Path) -> None:
    peer = Replay(base, 0)
    old, new = (plain_world(0).sample(task, 40, "a") for task in ("tool", "redact"))
    assert all(question in new for question in peer.batch(new, []))
    peer.remember(old)
    assert sum(question in old for question in peer.batch(new, [])) == 16


def test_ewc_pulls_only_once_a_task_has_ended_and_the_weights_have_moved(base: Path) -> None:
    peer = AvalancheEwc(base, 0)
    peer.remember(plain_world(0).sample("tool", 8, "a"))
    assert peer.penalty() == 0.0
    peer.end_task()
    assert peer.penalty() == 0.0
    for parameter in peer.adapter.parameters.values():
        parameter.data += 1.0
    assert peer.penalty() > 0.0


def test_olora_keeps_what_it_learned_and_begins_anew_beside_it(base: Path) -> None:
    peer = OLora(base, 0)
    batch = plain_world(0).sample("tool", 8, "a")
    for _ in range(3):
        peer.adapter.step(batch)
    before = peer.adapter.loss(batch).item()
    assert peer.penalty() == 0.0
    peer.end_task()
    assert peer.adapter.loss(batch).item() == pytest.approx(before, abs=1e-4)
    assert all((value == 0).all() for name, value in peer.adapter.parameters.items() if ".lora_B." in name)
    assert peer.penalty() > 0.0
