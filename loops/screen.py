"""First step of a cycle: what can be trained on, as token ids, and why the rest can't."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sona.checks import Int32
from sona.config import TrainConfig
from sona.errors import SonaError
from sona.memory_spans import question_of
from sona.ports import ServedModel, Stored
from sona.types import Trajectory


class Ready(NamedTuple):
    """A trajectory that can be trained on."""

    stored: Stored
    prompt: Int32
    """(tokens,)"""
    response: Int32
    """(tokens,), with its end token if it was told one."""
    question: Int32
    """(tokens,), what the bank and a router read: the prompt without its memories."""
    is_approved: bool = False
    """Whether it is an approved candidate, not a trajectory: its ``stored`` is made up, and its seq is minus the
    candidate's (:mod:`sona.loops.approved`)."""


class LeftOut(NamedTuple):
    """A trajectory that can't be trained on."""

    stored: Stored
    reason: str


class Screened(NamedTuple):
    """Every trajectory of the cycle is in one of the first two."""

    ready: list[Ready]
    left_out: list[LeftOut]
    turned_down: list[Ready]
    """Those of ``left_out`` that were left out for their quality alone: answers to make less likely."""

    def without_ready(self, reason: str) -> Screened:
        """All of them left out, those that are ready for ``reason``."""
        return Screened([], [*self.left_out, *(LeftOut(item.stored, reason) for item in self.ready)], [])


def screen(rows: Sequence[Stored], model: ServedModel | None, settings: TrainConfig) -> Screened:
    """Sort ``rows`` into what can be trained on and what can't."""
    screened = Screened([], [], [])
    for stored in rows:
        made = ready(stored, model, settings)
        if isinstance(made, str):
            screened.left_out.append(LeftOut(stored, made))
        elif stored.quality is not None and stored.quality >= settings.min_quality:
            screened.ready.append(made)
        else:
            screened.left_out.append(LeftOut(stored, f"quality below {settings.min_quality:g}"))
            screened.turned_down.append(made)
    return screened


def ready(  # noqa: PLR0911 - one for each reason
    stored: Stored, model: ServedModel | None, settings: TrainConfig
) -> Ready | str:
    """The trajectory as token ids, whatever its quality, or the reason why not."""
    trajectory = stored.trajectory
    if model is None:
        return "no model to train"
    if trajectory.outcome != "completed":
        return f"outcome {trajectory.outcome}"
    try:
        prompt, response = prompt_tokens(trajectory, model), response_tokens(trajectory, model)
        question = question_tokens(trajectory, model)
    except SonaError:  # such as a template that refuses the conversation: a fault of this row, not of the cycle
        return "not accepted by the chat template"
    if prompt is None or response is None or question is None:
        return "no text"
    if len(prompt) + len(response) > min(settings.max_tokens, model.max_tokens):
        return f"longer than {min(settings.max_tokens, model.max_tokens)} tokens"
    if max(prompt.max(), response.max()) >= model.vocab_size:
        return "token ids outside the vocabulary"
    return Ready(stored, prompt, response, question)


def prompt_tokens(trajectory: Trajectory, model: ServedModel) -> Int32 | None:
    """Its own prompt ids, or those of its messages; None where it has neither."""
    if (ids := trajectory.prompt_array()) is not None:
        return ids
    return model.encode_prompt(trajectory.messages) if trajectory.messages else None


def question_tokens(trajectory: Trajectory, model: ServedModel) -> Int32 | None:
    """What says which kind of query it is: its prompt, or where memories are marked in its messages these without
    them; None where it has neither.
    """
    question = question_of(trajectory)
    return prompt_tokens(trajectory, model) if question == trajectory.messages else model.encode_prompt(question)


def response_tokens(trajectory: Trajectory, model: ServedModel) -> Int32 | None:
    """Its own response ids, or those of its text; None where it has neither."""
    if (ids := trajectory.response_array()) is not None:
        return ids
    return model.encode_response(trajectory.response) if trajectory.response.strip() else None
