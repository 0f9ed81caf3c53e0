"""What the bank sees of the trajectories: an embedding each, the quality, the routes, the beginning of the texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice

from sona.bank.pattern import Member
from sona.bank.revising import Revision
from sona.checks import Float32, Int32
from sona.errors import SonaError
from sona.loops.screen import question_tokens
from sona.memory_spans import question_of
from sona.ports import ServedModel, Stored
from sona.types import ROUTE_KEYS, Trajectory

MOST_ROUTES = 16
"""Of one trajectory: a loop that calls a tool under a hundred names has taken no route."""
LONGEST_ROUTE = 80
"""Characters. What is longer is no name but a text, such as a whole prompt."""

_ROUTE = re.compile(r"[A-Za-z][\w.-]*:(?!//)\S.*")  # kind:name, and no address


def members_of(rows: Sequence[Stored], model: ServedModel | None, width: int | None) -> list[Member]:
    """Those of ``rows`` that have an embedding of the bank's width, or get one."""
    return [
        Member(
            trajectory_id=row.trajectory.id,
            embedding=embedding,
            quality=row.quality,
            prompt=_question(row.trajectory),
            response=row.trajectory.response,
            routes=routes_of(row.trajectory),
            recalled=row.trajectory.recalled,
        )
        for row, embedding in zip(rows, embeddings_of(rows, model, width), strict=True)
        if embedding is not None
    ]


def revisions_of(rows: Sequence[Stored], members: Sequence[Member]) -> list[Revision]:
    """Those of ``members`` that the version in force has learned before they were rated anew, as their ``rows`` say."""
    learned = {row.trajectory.id: row for row in rows}
    return [
        Revision(member, row.learned_quality, pattern=row.learned_pattern, cycle=row.learned_cycle)
        for member in members
        if (row := learned[member.trajectory_id]).learned_quality is not None
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
        ids = question_tokens(row.trajectory, model)
    except SonaError:  # a template that refuses this conversation
        return None
    return ids if ids is not None and int(ids.max()) < model.vocab_size else None


def routes_of(trajectory: Trajectory) -> tuple[str, ...]:
    """The ways that it took, each once: what its metadata say under :data:`sona.types.ROUTE_KEYS`, then the names of
    its steps that have the form ``kind:name``, in their order. At most :data:`MOST_ROUTES`; names of more than
    :data:`LONGEST_ROUTE` characters or several lines are none.
    """
    told = [f"{key}:{trajectory.metadata[key].strip()}" for key in ROUTE_KEYS if key in trajectory.metadata]
    names = dict.fromkeys([*told, *(step.name.strip() for step in trajectory.steps)])
    return tuple(islice((name for name in names if _is_route(name)), MOST_ROUTES))


def _is_route(name: str) -> bool:
    return len(name) <= LONGEST_ROUTE and name.isprintable() and _ROUTE.fullmatch(name) is not None


def _question(trajectory: Trajectory) -> str:
    """The last thing that the user said."""
    return next((message.content for message in reversed(question_of(trajectory)) if message.role == "user"), "")
