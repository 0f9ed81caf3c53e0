"""``sona candidates``: the review in scripts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cyclopts
from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from sona.candidate import State
from sona.config import settings_of
from sona.errors import InvalidInputError
from sona.excerpt import excerpt
from sona.review import TokenFile, Url, open_reviewer
from sona.review_filter import parse_filter
from sona.reviewed import Page, Shown, open_requests, why_empty
from sona.terminal import AsJson, ConfigPath, StorePath, as_json, number, out, plain, say, when

if TYPE_CHECKING:
    from sona.review_view.of_store import StoreReviewer
    from sona.review_view.over_http import HttpReviewer

WIDE = 100
"""Columns of a terminal in which the moment of a candidate has room."""
candidates = cyclopts.App(
    name="candidates", help="Answers that depend on memory: list, approve, reject, show, confirm."
)

Filtered = Annotated[
    str,
    Parameter(name="--filter", help="Such as 'source:agent memory:k1 state:new nats>2.5 word'; all of it has to fit."),
]
All = Annotated[
    bool, Parameter(name="--all", negative="", help="All new ones, where no number and no filter is given.")
]
Trained = Annotated[
    bool | None,
    Parameter(
        name="--trained",
        negative="--given-up",
        help="They are in the weights; --given-up: the service gave them up, or never had them: approved again.",
    ),
]
Note = Annotated[str, Parameter(name="--note", help="Kept with the change.")]


@candidates.command(name="list")
def list_(
    store: StorePath,
    *,
    filter: Filtered = "",
    url: Url = None,
    token_file: TokenFile = None,
    config: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """New candidates above the threshold and approved ones, largest divergence first; then the newest rejected."""
    wanted = parse_filter(filter)
    with _reviewer(store, url, token_file, config) as reviewer:
        page = reviewer.page()
    found = wanted.of(page.candidates)
    if json:
        told = {"candidates": found, "counts": page.counts, "threshold": page.threshold, "seen": page.seen}
        print(as_json({**told, "unconfirmed": page.requests}))
        return
    _print_list(page, found)
    if found or page.candidates:  # where there is nothing, why says it
        for line in open_requests(page.requests):
            out.print(plain(line), highlight=False, soft_wrap=True)


@candidates.command
def approve(
    *ids: Annotated[int, Parameter(help="Numbers of candidates, as list shows them.")],
    store: StorePath,
    filter: Filtered = "",
    everything: All = False,
    note: Note = "",
    url: Url = None,
    token_file: TokenFile = None,
    config: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """Let candidates be trained on: those of these numbers, or all new ones that a filter leaves."""
    with _reviewer(store, url, token_file, config) as reviewer:
        _change(reviewer, ids, filter, everything, "approved", note, json)


@candidates.command
def reject(
    *ids: Annotated[int, Parameter(help="Numbers of candidates, as list shows them.")],
    store: StorePath,
    filter: Filtered = "",
    everything: All = False,
    note: Note = "",
    url: Url = None,
    token_file: TokenFile = None,
    config: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """Turn candidates down: those of these numbers, or all new ones that a filter leaves."""
    with _reviewer(store, url, token_file, config) as reviewer:
        _change(reviewer, ids, filter, everything, "rejected", note, json)


@candidates.command
def confirm(
    *ids: Annotated[int, Parameter(help="Numbers of candidates that were sent, as list shows them.")],
    trained: Trained = None,
    store: StorePath,
    note: Note = "",
    url: Url = None,
    token_file: TokenFile = None,
    config: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """Say what came of sent answers, where the training service did not: --trained, or --given-up."""
    if not ids:
        raise InvalidInputError("give the numbers of candidates that were sent; 'sona candidates list' shows them")
    if trained is None:
        raise InvalidInputError("say what came of them: --trained, or --given-up")
    with _reviewer(store, url, token_file, config) as reviewer:
        changed = reviewer.confirm(ids, trained=trained, note=note)
    _print_changed(changed, "trained" if trained else "approved", json)


@candidates.command
def show(
    id: Annotated[int, Parameter(help="Number of a candidate.")],
    /,
    *,
    store: StorePath,
    url: Url = None,
    token_file: TokenFile = None,
    config: ConfigPath = None,
    json: AsJson = False,
) -> None:
    """One candidate, whatever its state: context, answer, alternate, memories, history."""
    with _reviewer(store, url, token_file, config) as reviewer:
        one = reviewer.get(id)
    if json:
        print(as_json(one))
        return
    from sona.review_view.words import detail_of

    say(detail_of(one))


@contextmanager
def _reviewer(
    store: Path, url: str | None, token_file: Path | None, config: Path | None
) -> Iterator[StoreReviewer | HttpReviewer]:
    with closing(open_reviewer(store, url, token_file, settings_of(config))) as reviewer:
        yield reviewer


def _change(
    reviewer: StoreReviewer | HttpReviewer,
    ids: tuple[int, ...],
    filter_text: str,
    everything: bool,
    state: State,
    note: str,
    json: bool,
) -> None:
    if sum((bool(ids), bool(filter_text), everything)) != 1:
        raise InvalidInputError("give numbers, or --filter, or --all: one of the three is allowed")
    if not ids:
        wanted = parse_filter(filter_text)
        named = wanted.state is not None
        found = wanted.of(reviewer.page().candidates)
        ids = tuple(one.id for one in found if named or one.state == "new")
    changed = reviewer.change(ids, state, note) if ids else []
    _print_changed(changed, state, json)


def _print_changed(changed: list[Shown], state: State, json: bool) -> None:
    if json:
        print(as_json({"changed": [one.id for one in changed], "state": state}))
        return
    out.print(f"{number(len(changed), 'candidate is', 'candidates are')} {state}", highlight=False)


def _print_list(page: Page, found: list[Shown]) -> None:
    if not found:
        for line in ["Nothing fits the filter."] if page.candidates else why_empty(page):
            say(plain(line))
        return
    out.print(_table(found, out.width))


def _table(found: list[Shown], width: int) -> Table:
    """A line each; on a narrow terminal without the moment."""
    with_when = width >= WIDE
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("number", "state", "nats", *(["when"] if with_when else []), "source"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("number", "nats") else "left")
    for name in ("answer", "memories"):
        table.add_column(name, overflow="ellipsis")  # not no_wrap: these two give way
    for one in found:
        memories = ", ".join(each.key for each in one.mattered[:3])
        moment = [when(one.at_ns)] if with_when else []
        cells = (one.state, f"{one.divergence:.3f}", *moment, excerpt(one.source, 16))
        texts = (Text(excerpt(text, 80), no_wrap=True) for text in (one.response, memories))
        table.add_row(str(one.id), *map(plain, cells), *texts)
    return table
