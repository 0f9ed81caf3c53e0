"""What the bank sees of the trajectories: an embedding each, the quality, the beginning of the texts."""

from __future__ import annotations

from collections.abc import Sequence

from sona.bank.pattern import Member
from sona.checks import Float32, Int32
from sona.errors import SonaError
from sona.loops.screen import prompt_tokens
from sona.ports import ServedModel, Stored
from sona.types import Trajectory


def members_of(rows: Sequence[Stored], model: ServedModel | None, width: int | None) -> list[Member]:
    """Those of ``rows`` that have an embedding of the bank's width, or get one."""
    return [
        Member(row.trajectory.id, embedding, row.quality, _question(row.trajectory), row.trajectory.response)
        for row, embedding in zip(rows, embeddings_of(rows, model, width), strict=True)
        if embedding is not None
    ]


def embeddings_of(rows: Sequence[Stored], model: ServedModel | None, width: int | None) -> list[Float32 | None]:
    """Each row's own embedding, or the model's of its prompt where both have one width; None where there is neither.

    Args:
        rows: trajectories of the store.
        model: embeds prompts as (hidden_size,) float32.
        width: of the bank's embeddings; None before the first cycle, when the first row that brings one decides.
    """
    found: list[Float32 | None] = [row.trajectory.vector() for row in rows]
    if width is None:
        width = next((len(vector) for vector in found if vector is not None), None)
    found = [vector if vector is not None and len(vector) == (width or len(vector)) else None for vector in found]
    if model is None or width not in (None, model.hidden_size):
        return found
    prompts = {
        place: ids
        for place, vector in enumerate(found)
        if vector is None and (ids := _prompt(rows[place], model)) is not None
    }
    for place, vector in zip(prompts, model.embed(list(prompts.values())), strict=True):
        found[place] = vector
    return found


def _prompt(row: Stored, model: ServedModel) -> Int32 | None:
    try:
        ids = prompt_tokens(row.trajectory, model)
    except SonaError:  # a template that refuses this conversation
        return None
    return ids if ids is not None and int(ids.max()) < model.vocab_size else None


def _question(trajectory: Trajectory) -> str:
    """The last thing that the user said."""
    return next((message.content for message in reversed(trajectory.messages) if message.role == "user"), "")
