"""What a reviewer sees, wherever they sit: a page of candidates, and why it is empty."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from sona.attribution.preferences import Seen
from sona.candidate import Candidate, Change, Mattered, State
from sona.errors import StoreCorruptError


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate as it is shown: texts and figures, no token ids."""

    id: int
    """Its number."""
    trajectory_id: str
    at_ns: int
    """When the response was given, in nanoseconds since 1970."""
    entry: int
    source: str
    state: State
    divergence: float
    """Signed nats."""
    tokens: int
    response: str
    context_tail: str
    alternate: str | None
    """What the model answers without memories; null where it was not asked, or failed."""
    mattered: list[Mattered]
    """The memories that mattered, heaviest first."""
    changes: list[Change]
    """How it came into its state, oldest first."""

    @property
    def nats_a_token(self) -> float:
        """The divergence over the response's tokens."""
        return self.divergence / max(self.tokens, 1)


class Unconfirmed(msgspec.Struct, frozen=True, kw_only=True):
    """A request to train of which nobody knows whether the service took it."""

    request: str
    """Its id."""
    service: str
    """Who was asked."""
    ids: list[int]
    """The candidates."""
    refused: int
    """So often it was refused when it was sent again."""
    said: str
    """What the service said then; "" where it was not refused."""
    is_aside: bool
    """Whether sending does not ask for it again, so that a person has to say what came of it."""
    why: str = ""
    """... and why not."""

    def __str__(self) -> str:
        told = f"{', '.join(map(str, self.ids))} (to {self.service}"
        if self.refused:
            told += f", refused {self.refused} times: {self.said}"
        return f"{told})"


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to review."""

    candidates: list[Shown]
    """New ones above the threshold and approved ones, largest divergence first; then the newest rejected."""
    counts: dict[State, int]
    """How many there are in each state, below the threshold too."""
    threshold: float
    """Nats."""
    noise_floor: float | None
    """Nats up to which a divergence says nothing; null where none was measured on this store."""
    alternates: bool
    """Whether new candidates get an answer without memories."""
    seen: Seen
    """By background scoring, since the engine was opened last."""
    is_scoring: bool
    """Whether it runs in the process that answers."""
    activity: str
    """What is done in the background, in one line."""
    train_url: str
    """Where sent ones go; "" where nowhere is set."""
    unconfirmed: int = 0
    """Sent ones of which nobody knows whether the service took them; sending asks again, but for those set aside."""
    requests: list[Unconfirmed] = []
    """... by the requests that they went in."""

    @property
    def to_send_again(self) -> int:
        """Of the unconfirmed those that sending asks for again."""
        return sum(len(one.ids) for one in self.requests if not one.is_aside)


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """What a training service accepted."""

    ids: list[int]
    job: str
    """Its number for it; "" where it gave none. Several, with commas, where some were sent again."""


class Reviewer(Protocol):
    """The way to the candidates: in this process, in a store that nobody has open, or over HTTP. Calls block, and each
    that changes something is durable when it returns.
    """

    def page(self) -> Page:
        """What there is to review now."""

    def change(self, ids: Sequence[int], state: State, note: str = "") -> list[Shown]:
        """Bring all into a state, or none; StateChangeError, UnknownIdError."""

    def set_threshold(self, nats: float) -> float:
        """Keep a threshold; returns it within its bounds."""

    def set_alternates(self, wanted: bool) -> None:
        """Switch the alternates of what comes on or off."""

    def send(self) -> Sent:
        """Send all that is approved to the training service; SendError, ConfigError."""

    def confirm(self, ids: Sequence[int], *, trained: bool, note: str = "") -> list[Shown]:
        """Say what came of sent ones: trained, or given up and so approved again; StateChangeError, UnknownIdError."""

    def close(self) -> None:
        """Let go of what it holds."""


def shown(candidate: Candidate) -> Shown:
    """A candidate for a person."""
    return Shown(
        id=candidate.seq,
        trajectory_id=candidate.trajectory_id,
        at_ns=candidate.at_ns,
        entry=candidate.entry,
        source=candidate.source,
        state=candidate.state,
        divergence=candidate.divergence,
        tokens=candidate.tokens,
        response=candidate.response,
        context_tail=candidate.context_tail,
        alternate=candidate.alternate,
        mattered=list(candidate.mattered),
        changes=list(candidate.changes),
    )


def read_unconfirmed(
    read: Callable[[], Sequence[Unconfirmed]],
) -> tuple[Sequence[Unconfirmed] | None, str | None]:
    """What is not confirmed, or None and why it can't be read: all else that is told beside it is true all the same."""
    try:
        return read(), None
    except StoreCorruptError as error:
        return None, str(error)


def open_requests(requests: Sequence[Unconfirmed]) -> list[str]:
    """What was sent and is not confirmed, a line a request, for a person."""
    return [
        f"Sent, and not confirmed: {one}; "
        + (
            f"set aside, as {one.why or 'the service refused them'}; say what came of them (sona candidates confirm)."
            if one.is_aside
            else "sending to it asks again, as the same request."
        )
        for one in requests
    ]


def why_empty(page: Page) -> list[str]:
    """Why nothing is there to review, a line each, for a person."""
    seen, lines = page.seen, []
    if not page.is_scoring:
        lines.append("No scoring runs in this process; the figures are of the engine that was open last.")
    if not seen.turns and not seen.failed:
        lines.append("No turn was scored yet: record turns that mark their memories, with [candidates] watch = true.")
    lines.append(f"Responses seen: {seen.responses}, in {seen.turns} turns.")
    lines.append(f"Above the threshold of {page.threshold:.3g} nats: {seen.above}.")
    if seen.largest is None:
        lines.append("Largest divergence: none was measured.")
    else:
        lines.append(f"Largest divergence: {seen.largest:.4g} nats.")
    if below := page.counts.get("new", 0):
        lines.append(f"Candidates below the threshold: {below}; - lowers it tenfold.")
    for count, what in (
        (seen.known, "Candidates already, or trained on"),
        (seen.timeless, "Without a time, so that they can't be told apart"),
        (seen.dropped, "Turns that were not scored, as too many waited"),
        (seen.failed, "Turns that could not be scored"),
        (seen.failed_alternates, "Alternates that could not be written"),
    ):
        if count:
            lines.append(f"{what}: {count}.")
    lines.append(f"Last error: {seen.last_error or 'none'}")
    done: Mapping[State, int] = page.counts
    lines += open_requests(page.requests)
    lines.append(
        f"Sent: {done.get('sent', 0)}; trained: {done.get('trained', 0)}; rejected: {done.get('rejected', 0)}."
    )
    return lines
