"""What is learned: a model, batches of questions without end, and questions that are kept for the exam."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from sona.tiny import AGENT_TASKS, SKILLS, AgentWorld, model_path, sample
from sona.tiny.conversation import Batch, batches, encode_example
from sona.tiny.model import new_model
from sona.tiny.training import TrainingSettings, questions, weighted_loss

BATCH = 16
EXAM = 256  # questions


class Course(NamedTuple):
    """A model and what it is to learn."""

    model: PreTrainedModel
    batches: Iterator[Batch]
    exam: Sequence[Batch]


def skills(seed: int) -> Course:
    """The shipped model's shape, from nothing, on the text that the shipped one was made from."""
    tokenizer = _tokenizer()
    examples = [one for skill in SKILLS for one in sample(skill, EXAM // len(SKILLS), seed, "held_out")]
    exam = batches((encode_example(tokenizer, one) for one in examples), EXAM)
    return Course(_model(seed), questions(tokenizer, TrainingSettings(seed=seed, batch_size=BATCH)), exam)


def agent(seed: int) -> Course:
    """The shipped model on an agent's three tasks, which it can't do: what training in use is like."""
    tokenizer, world = _tokenizer(), AgentWorld(seed)
    examples = [one for task in AGENT_TASKS for one in world.sample(task, EXAM // len(AGENT_TASKS), seed, "held_out")]
    exam = batches((encode_example(tokenizer, one) for one in examples), EXAM)
    return Course(shipped(), _traffic(tokenizer, world, seed), exam)


COURSES: dict[str, Callable[[int], Course]] = {"skills": skills, "agent": agent}


def shipped() -> PreTrainedModel:
    """The shipped model, in evaluation mode: it has no dropout."""
    model = _model(0)
    model.load_state_dict(load_file(Path(model_path()) / "model.safetensors"), strict=False)  # the head is tied
    return model


@torch.inference_mode()
def exam_loss(model: PreTrainedModel, exam: Sequence[Batch]) -> float:
    """Mean weighted cross-entropy on what was kept, in nats."""
    losses = [weighted_loss(model(input_ids=batch.ids, use_cache=False).logits.float(), batch) for batch in exam]
    return float(torch.stack(losses).mean())


def _traffic(tokenizer: Tokenizer, world: AgentWorld, seed: int) -> Iterator[Batch]:
    rng = Random(f"traffic/{seed}")
    pool = [encode_example(tokenizer, one) for task in AGENT_TASKS for one in world.sample(task, 400, seed)]
    while True:
        yield batches(rng.sample(pool, BATCH), BATCH)[0]


def _tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(Path(model_path()) / "tokenizer.json"))


def _model(seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_model(_tokenizer().get_vocab_size())
    model.train(False)
    return model
