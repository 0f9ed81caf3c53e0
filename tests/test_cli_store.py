"""The commands that look after a store, as a person meets them."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

import sona
from sona import cli_store
from sona.cli import app
from sona.cli_store import backup, erase
from sona.config import StoreConfig
from sona.errors import StoreFullError, StoreReadOnlyError
from sona.storage.erasure import Erasure
from sona.storage.mapped import open_journal
from sona.storage.store import Store
from tests.storage.learned import publish
from tests.storage.records import add, rated, trajectory
from tests.test_cli import command


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A store of twenty trajectories and one version."""
    with Store.open(tmp_path / "store") as store:
        add(store, rated(f"t{number}" for number in range(20)))
        publish(store)
    return tmp_path / "store"


def test_a_backup_without_room_names_the_disk_that_is_full(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Store, target: Path) -> None:
        raise StoreFullError(f"{self.path / 'store.db'}: database or disk is full")

    monkeypatch.setattr(Store, "backup", full)
    with pytest.raises(StoreFullError, match=r"copy: its disk has no room .* up to \d+\.\d MB; free space there"):
        backup(tmp_path / "copy", store=filled)


def test_backup_works_beside_a_running_agent(filled: Path, tmp_path: Path) -> None:
    with Store.open(filled):
        assert "20 trajectories, version v1" in command("backup", tmp_path / "copy", "--store", filled).stdout
        told = json.loads(command("backup", tmp_path / "two", "--store", filled, "--json").stdout)
        assert (told["version"], told["versions"]) == ("v1", ["v1"])
        assert "exists" in command("backup", tmp_path / "copy", "--store", filled, code=2).stderr
    with sona.open_sync(tmp_path / "copy") as copy:
        assert copy.status().store.trajectories == 20


def left_waiting(store: Path, name: str) -> None:
    """As a killed agent leaves a record."""
    journal = open_journal(store, StoreConfig())
    assert journal.append(journal.prepare(trajectory(name)))


def test_a_backup_has_what_a_killed_agent_left_waiting(filled: Path, tmp_path: Path) -> None:
    left_waiting(filled, "late")
    done = command("backup", tmp_path / "copy", "--store", filled)
    assert "21 trajectories" in done.stdout
    assert "Not in the backup" not in done.stderr
    with Store.open(tmp_path / "copy", read_only=True) as copy:
        assert "late" in copy


def test_a_backup_says_what_waits_and_is_not_in_it(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left_waiting(filled, "late")
    with Store.open(filled):
        done = command("backup", tmp_path / "beside", "--store", filled, "--json")
        assert json.loads(done.stdout)["waiting_in_journal"] == 1
        told = f"Not in the backup: 1 record that waits in {filled / 'journal'}, as the agent that writes to it has"
        assert told in done.stderr

    def read_only(path: Path, config: StoreConfig) -> Store:
        raise StoreReadOnlyError(f"{path}: grant write permission to the folder")

    monkeypatch.setattr(cli_store, "open_store", read_only)
    with pytest.raises(SystemExit) as ended:
        backup(tmp_path / "copy", store=filled)
    told = f"as they could not be stored first: {filled}: grant write permission to the folder. Then make another"
    assert (ended.value.code, told in " ".join(capsys.readouterr().err.split())) == (1, True)


def test_a_backup_says_what_is_damaged_and_is_made(filled: Path, tmp_path: Path) -> None:
    with sqlite3.connect(filled / "store.db") as raw:
        raw.execute("UPDATE trajectories SET payload = x'00' WHERE id = 't3'")
    raw.close()
    done = command("backup", tmp_path / "copy", "--store", filled, code=1)
    assert f"1 damaged row is in it as in the store; see 'sona doctor --store {filled}'" in done.stderr
    assert "20 trajectories" in done.stdout
    assert (
        json.loads(command("backup", tmp_path / "two", "--store", filled, "--json", code=1).stdout)["damaged_rows"] == 1
    )


def test_prune_deletes_what_is_beyond_the_limits(filled: Path, tmp_path: Path) -> None:
    assert "no limit is set" in command("prune", "--store", filled, code=2).stderr
    told = json.loads(command("prune", "--store", filled, "--newest", 5, "--json").stdout)
    assert (told["trajectories"], told["feedback"], told["unlearned"]) == (15, 15, 0)
    (tmp_path / "sona.toml").write_text("[store]\nkeep_per_source = 2\n")
    assert "3 trajectories deleted" in command("prune", "--store", filled, "--config", tmp_path / "sona.toml").stdout
    assert "no store" in command("prune", "--store", tmp_path / "none", "--newest", 5, code=2).stderr
    with Store.open(filled, read_only=True) as store:
        assert [row.trajectory.id for row in store.iterate()] == ["t18", "t19"]


def test_every_command_tells_a_lost_database_from_a_wrong_path(filled: Path) -> None:
    database = filled / "store.db"
    database.rename(filled.parent / "away")
    for words in (["prune", "--newest", 5], ["erase", "agent", "--yes"], ["versions", "rollback"], ["status"]):
        assert (
            "the database is missing, with versions v1 beside it" in command(*words, "--store", filled, code=2).stderr
        )
    for words in (["prune", "--newest", 5], ["learn", "--model", "tiny"], ["versions", "rollback"]):
        assert "a file; a store is a folder" in command(*words, "--store", filled.parent / "away", code=2).stderr
    assert "a store is a folder" in command("doctor", "--store", filled.parent / "away", code=2).stdout


def test_status_counts_though_the_version_in_force_has_no_files(filled: Path) -> None:
    shutil.rmtree(filled / "versions" / "v1")
    done = command("status", "--store", filled)
    assert "20 trajectories" in done.stdout
    assert f"'sona versions rollback v0 --store {filled}'" in " ".join(done.stderr.split())
    assert "sona versions rollback v0" in command("bank", "show", "--store", filled, code=2).stderr


def test_a_source_takes_one_line_of_the_table_whatever_is_in_its_name(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        add(store, [trajectory("a", source="two\nlines"), trajectory("b", source="red\x1b[31m")])
    shown = command("status", "--store", tmp_path).stdout
    assert "'two\\nlines'" in shown
    assert "'red\\x1b[31m'" in shown


def test_erase_asks_and_then_tells_what_it_can_not_do(filled: Path) -> None:
    assert "--yes" in command("erase", "agent", "--store", filled, code=2).stderr
    shown = command("erase", "agent", "--store", filled, "--yes").stdout
    assert "20 trajectories of 'agent' erased, with 20 feedbacks" in shown
    assert "Learned from it all the same: v1" in shown
    assert "sona versions rollback v0" in shown
    assert "Backups are not covered" in shown
    assert "nothing was changed" in command("erase", "agent", "--store", filled, "--yes", "--json", code=2).stderr


def test_doctor_says_what_is_wrong_and_repairs_it(filled: Path) -> None:
    assert "nothing is wrong" in command("doctor", "--store", filled).stdout
    with sqlite3.connect(filled / "store.db") as raw:
        raw.execute("UPDATE trajectories SET payload = x'00' WHERE id = 't3'")
    raw.close()
    shown = command("doctor", "--store", filled, code=1).stdout
    assert (
        "damaged trajectories seq 4, id 't3': its checksum is not that of its values; --repair sets it aside" in shown
    )
    told = json.loads(command("doctor", "--store", filled, "--json", code=1).stdout)
    assert (told["exit_code"], told["findings"][0]["severity"]) == (1, "damaged")
    assert "repaired: set aside in quarantine/rows-1.jsonl" in command("doctor", "--store", filled, "--repair").stdout
    assert command("doctor", "--store", "/no/such", code=2).stdout.startswith("fatal /no/such: there is no store")
    with Store.open(filled):
        assert "writes to it" in command("doctor", "--store", filled).stdout
        assert "has one writer" in command("doctor", "--store", filled, "--repair", code=2).stderr


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["doctor"],
        ["prune"],
        ["review"],
        ["learn", "--model", "tiny"],
        ["serve", "--model", "tiny"],
        ["versions", "list"],
        ["candidates", "list"],
        ["checkpoints", "list"],
        ["checkpoints", "verify"],
        ["bank", "log"],
        ["bank", "map"],
    ],
)
def test_a_command_about_a_store_alone_takes_it_with_or_without_its_option(words: list[str]) -> None:
    for given in (["agent"], ["--store", "agent"]):
        _, bound, _ = app.parse_args([*words, *given], exit_on_error=False, print_error=False)
        assert bound.arguments["store"] == Path("agent")


@pytest.mark.parametrize("given", ["3.4", "0x3", "three"])
def test_prune_takes_whole_numbers_alone(filled: Path, given: str) -> None:
    told = command("prune", f"--newest={given}", "--store", filled, code=2).stderr
    assert f"--newest '{given}': a whole number" in told
    with Store.open(filled, read_only=True) as store:
        assert store.counts().trajectories == 20


def test_a_stopped_erasure_says_what_it_left(
    filled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(self: Erasure) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Erasure, "scrub", stop)
        with pytest.raises(SystemExit, match="130"):
            erase("agent", store=filled, yes=True)
    told = " ".join(capsys.readouterr().err.split())
    assert "the erasure of 'agent' may be half done; the same command again" in told
    assert "a source that nothing names any more is under way" in command("status", filled).stdout
    assert "it was begun before" in command("erase", "agent", "--yes", "--store", filled).stdout
    assert "under way" not in command("status", filled).stdout
