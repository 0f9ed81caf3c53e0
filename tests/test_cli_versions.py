"""The commands about versions, as a person meets them."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

import sona
from sona.bank.skills import Skill, SkillSet
from sona.comparison import compare
from sona.errors import StoreCorruptError, UnknownIdError
from sona.history import read_history
from sona.patterns import PatternChange
from sona.storage.store import Store
from sona.storage.versions import Versions
from sona.types import GateCheck, GateDecision
from sona.version_table import comparison_details, version_details, version_table
from tests.bank_view.patterns import pattern
from tests.storage.learned import spoil
from tests.storage.records import add, rated
from tests.test_cli import command
from tests.versions import bank, layers, publish_version

GATE = GateDecision(
    passed=True,
    checks=(
        GateCheck(name="held-out questions", value=24, bound=8, passed=True, detail="enough"),
        GateCheck(name="gain", value=0.25, bound=0.0, passed=True, detail="in the [red]probability[/] of a token"),
    ),
)
CHANGES = (
    PatternChange(cycle=1, change="born", pattern="p1-0", count=20),
    PatternChange(cycle=2, change="merged", pattern="p1-1", other="p1-0", count=3),
)


def skill(name: str, count: int) -> Skill:
    return Skill(id=name, adapter=name, born_cycle=1, touched_cycle=1, count=count)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """v1 to v4, one from the other."""
    path = tmp_path / "store"
    with Store.open(path) as opened:
        add(opened, rated("abc"))
        publish_version(
            opened,
            adapters={"s1": layers(1)},
            skills=SkillSet((skill("s1", 2),)),
            held=bank([pattern("p1-0"), pattern("p1-1", at=1)], CHANGES[:1]),
            metrics={"new_exact_before": 0.125, "new_exact_after": 1.0, "tokens": 74662.0},
            settings={"train": {"batch_size": 32}},
            gate=GATE,
        )
        add(opened, rated("de"))
        publish_version(
            opened,
            adapters={"s1": layers(5), "s2": layers(2)},
            skills=SkillSet((skill("s1", 2), skill("s2", 1))),
            held=bank([pattern("p1-0")], CHANGES),
            metrics={"tokens": 36948.0, "loss_last": 0.0001697567},
            settings={"train": {"batch_size": 16}},
        )
        for _ in range(2):
            publish_version(opened)
    return path


def shown(renderable: RenderableType, width: int) -> list[str]:
    """Its lines on a terminal of so many columns, without what fills them up."""
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def words(lines: list[str]) -> list[list[str]]:
    return [line.split() for line in lines]


def ids(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "versions").iterdir())


@pytest.mark.parametrize("width", [80, 140])
def test_the_list_tells_each_version_on_one_line(store: Path, width: int) -> None:
    with Store.open(store) as opened:
        opened.pin("v1")
        opened.set_current("v3")
        shutil.rmtree(Versions(store).path("v2"))
        lines = shown(version_table(read_history(opened), width), width)
    assert len(lines) == 6
    assert max(map(len, lines)) <= width
    head, base, first, second, third, _ = words(lines)
    assert head[:3] == ["version", "parent", "cycle" if width == 140 else "made"]
    assert base[0] == "v0"
    assert {"v1", "v0", "pinned", "12", "→", "100%"} <= set(first)
    assert (second[-3:-1] if width == 140 else second[-2:]) == ["no", "files"]
    assert third[:3] == ["*", "v3", "v2"]
    assert ("digest" in head) == (width == 140)


def test_the_list_as_json_has_all_that_is_known(store: Path) -> None:
    told = json.loads(command("versions", "list", "--store", store, "--json").stdout)
    assert told["current"] == "v4"
    one = told["versions"][1]
    assert (one["id"], one["parents"], one["children"], one["in_force"]) == ("v1", ["v0"], ["v2"], False)
    assert (one["pinned_ns"], one["has_files"], one["trajectories"]) == (None, True, 2)
    assert one["gate"]["checks"][1]["value"] == 0.25
    assert one["settings_changed"] == [{"name": "train.batch_size", "before": 16, "now": 32}]
    assert one["size_bytes"] >= one["own_bytes"] > 0
    assert len(one["digest"]) == 64
    newest = json.loads(command("versions", "list", "--store", store, "--newest", 2, "--json").stdout)
    assert [one["id"] for one in newest["versions"]] == ["v3", "v4"]


def test_the_list_is_shortened_but_for_what_is_pinned_or_in_force(store: Path) -> None:
    with Store.open(store) as opened:
        opened.pin("v2")
        opened.set_current("v1")
    lines = command("versions", "list", "--store", store, "--newest", 1).stdout.splitlines()
    assert lines[0] == "without 2 older versions (--newest)"
    assert [line.split()[0] for line in lines[2:]] == ["*", "v2", "v4"]
    assert "1 or more" in command("versions", "list", "--store", store, "--newest", 0, code=2).stderr


@pytest.mark.parametrize("width", [80, 140])
def test_one_version_is_shown_with_its_evidence(store: Path, width: int) -> None:
    with Store.open(store) as opened:
        opened.pin("v1")
        entries = read_history(opened)
    lines = shown(version_details(entries[1], entries[0], {"s1": 2}), width)
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    assert lines[0].startswith("v1: pinned since ")
    assert "by cycle 1 from v0" in lines[1]
    assert lines[3] == f"digest {entries[1].digest}"
    assert "3 trajectories came in: 2 trained on, 1 held out" in text
    assert "still stored of what was trained on: 2 for s1" in text
    assert ["held-out", "questions", "24", "8", "passed", "enough"] in words(lines)
    assert "in the [red]probability[/] of a token" in text, "no markup of another's is obeyed"
    assert ["train.batch_size", "16", "32"] in words(lines)
    assert "settings that are not the defaults" in text
    assert ["tokens", "-", "74662"] in words(lines)
    second = shown(version_details(entries[2], entries[1], {}), width)
    assert ["tokens", "74662", "36948", "-37714"] in words(second)
    assert ["loss_last", "-", "0.0001698"] in words(second)
    assert "not judged: a test" in second
    assert "settings that are not v1's" in second


def test_the_base_and_a_version_without_files_are_shown(store: Path) -> None:
    assert "the base model, as it was loaded" in command("versions", "show", "v0", "--store", store).stdout
    shutil.rmtree(Versions(store).path("v1"))
    assert command("versions", "show", "v1", "--store", store).stdout.startswith(
        "v1: its files were removed: it can't be put in force\n"
    )
    told = json.loads(command("versions", "show", "v1", "--store", store, "--json").stdout)
    assert (told["has_files"], told["trained_on"], told["report"]["status"]) == (False, ["b", "c"], "published")
    assert told["settings"] == {"train": {"batch_size": 32}}


@pytest.mark.parametrize("width", [80, 140])
def test_two_versions_are_compared(store: Path, width: int) -> None:
    with Store.open(store, read_only=True) as opened:
        lines = shown(comparison_details(compare(opened, "v1", "v3")), width)
        back = shown(comparison_details(compare(opened, "v3", "v1")), width)
        same = shown(comparison_details(compare(opened, "v3", "v4")), width)
    assert max(map(len, lines)) <= width
    assert lines[0] == "v1 → v3: v3 is 2 versions after v1"
    (first,) = [line for line in words(lines) if line[:2] == ["s1", "changed"]]
    assert first[3] == "→"
    assert first[6].startswith("(")
    assert any(line[:2] == ["s2", "new"] for line in words(lines))
    assert "bank: 2 → 1 pattern, from 40 → 20 trajectories; 0 → 0 far from every pattern" in " ".join(lines)
    assert "    cycle 2: p1-1 merged into p1-0, with 3 trajectories" in lines
    assert "  only in v1: p1-1" in lines
    assert back[0] == "v3 → v1: v3 is 2 versions after v1"
    assert any(line.startswith("  on the way to v3, undone: ") for line in back)
    assert any(line[:3] == ["s1", "one", "file"] for line in words(same))


def test_what_can_be_compared_is_where_files_are_gone(store: Path) -> None:
    shutil.rmtree(Versions(store).path("v1"))
    done = command("versions", "diff", "v1", "v2", "--store", store).stdout
    assert "the files of v1 were removed: adapters, skills and bank can't be compared" in done
    assert "train.batch_size" in done
    told = json.loads(command("versions", "diff", "v1", "v2", "--store", store, "--json").stdout)
    assert (told["without_files"], told["adapters"]) == (["v1"], None)
    assert {"name": "tokens", "before": 74662.0, "now": 36948.0} in told["metrics"]


def test_a_version_is_pinned_and_let_go_of(store: Path) -> None:
    assert "v1 is pinned" in command("versions", "pin", "v1", "--store", store).stdout
    assert json.loads(command("versions", "pin", "v1", "--store", store, "--json").stdout) == {
        "version": "v1",
        "pinned": True,
    }
    told = json.loads(command("prune", "--store", store, "--versions", 1, "--json").stdout)
    assert told["versions"] == ["v2"]
    assert told["versions_freed_bytes"] > 0
    assert ids(store) == ["v1", "v3", "v4"]
    assert "v1 is not pinned" in command("versions", "unpin", "v1", "--store", store).stdout
    assert "the files of 1 version removed: v1" in command("prune", "--store", store, "--versions", 1).stdout
    assert ids(store) == ["v3", "v4"]
    shown = command("versions", "list", "--store", store).stdout
    assert shown.count("no files") == 2
    assert "pruned" in command("versions", "rollback", "v1", "--store", store, code=2).stderr
    assert "v4" in command("versions", "list", "--store", store).stdout
    told = json.loads(command("versions", "rollback", "--store", store, "--json").stdout)
    assert told == {"version": "v3", "before": "v4"}


def test_prune_takes_versions_only_where_it_is_told_to(store: Path) -> None:
    assert "1 trajectory deleted" in command("prune", "--store", store, "--newest", 4).stdout
    assert ids(store) == ["v1", "v2", "v3", "v4"]
    done = command("prune", "--store", store, "--newest", 3, "--versions", 2).stdout
    assert "1 trajectory deleted" in done
    assert "the files of 1 version removed: v1; " in done
    assert "--versions" in command("prune", "--store", store, code=2).stderr
    assert "keep_versions: -1" in command("prune", "--store", store, "--versions", -1, code=2).stderr
    for also in ([], ["--newest", 3]):
        none = command("prune", "--store", store, "--versions", 0, *also, code=2).stderr
        assert "--versions 0; 1 or more is allowed" in none


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (("pin", "v1"), "engine.pin('v1')"),
        (("unpin", "v1"), "engine.unpin('v1')"),
        (("rollback",), "engine.roll_back() ('sona serve': POST /versions/ID/rollback)"),
        (("rollback", "v1"), "engine.roll_back('v1') ('sona serve': POST /versions/v1/rollback)"),
    ],
)
def test_beside_an_agent_the_error_names_the_call(store: Path, words: tuple[str, ...], call: str) -> None:
    with sona.open_sync(store) as engine:
        done = command("versions", *words, "--store", store, code=2).stderr
        assert f"let that one call {call}" in done
        assert "another process writes to it (pid " in done
        assert done.count("\n") == 1
        assert engine.pinned() == []
        assert engine.version.id == "v4"


@pytest.mark.parametrize("is_lost", [False, True])
@pytest.mark.parametrize("way", ["rollback", "repair"])
def test_a_version_in_force_that_can_t_be_opened_names_the_ways_out(store: Path, is_lost: bool, way: str) -> None:
    folders = store / "versions"
    (folders / "v4" / "bank.msgpack").write_bytes(b"odd")
    if is_lost:
        shutil.rmtree(folders / "v4")
    (folders / "v3" / "bank.msgpack").write_bytes(b"odd")  # so the one before is no way out
    kind = UnknownIdError if is_lost else StoreCorruptError
    with pytest.raises(kind, match=r"version 'v4'.* It is in force") as told, sona.open_sync(store):
        pass
    assert f"'sona doctor --store {store} --repair' puts 'v2' in its place" in str(told.value)
    assert f"'sona versions rollback v2 --store {store}'" in str(told.value)
    command(*(("versions", "rollback", "v2") if way == "rollback" else ("doctor", "--repair")), "--store", store)
    with sona.open_sync(store) as engine:
        assert engine.version.id == "v2"


@pytest.mark.parametrize("what", ["rollback", "pin", "unpin", "show", "export"])
def test_an_unknown_version_names_the_command_that_lists_them(store: Path, tmp_path: Path, what: str) -> None:
    more = [tmp_path / "made"] if what == "export" else []
    done = command("versions", what, "v9", *more, "--store", store, code=2).stderr
    assert "version 'v9' is not in " in done
    assert "'sona versions list' shows those that are" in done


def test_what_only_reads_works_beside_an_agent(store: Path, tmp_path: Path) -> None:
    with sona.open_sync(store) as engine:
        engine.pin("v1")
        assert "pinned" in command("versions", "list", "--store", store).stdout
        command("versions", "show", "v1", "--store", store)
        command("versions", "diff", "v1", "v2", "--store", store)
        done = command("versions", "export", "v1", tmp_path / "out", "--store", store).stdout
        assert f"{tmp_path / 'out'}: adapter s1 of v1, rank 4" in done
        assert f"--max-lora-rank 8 --lora-modules v1-s1={tmp_path / 'out'}" in done


def test_an_adapter_is_exported(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "name one by --adapter: s1, s2" in command("versions", "export", "v2", out, "--store", store, code=2).stderr
    told = json.loads(
        command(
            "versions", "export", "v2", out, "--format", "peft", "--adapter", "s2", "--store", store, "--json"
        ).stdout
    )
    assert (told["path"], told["format"], told["adapter"]) == (str(out), "peft", "s2")
    assert told["digest"] == json.loads((out / "sona.json").read_text())["digest"]
    assert "no empty folder" in command("versions", "export", "v1", out, "--store", store, code=2).stderr
    spoil(Versions(store).path("v4") / "bank.msgpack")
    assert "damaged" in command("versions", "export", "v4", tmp_path / "b", "--store", store, code=2).stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("pin", "v9"), "'v9'"),
        (("unpin", "v9"), "'v9'"),
        (("show", "v9"), "'sona versions list' shows those that are"),
        (("diff", "v1", "v9"), "'sona versions list' shows those that are"),
        (("export", "v9", "OUT"), "'sona versions list' shows those that are"),
        (("export", "v0", "OUT"), "the base model itself"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    store: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    given = [str(tmp_path / "out") if word == "OUT" else word for word in words]
    done = command("versions", *given, "--store", store, code=2)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    nowhere = command("versions", *given, "--store", tmp_path, code=2).stderr
    assert "no store" in nowhere
    assert not (tmp_path / "store.db").exists()


def test_a_rollback_makes_no_store(tmp_path: Path) -> None:
    assert "no store" in command("versions", "rollback", "--store", tmp_path, code=2).stderr
    assert list(tmp_path.iterdir()) == []
