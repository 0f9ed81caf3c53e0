"""Candidates in words for a terminal: foreign text without control characters, and never read as markup."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.text import Text

from sona.candidate import STATES
from sona.excerpt import excerpt, printable
from sona.reviewed import Page, Shown, why_empty

STYLES = {"new": "", "approved": "#8ae09a", "rejected": "#ff9b8f", "sent": "cyan", "trained": "cyan"}
MARKS = {"new": " ", "approved": "+", "rejected": "×", "sent": "→", "trained": "✓"}


def row_of(one: Shown, width: int) -> Text:
    """One line of the list."""
    text = Text(f"{MARKS[one.state]} {one.divergence:9.3f}  ", style=STYLES[one.state], no_wrap=True)
    return text.append(excerpt(one.response, max(width - 13, 8)) or "(empty)")


def detail_of(one: Shown) -> Text:
    """Everything about one candidate."""
    moment = datetime.fromtimestamp(one.at_ns / 1e9, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    text = Text()
    text.append(f"#{one.id}  {one.state}", style=f"bold {STYLES[one.state]}".strip())
    text.append(f"   {one.divergence:.4f} nats over {one.tokens} tokens ({one.nats_a_token:.4f} a token)\n")
    text.append(f"{printable(one.source)}   {printable(one.trajectory_id)}   entry {one.entry}   {moment}\n", "dim")
    _part(text, "Context, its end", one.context_tail or "(nothing was kept)")
    _part(text, "Answer", one.response or "(empty)")
    _part(text, "Alternate, without memories", "(none)" if one.alternate is None else one.alternate or "(empty)")
    weights = "\n".join(f"{each.nats:9.4f} nats  {each.key}" for each in one.mattered)
    _part(text, "Memories that mattered", weights or "(none by itself)")
    history = "\n".join(f"{each.state} by {each.by}{f': {each.note}' if each.note else ''}" for each in one.changes)
    _part(text, "History", history)
    return text


def _part(text: Text, name: str, content: str) -> None:
    text.append(f"\n{name}\n", style="bold")
    text.append(f"{printable(content)}\n")


def empty_of(page: Page, filter_text: str) -> Text:
    """Why nothing is shown."""
    text = Text()
    if page.candidates:
        text.append("Nothing fits the filter.\n", style="bold")
        return text.append(f"{printable(filter_text)}\n\nesc clears it.")
    text.append("Nothing to review.\n\n", style="bold")
    return text.append("\n".join(printable(line) for line in why_empty(page)))


def activity_of(page: Page) -> str:
    """The line at the bottom."""
    floor = "unmeasured" if page.noise_floor is None else f"{page.noise_floor:.3g}"
    aside = [str(id) for one in page.requests if one.is_aside for id in one.ids]
    lost = f"#{', #'.join(aside)} set aside: sona candidates confirm  |  " if aside else ""
    return printable(
        f"{lost}{page.activity}  |  threshold {page.threshold:.3g} nats (noise floor {floor})  |  "
        f"alternates {'on' if page.alternates else 'off'}"
    )


def counts_of(page: Page) -> str:
    """How many there are in each state."""
    return ", ".join(f"{page.counts.get(state, 0)} {state}" for state in STATES)
