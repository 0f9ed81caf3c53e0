"""The commands that show the reasoning bank, as a person meets them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

import sona
from sona.bank.bank import Bank, BankState
from sona.bank.pattern import Member
from sona.config import BankConfig
from sona.patterns import PatternChange
from sona.storage.store import Store
from tests.bank_view.patterns import HOSTILE, lesson, pattern, rated
from tests.storage.learned import publish, spoil
from tests.storage.records import add
from tests.storage.records import rated as recorded
from tests.test_cli import command

ROUTES = {"tool:good": rated(20, 0.9), "tool:bad": rated(20, 0.1), "tool:rare": rated(1, 1.0)}
PATTERNS = (
    pattern("p1-0", count=30, prompt="where is my order", verdict=rated(4, 0.5), lessons=(lesson(),)),
    pattern("p1-1", at=1, count=80, prompt=f"{HOSTILE} [red]and a long question " + "on and " * 40, routes=ROUTES),
    pattern("p2-0", at=2, count=5, prompt="", family="orders", verdict=rated(0, 0.0)),
)
CHANGES = (
    PatternChange(cycle=1, change="born", pattern="p1-0", count=20),
    PatternChange(cycle=1, change="born", pattern="p1-1", count=70),
    PatternChange(cycle=2, change="split", pattern="p2-0", other="p1-0", count=3),
    PatternChange(cycle=2, change="merged", pattern="p1-5", other="p1-0", count=1),
    PatternChange(cycle=2, change="pruned", pattern="p1-6", count=1),
)


def bank_bytes() -> bytes:
    state = BankState(width=8, mean=np.zeros(8, "<f4").tobytes(), patterns=PATTERNS, changes=CHANGES, forgotten=7)
    return msgspec.msgpack.encode(state)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose version v1 holds no pattern, and v2, in force, :data:`PATTERNS`."""
    path = tmp_path_factory.mktemp("bank") / "store"
    with Store.open(path) as opened:
        add(opened, recorded(["t1"]))
        publish(opened)
        add(opened, recorded(["t2"]))
        publish(opened, {"bank.msgpack": bank_bytes()})
    return path


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_patterns_are_shown_the_heaviest_first(store: Path) -> None:
    shown = command("bank", "show", "--store", store).stdout
    assert shown.startswith("v2: 3 patterns from 122 trajectories\n")
    assert [line[0] for line in lines(shown) if line[0].startswith("p")] == ["pattern", "p1-1", "p1-0", "p2-0"]
    assert ["20", "0.90", "(0.74-0.97)", "best:", "tool:good"] in lines(shown)
    assert ["20", "0.10", "(0.03-0.26)", "worst:", "tool:bad"] in lines(shown)
    assert "tool:rare" not in shown
    (unrated,) = [line for line in lines(shown) if line[0] == "p2-0"]
    assert unrated[1:4] == ["5", "0", "-"]
    assert "orders" in shown


@pytest.mark.parametrize(("half_life", "first"), [(336.0, ["old", "new"]), (1.0, ["new", "old"])])
def test_weight_fades_by_the_half_life_that_it_was_learned_with(
    tmp_path: Path, half_life: float, first: list[str]
) -> None:
    """What was touched last is heavier than what is larger, where old trajectories count little."""
    old = msgspec.structs.replace(pattern("old", count=80), born_cycle=0, touched_cycle=0)
    new = msgspec.structs.replace(pattern("new", at=1, count=50), touched_cycle=1)
    mean = np.zeros(8, "<f4").tobytes()
    state = BankState(width=8, mean=mean, patterns=(old, new), cycle=1, half_life=half_life)
    with Store.open(tmp_path / "store") as opened:
        add(opened, recorded(["t1"]))
        publish(opened, {"bank.msgpack": msgspec.msgpack.encode(state)})
    told = json.loads(command("bank", "show", "--store", tmp_path / "store", "--json").stdout)
    assert [one["id"] for one in told["patterns"]] == first


def test_texts_reach_the_terminal_as_texts(store: Path) -> None:
    for words in (["show"], ["show", "p1-1"], ["log"]):
        shown = command("bank", *words, "--store", store).stdout
        assert not set("\x1b\x07\u202e") & set(shown)
    assert "[red]and a long" in command("bank", "show", "p1-1", "--store", store).stdout


def test_each_route_is_shown_when_asked_for(store: Path) -> None:
    shown = command("bank", "show", "--store", store, "--routes").stdout
    assert ["1", "1.00", "(0.27-1.00)", "tool:rare"] in lines(shown)
    assert "best" not in shown


def test_the_number_of_patterns_can_be_chosen(store: Path) -> None:
    assert "... and 2 more patterns" in command("bank", "show", "--store", store, "--most", 1).stdout
    told = json.loads(command("bank", "show", "--store", store, "--most", 1, "--json").stdout)
    assert [one["id"] for one in told["patterns"]] == ["p1-1"]
    assert "1 or more is allowed" in command("bank", "show", "--store", store, "--most", 0, code=2).stderr


def test_one_pattern_is_shown_whole(store: Path) -> None:
    shown = command("bank", "show", "p1-0", "--store", store).stdout
    for text in (
        "p1-0: 30 trajectories, 4 rated",
        "0.50 (0.18-0.82)",
        "born in 1, last grown in 2",
        "where is my order",
        "→ on its way",
        "do: Ask for the number; +0.20 (-0.21 to +0.61) against what is usual",
        "when an order is asked about",
        "Then look it up.",
        "from t1, t2",
        "cycle 2: p2-0 split from p1-0, with 3 trajectories",
        "cycle 2: p1-5 merged into p1-0, with 1 trajectory",
    ):
        assert text in shown
    assert "tool:bad" in command("bank", "show", "p1-1", "--store", store).stdout


def test_json_holds_what_is_measured_and_null_for_the_rest(store: Path) -> None:
    told = json.loads(command("bank", "show", "--store", store, "--json").stdout)
    assert (told["version"], told["learned"], told["strays"]) == ("v2", 122, 0)
    first, second, third = told["patterns"]
    assert first["routes"]["tool:good"]["quality_interval"] == pytest.approx([0.738, 0.966], abs=0.01)
    assert first["trend"] is None
    assert (second["lessons"][0]["helpful"], second["lessons"][0]["advice"]) == (3, "do")
    assert second["exemplars"][0]["prompt"] == "where is my order"
    assert (third["rated"], third["quality_mean"], third["quality_interval"]) == (0, None, None)
    assert "centroid" not in first
    one = json.loads(command("bank", "show", "p1-0", "--store", store, "--json").stdout)
    assert one["version"] == "v2"
    assert [line["change"] for line in one["history"]] == ["born", "split", "merged"]


def test_an_unknown_pattern_is_told_the_nearest(store: Path) -> None:
    assert "the nearest is 'p1-0'" in command("bank", "show", "p1", "--store", store, code=2).stderr
    assert "the nearest is 'p2-0'" in command("bank", "show", "p20", "--store", store, code=2).stderr
    gone = command("bank", "show", "p1-5", "--store", store, code=2).stderr
    assert "gone since cycle 2: p1-5 merged into p1-0" in gone
    assert "is not in v1; 'sona" in command("bank", "show", "p1", "--store", store, "--version", "v1", code=2).stderr


def test_any_version_can_be_looked_at(store: Path) -> None:
    for version in ("v0", "v1"):
        for words in (["show"], ["log"]):
            shown = command("bank", *words, "--store", store, "--version", version).stdout
            assert "yet: the first cycle makes" in shown
    assert "'sona versions list'" in command("bank", "show", "--store", store, "--version", "v9", code=2).stderr


def test_the_history_is_told_in_words(store: Path) -> None:
    shown = command("bank", "log", "--store", store).stdout
    assert ["1", "-", "p1-0", "born", "of", "20", "trajectories", "where", "is", "my", "order"] in lines(shown)
    assert "p1-6 pruned, with 1 trajectory: it had hardly any weight left" in shown
    newest = command("bank", "log", "--store", store, "--newest", 2).stdout
    assert "after 3 earlier changes" in newest
    assert "p1-0 born" not in newest
    one = command("bank", "log", "--store", store, "--pattern", "p1-5").stdout  # of one that is gone
    assert "p1-5 merged into p1-0" in one
    assert "born" not in one
    told = json.loads(command("bank", "log", "--store", store, "--json").stdout)
    assert told["changes"][0] == {"cycle": 1, "change": "born", "pattern": "p1-0", "other": "", "count": 20}
    assert "the nearest is" in command("bank", "log", "--store", store, "--pattern", "p9", code=2).stderr
    assert "1 or more is allowed" in command("bank", "log", "--store", store, "--newest", -1, code=2).stderr


def test_the_map_is_written(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page, png = tmp_path / "map.html", tmp_path / "map.png"
    shown = command("bank", "map", "--store", store, "--out", page, "--png", png).stdout
    assert f"{page}: 3 patterns" in shown
    assert "store, version v2: 3 patterns from 122 trajectories." in page.read_text()
    assert png.read_bytes().startswith(b"\x89PNG")
    before = page.read_bytes()
    command("bank", "map", "--store", store, "--out", page)
    assert page.read_bytes() == before
    command("bank", "map", "--store", store, "--out", page, "--version", "v1")
    assert "No patterns yet" in page.read_text()


def test_the_map_goes_nowhere_it_should_not(store: Path, tmp_path: Path) -> None:
    for target in (store / "map.html", store / "store.db"):
        assert "lies in the store" in command("bank", "map", "--store", store, "--out", target, code=2).stderr
    for target in (tmp_path, tmp_path / "none" / "map.html", Path()):
        assert "in a folder that exists" in command("bank", "map", "--store", store, "--out", target, code=2).stderr
    page = tmp_path / "map.html"
    assert "name another file" in command("bank", "map", "--store", store, "--out", page, "--png", page, code=2).stderr
    assert not page.exists()


def test_a_png_without_matplotlib_says_how_to_get_it(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sona.cli_bank import map_
    from sona.errors import InvalidInputError

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InvalidInputError, match="pip install"):
        map_(store=store, page=tmp_path / "map.html", png=tmp_path / "map.png")
    assert not (tmp_path / "map.html").exists()


def test_it_works_beside_a_running_agent(store: Path, tmp_path: Path) -> None:
    with sona.open_sync(store):
        assert "p1-1" in command("bank", "show", "--store", store).stdout
        assert "born" in command("bank", "log", "--store", store).stdout
        command("bank", "map", "--store", store, "--out", tmp_path / "map.html")


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    for words in (["show"], ["log"], ["map", "--out", tmp_path / "map.html"]):
        assert "no store" in command("bank", *words, "--store", tmp_path / "none", code=2).stderr
    assert not (tmp_path / "none").exists()


def test_a_damaged_bank_is_a_typed_error(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as opened:
        add(opened, recorded(["t1"]))
        version = publish(opened, {"bank.msgpack": bank_bytes()})
    spoil(tmp_path / "store" / "versions" / version.id / "bank.msgpack")
    assert "sona:" in command("bank", "show", "--store", tmp_path / "store", code=2).stderr


def test_status_shows_the_same_table(store: Path) -> None:
    shown = command("status", "--store", store).stdout
    assert "best: tool:good" in shown
    told = json.loads(command("status", "--store", store, "--json").stdout)
    assert [one["quality_mean"] for one in told["patterns"]] == [0.75, 0.5, None]


def test_a_bank_that_learned_is_shown(tmp_path: Path) -> None:
    """Not made by hand: two cycles of two kinds of queries."""
    rng, bank = np.random.default_rng(0), Bank()
    for cycle in (1, 2):
        centres = np.eye(16, dtype=np.float32)[[at % 2 for at in range(200)]] * 8
        members = [
            Member(
                f"{cycle}-{at}", row, (at % 2 + cycle - 1) / 2, f"query {at % 2}", "", ("tool:a", "tool:b")[at % 2 :]
            )
            for at, row in enumerate(centres + rng.normal(size=(200, 16)).astype(np.float32))
        ]
        bank = bank.learn(members, BankConfig(), cycle=cycle, seed=0).bank
    with Store.open(tmp_path / "store") as opened:
        add(opened, recorded(["t1"]))
        publish(opened, {"bank.msgpack": bank.to_bytes()})
    shown = command("bank", "show", "--store", tmp_path / "store").stdout
    assert f"{len(bank.patterns)} patterns from 400 trajectories" in shown
    assert "+0.19" in shown  # of the first cycle's hundred an eighth counts
    assert "born of" in command("bank", "log", "--store", tmp_path / "store").stdout
