"""What lies over the screen of ``sona review``: the help, and a question."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen
from textual.widgets import Static

KEYS = """\
j, k       next, previous candidate
a          approve: it may be trained on
r          reject; the ten newest stay to be looked at
u          undo: new again
A          approve all new ones that the filter leaves
/          filter: source:agent memory:key state:new nats>2 words
esc        clear the filter
g          alternates on or off: the answer without memories
s          send all that is approved to the training service
+, -       threshold times ten, or a tenth; it is kept
?          this help
q          quit; all that was asked for is kept

+ approved   × rejected   the number: nats that the memories are worth

An approved answer goes into the next cycle, or where s sends it: into
one of the two, and once."""


class Help(ModalScreen[None]):
    """What the keys do; any of a few closes it."""

    CSS = "Help { align: center middle; } #help { width: 76; height: auto; border: round $accent; padding: 1 2; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark,escape,q,enter,ctrl+c", "dismiss", "close", priority=True)
    ]

    def compose(self) -> ComposeResult:
        """The keys."""
        yield Static(Text(KEYS), id="help")


class Confirm(ModalScreen[bool]):
    """A question; y is yes, everything else that closes it is no."""

    CSS = "Confirm { align: center middle; } #ask { width: auto; height: auto; border: round $warning; padding: 1 2; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "yes"),
        Binding("n,escape,q,ctrl+c", "answer(False)", "no", priority=True),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        """The question."""
        yield Static(Text(f"{self._question}\n\ny: yes   n: no"), id="ask")

    def action_answer(self, sure: bool) -> None:
        """Close it with an answer."""
        self.dismiss(sure)
