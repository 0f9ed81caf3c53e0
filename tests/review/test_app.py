"""Each key of ``sona review``, by a pilot on a real store; and its screens, line by line."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from textual.pilot import Pilot

from sona.attribution.preferences import Preferences
from sona.candidate import State
from sona.config import CandidatesConfig, Config
from sona.review_view.app import ReviewApp
from sona.storage.store import Store
from tests.review.screen_text import GOLDEN, SIZE, app_on, filled, lines_of
from tests.reviews import candidate

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # textual's


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return filled(tmp_path / "store")


@asynccontextmanager
async def piloted(app: ReviewApp) -> AsyncIterator[Pilot[None]]:
    async with app.run_test(size=SIZE) as pilot:
        await settled(app, pilot)
        yield pilot


async def settled(app: ReviewApp, pilot: Pilot[None]) -> None:
    """All that keys asked for is done, and drawn."""
    await pilot.pause()
    await app._jobs.join()
    await pilot.pause()


async def press(app: ReviewApp, pilot: Pilot[None], *keys: str) -> None:
    await pilot.press(*keys)
    await settled(app, pilot)


def states(store: Path) -> dict[int, State]:
    with Store.open(store, read_only=True) as opened:
        return {seq: opened.candidates.get(seq).state for seq in range(1, 6)}


def shown(app: ReviewApp) -> int | None:
    one = app._current()
    return None if one is None else one.id


def is_golden(app: ReviewApp, name: str) -> None:
    """The screen is that of the golden file, line by line."""
    assert "\n".join(lines_of(app)) + "\n" == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


async def test_j_and_k_move(store: Path) -> None:
    app = app_on(store)
    async with piloted(app) as pilot:
        seen = [shown(app)]
        for key in ("j", "j", "j", "j", "k", "up", "down"):
            await press(app, pilot, key)
            seen.append(shown(app))
        assert seen == [3, 2, 1, 4, 4, 1, 2, 1], "heaviest first, the rejected one last, and no further"


async def test_a_approves_and_goes_on(store: Path) -> None:
    app = app_on(store)
    async with piloted(app) as pilot:
        await press(app, pilot, "a")
        assert (states(store)[3], shown(app)) == ("approved", 2)
        await press(app, pilot, "a", "a")
        assert [states(store)[seq] for seq in (1, 2, 3)] == ["approved"] * 3


async def test_r_rejects_and_u_takes_it_back(store: Path) -> None:
    app = app_on(store)
    async with piloted(app) as pilot:
        await press(app, pilot, "r")
        assert states(store)[3] == "rejected"
        await press(app, pilot, "j", "j", "j")
        chosen = shown(app)
        assert chosen in (3, 4)
        await press(app, pilot, "u")
        assert states(store)[chosen] == "new"


async def test_g_switches_alternates(store: Path) -> None:
    app = app_on(store)
    async with piloted(app) as pilot:
        for wanted in (True, False):
            await press(app, pilot, "g")
            with Store.open(store, read_only=True) as opened:
                assert Preferences(opened).alternates is wanted
            assert f"alternates {'on' if wanted else 'off'}" in "\n".join(lines_of(app))


async def test_plus_and_minus_move_the_threshold_tenfold_and_keep_it(store: Path) -> None:
    app = app_on(store)
    async with piloted(app) as pilot:
        await press(app, pilot, "minus", "minus", "minus")
        with Store.open(store, read_only=True) as opened:
            assert Preferences(opened).threshold == pytest.approx(2.5e-4)
        assert 5 in [one.id for one in app._shown()], "what was below it is shown now"
        await press(app, pilot, "plus", "plus", "plus", "plus")
        assert [one.id for one in app._shown()] == [3, 4]
    with Store.open(store, read_only=True) as opened:
        assert Preferences(opened).threshold == pytest.approx(2.5)


async def test_slash_filters_and_capital_a_approves_what_is_left(store: Path) -> None:
    app = app_on(store)
    async with piloted(app) as pilot:
        await press(app, pilot, "slash", *"source:bot", "enter")
        assert [one.id for one in app._shown()] == [1]
        await press(app, pilot, "A", "n")
        assert states(store)[1] == "new"
        await press(app, pilot, "A", "y")
        assert [states(store)[seq] for seq in (1, 2, 3)] == ["approved", "new", "new"]
        with Store.open(store, read_only=True) as opened:
            assert opened.candidates.get(1).changes[-1].note == "all of 'source:bot'"
        await press(app, pilot, "escape")
        assert len(app._shown()) == 4


async def test_a_wrong_filter_is_told_and_changes_nothing(store: Path) -> None:
    app = app_on(store)
    async with piloted(app) as pilot:
        await press(app, pilot, "slash", *"sauce:bot", "enter")
        assert "did you mean 'source'" in "\n".join(lines_of(app))
        assert len(app._shown()) == 4


async def test_keys_are_letters_while_a_filter_is_typed(store: Path) -> None:
    app = app_on(store)
    async with piloted(app) as pilot:
        await press(app, pilot, "slash", "a", "r", "q")
        assert states(store)[3] == "new"
        assert app.is_running


async def test_s_sends_what_is_approved_after_a_question(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []

    class Service:
        name = "a service"

        def train(self, samples: list[object], request_id: str) -> str:
            sent.append(len(samples))
            return "job-7"

    monkeypatch.setattr("sona.reviewing.HttpTrainingService", lambda url, secret: Service())
    app = app_on(store, Config(candidates=CandidatesConfig(train_url="http://127.0.0.1:9")))
    async with piloted(app) as pilot:
        await press(app, pilot, "s")
        assert "nothing is approved" in "\n".join(lines_of(app))
        await press(app, pilot, "a", "a", "s", "y")
        assert sent == [2]
        assert "2 sent, job job-7" in "\n".join(lines_of(app))
        assert [one.id for one in app._shown()] == [1, 4], "sent ones go"
    assert states(store)[3] == "sent"


async def test_an_error_is_told_and_the_screen_goes_on(store: Path) -> None:
    app = app_on(store)
    with Store.open(store):  # an engine, as it were
        async with piloted(app) as pilot:
            await press(app, pilot, "a")
            text = "\n".join(lines_of(app))
            assert "writes to the store" in text
            assert "sona review --store" in app.said
            assert states(store)[3] == "new"
            await press(app, pilot, "j")
            assert app.is_running


async def test_what_an_engine_beside_it_finds_comes_up_and_keeps_the_choice(store: Path) -> None:
    app = app_on(store)
    with Store.open(store) as engine:
        async with piloted(app) as pilot:
            await press(app, pilot, "j")
            assert shown(app) == 2
            engine.candidates.add([candidate(9)])
            app._look()
            await settled(app, pilot)
            assert [one.id for one in app._shown()] == [6, 3, 2, 1, 4]
            assert shown(app) == 2


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
async def test_leaving_loses_nothing_that_was_asked_for(store: Path, key: str) -> None:
    app = app_on(store)
    async with app.run_test(size=SIZE) as pilot:
        await settled(app, pilot)
        await pilot.press("a", "a", "a", key)
        await pilot.pause()
    assert not app.is_running
    assert [states(store)[seq] for seq in (1, 2, 3)] == ["approved"] * 3


def test_what_a_signal_left_undone_is_done_all_the_same(store: Path) -> None:
    app = app_on(store)
    app._jobs.put_nowait(lambda: app._reviewer.change([1], "approved"))
    app._jobs.put_nowait(lambda: app._reviewer.change([2], "rejected"))
    app.finish()
    assert [states(store)[seq] for seq in (1, 2)] == ["approved", "rejected"]


async def test_help_is_on_the_question_mark(store: Path) -> None:
    app = app_on(store)
    async with piloted(app) as pilot:
        await press(app, pilot, "question_mark")
        is_golden(app, "help")
        await press(app, pilot, "q")
        assert app.is_running
        assert len(app.screen_stack) == 1, "which closes the help alone"


async def test_the_full_screen(store: Path) -> None:
    app = app_on(store)
    async with piloted(app) as pilot:
        await press(app, pilot, "j")
        is_golden(app, "full")
        assert "\x1b" not in "".join(lines_of(app))


async def test_the_empty_screen_says_why(store: Path) -> None:
    with Store.open(store) as opened:
        Preferences(opened).set_threshold(25.0)
        opened.candidates.change([4], "new", by="ana")
    app = app_on(store)
    async with piloted(app):
        is_golden(app, "empty")


async def test_a_damaged_store_is_told_and_not_shown_as_empty(store: Path) -> None:
    app = app_on(store)
    async with piloted(app) as pilot:
        with Store.open(store) as opened:
            damage = "UPDATE candidates SET payload = x'80' WHERE seq = 2"
            opened._transact(lambda connection: connection.execute(damage))
        app._look()
        await settled(app, pilot)
        assert "candidate 2" in app.said
        assert "is damaged" in app.said
        assert "Nothing to review" not in "\n".join(lines_of(app))
