"""The screen of ``sona review``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Footer, Input, OptionList, Static
from textual.widgets.option_list import Option

from sona.candidate import State
from sona.errors import InvalidInputError, SonaError
from sona.excerpt import printable
from sona.review_filter import Filter, parse_filter
from sona.review_view.dialogs import Confirm, Help
from sona.review_view.words import activity_of, counts_of, detail_of, empty_of, row_of
from sona.reviewed import Page, Reviewer, Shown

REFRESH_S = 2.0
"""So often the page is looked at anew."""
LIST_WIDTH = 44


class ReviewApp(App[None]):
    """Candidates on the left, the chosen one on the right, what goes on below.

    What a key asks for is done in a thread, one after the other; leaving waits until all that was asked for is durable.
    """

    TITLE = "sona review"
    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = ""  # the keys are the app's, until a filter is typed
    CSS = f"""
    #title {{ height: 1; background: $panel; padding: 0 1; }}
    #list {{ width: {LIST_WIDTH}; border: none; border-right: solid $panel; padding: 0; }}
    #detail {{ padding: 0 1; }}
    #filter {{ display: none; border: none; height: 1; padding: 0 1; }}
    #filter.open {{ display: block; }}
    #activity, #said {{ height: 1; padding: 0 1; }}
    #said {{ color: $error; }}
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark", "help", "help", key_display="?"),
        Binding("q", "leave", "quit"),
        Binding("j,down", "move(1)", "next"),
        Binding("k,up", "move(-1)", "back"),
        Binding("a", "change('approved')", "approve"),
        Binding("r", "change('rejected')", "reject"),
        Binding("u", "change('new')", "undo"),
        Binding("A", "approve_all", "all"),
        Binding("slash", "filter", "filter", key_display="/"),
        Binding("g", "alternates", "alternates"),
        Binding("s", "send", "send"),
        Binding("plus,equals_sign", "threshold(1)", "×10", key_display="+"),
        Binding("minus", "threshold(-1)", "÷10", key_display="-"),
        Binding("ctrl+c,ctrl+q", "leave", show=False, priority=True),
        Binding("escape", "clear", show=False),
    ]

    def __init__(self, reviewer: Reviewer, name: str, *, refresh_s: float = REFRESH_S) -> None:
        """``name`` says whose candidates they are."""
        super().__init__()
        self._reviewer, self._whose, self._refresh_s = reviewer, name, refresh_s
        self._latest: Page | None = None
        self._wanted, self._wanted_text = Filter(), ""
        self._chosen: int | None = None
        self.said = ""
        """What was told last: an error, or what was done."""
        self._jobs: asyncio.Queue[Callable[[], object]] = asyncio.Queue()

    # ------------------------------------------------------------------------------------------ what is seen

    def compose(self) -> ComposeResult:
        """The widgets, from top to bottom."""
        yield Static(Text(f"sona review: {printable(self._whose)}"), id="title")
        with Horizontal():
            yield OptionList(id="list")
            with VerticalScroll(id="detail"):
                yield Static(id="text")
        yield Input(placeholder="source:agent memory:key nats>2 state:new words", id="filter", disabled=True)
        yield Static(id="said")
        yield Static(id="activity")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Begin to work, and to look at the page."""
        self.query_one("#list", OptionList).can_focus = False
        self.query_one("#detail", VerticalScroll).can_focus = False
        self.run_worker(self._do_work(), exit_on_error=True)
        self._look()
        self.set_interval(self._refresh_s, self._look_when_idle)

    def _look(self) -> None:
        self._jobs.put_nowait(lambda: None)

    def _look_when_idle(self) -> None:
        if self._jobs.empty():
            self._look()

    async def _do_work(self) -> None:
        while True:
            work = await self._jobs.get()
            try:
                said = await asyncio.to_thread(self._done, work)
                if said is not None:
                    self._say(said)
                self._draw()
            finally:
                self._jobs.task_done()

    def _done(self, work: Callable[[], object]) -> str | None:
        """What is to be said of it: an error, or a text that it gave; then the page is looked at anew."""
        said = None
        try:
            found = work()
            said = found if isinstance(found, str) else None
        except SonaError as error:
            said = str(error)
        try:
            self._latest = self._reviewer.page()
        except SonaError as error:
            said = str(error)
        return said

    def _say(self, text: str) -> None:
        self.said = printable(text).replace("\n", " ")
        self.query_one("#said", Static).update(Text(self.said))

    def _shown(self) -> list[Shown]:
        return [] if self._latest is None else self._wanted.of(self._latest.candidates)

    def _current(self) -> Shown | None:
        return next((one for one in self._shown() if one.id == self._chosen), None)

    def _draw(self) -> None:
        if self._latest is None:
            return
        rows = self._shown()
        place = next((place for place, one in enumerate(rows) if one.id == self._chosen), None)
        listed = self.query_one("#list", OptionList)
        if place is None and rows:  # what was chosen has gone: the one in its place
            place = min(listed.highlighted or 0, len(rows) - 1)
        self._chosen = None if place is None else rows[place].id
        listed.clear_options()
        listed.add_options([Option(row_of(one, LIST_WIDTH - 2)) for one in rows])
        listed.highlighted = place
        title = f"sona review: {self._whose}  |  {counts_of(self._latest)}"
        self.query_one("#title", Static).update(Text(printable(title)))
        self.query_one("#activity", Static).update(Text(activity_of(self._latest)))
        self._draw_detail()

    def _draw_detail(self) -> None:
        assert self._latest is not None
        one = self._current()
        text = empty_of(self._latest, self._wanted_text) if one is None else detail_of(one)
        self.query_one("#text", Static).update(text)

    # ------------------------------------------------------------------------------------------ what keys do

    def action_move(self, by: int) -> None:
        """To the next candidate, or the one before."""
        rows, listed = self._shown(), self.query_one("#list", OptionList)
        if rows:
            place = min(max((listed.highlighted or 0) + by, 0), len(rows) - 1)
            listed.highlighted, self._chosen = place, rows[place].id
            self.query_one("#detail", VerticalScroll).scroll_home(animate=False)
            self._draw_detail()

    def action_change(self, state: State) -> None:
        """Approve, reject, or take that back."""
        if (one := self._current()) is not None:
            self._clear_said()
            self._jobs.put_nowait(lambda: self._reviewer.change([one.id], state))
            if state != "new":
                self.action_move(1)

    def action_approve_all(self) -> None:
        """Approve all new ones that the filter leaves, after a question."""
        ids = [one.id for one in self._shown() if one.state == "new"]
        if not ids:
            self._say("no new candidate is shown, so there is none to approve")
            return

        def answered(sure: bool | None) -> None:
            if sure:
                self._jobs.put_nowait(lambda: self._reviewer.change(ids, "approved", f"all of {self._wanted_text!r}"))

        self.push_screen(Confirm(f"Approve {len(ids)} candidates?"), answered)

    def action_threshold(self, tenfold: int) -> None:
        """Ten times, or a tenth of, the threshold, and keep it."""
        self._clear_said()

        def work() -> None:
            before = 0.0 if self._latest is None else self._latest.threshold
            self._reviewer.set_threshold((before or 1e-3) * 10.0**tenfold)

        self._jobs.put_nowait(work)

    def action_alternates(self) -> None:
        """Switch alternates on or off."""
        self._clear_said()
        self._jobs.put_nowait(lambda: self._reviewer.set_alternates(not (self._latest and self._latest.alternates)))

    def action_send(self) -> None:
        """Send what is approved to the training service, after a question."""
        count = 0 if self._latest is None else self._latest.counts.get("approved", 0)
        again = 0 if self._latest is None else self._latest.to_send_again
        if not count and not again:
            self._say("nothing is approved, so there is nothing to send")
            return

        def work() -> str:
            sent = self._reviewer.send()
            return f"{len(sent.ids)} sent{f', job {sent.job}' if sent.job else ''}"

        def answered(sure: bool | None) -> None:
            if sure:
                self._clear_said()
                self._jobs.put_nowait(work)

        too = f", and {again} that are not confirmed again" if again else ""
        self.push_screen(Confirm(f"Send {count} approved candidates{too}?"), answered)

    def action_filter(self) -> None:
        """Type a filter; enter applies it."""
        field = self.query_one("#filter", Input)
        field.disabled = False
        field.add_class("open")
        field.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Apply the filter."""
        try:
            self._wanted, self._wanted_text = parse_filter(event.value), event.value
        except InvalidInputError as error:
            self._say(str(error))
            return
        self._clear_said()
        self._close_filter()
        self._draw()

    def action_clear(self) -> None:
        """Away with the filter, and with what was said."""
        self.query_one("#filter", Input).value = ""
        self._wanted, self._wanted_text = Filter(), ""
        self._clear_said()
        self._close_filter()
        self._draw()

    def _close_filter(self) -> None:
        field = self.query_one("#filter", Input)
        field.remove_class("open")
        field.disabled = True
        self.set_focus(None)

    def _clear_said(self) -> None:
        self._say("")

    def action_help(self) -> None:
        """What the keys do."""
        self.push_screen(Help())

    def finish(self) -> None:
        """Do what was asked for and not begun when the screen was ended from outside, as by a signal."""
        while not self._jobs.empty():
            self._jobs.get_nowait()()

    async def action_leave(self) -> None:
        """Leave, once all that was asked for is durable."""
        await self._jobs.join()
        self.exit()
