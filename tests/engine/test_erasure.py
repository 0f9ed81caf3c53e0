"""Erasing a source: no byte of it is left, what learned from it is named, and a kill is made up for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

import sona
from sona.bank.bank import Bank
from sona.bank.pattern import Member
from sona.bank.skills import HELD_OUT, Skill, SkillSet
from sona.checks import Float32
from sona.config import BankConfig
from sona.erasure import Erased, erase, finish
from sona.errors import CycleError, InvalidInputError, StoreCorruptError, StoreError, StoreLockedError, UnknownIdError
from sona.loops.skill_files import ROUTER, SKILLS, files_of, read_skills
from sona.loops.version_files import BANK, read_bank
from sona.storage.doctor import diagnose
from sona.storage.erasure import Erasure, UnderWay
from sona.storage.retention import Limits
from sona.storage.rows import encode
from sona.storage.store import Store
from sona.storage.versions import Versions
from sona.types import Feedback, Trajectory, to_messages
from tests.engine.small import WORLD, open_small, record_task
from tests.processes import run
from tests.storage.learned import publish, spoil
from tests.storage.records import add, ask, run_cycle

MARKER = "Xq7-marker"


def told(number: int, source: str) -> list[Trajectory | Feedback]:
    """A trajectory of which each text, and each name that the source may choose, has the marker if it is Eve's."""
    mark = MARKER if source.startswith("eve") else "plain"
    record = Trajectory(
        id=f"{mark}-{number}",
        source=source if source == "bob" else f"{source}-{mark}",
        created_ns=1_700_000_000_000_000_000,
        messages=ask(f"question {number} {mark} " + "word " * 50),
        response=f"answer {number} {mark}",
        embedding=np.random.default_rng(number).normal(size=8),
        metadata={"name": mark},
    )
    feedback = Feedback(
        trajectory_id=record.id, quality=0.9, id=f"f-{mark}-{number}", giver=mark, comment=mark, at_ns=1
    )
    return [record, feedback]


EVE = f"eve-{MARKER}"


def learn(store: Store, numbers: Sequence[int], sources: Sequence[str]) -> None:
    """A cycle with trajectories of these sources in turn, whose version's bank has exemplars of them."""
    records = [told(number, sources[place % len(sources)]) for place, number in enumerate(numbers)]
    for pair in records:
        add(store, pair)
    before = store.current()
    bank = Bank() if before.parent is None else read_bank(Versions(store.path), before)
    members = []
    for record, _ in records:
        assert isinstance(record, Trajectory)
        vector = record.vector()
        assert vector is not None
        members.append(
            Member(
                trajectory_id=record.id,
                embedding=vector,
                quality=0.9,
                prompt=record.messages[0].content,
                response=record.response,
            )
        )
    placed = bank.learn(members, BankConfig(exemplars=20), cycle=store.next_cycle(), seed=0)
    publish(store, {BANK: placed.bank.to_bytes()})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """v1 learned from Bob, v2 from both, v3 and v4 from Bob again; v4 was rolled back. Eve has sent some since."""
    with Store.open(tmp_path / "store") as store:
        learn(store, range(10), ["bob"])
        learn(store, range(10, 30), ["bob", "eve"])
        learn(store, range(30, 40), ["bob"])
        learn(store, range(40, 44), ["bob"])
        store.set_current("v3")
    with Store.open(tmp_path / "store") as store:
        for number in range(50, 60):
            add(store, told(number, "eve"))
        store.write_state("probes", b"of the base model")
        yield store


def files_with(folder: Path, text: str) -> list[str]:
    return [path.name for path in sorted(folder.rglob("*")) if path.is_file() and text.encode() in path.read_bytes()]


def check_erased(store: Store) -> None:
    """Nothing of Eve's is left; Bob's is whole; every version's files are what its digest says."""
    assert files_with(store.path, MARKER) == []
    rows = list(store.iterate())
    assert [row.trajectory.id for row in rows] == [f"plain-{n}" for n in range(44) if n < 10 or n >= 30 or n % 2 == 0]
    assert [row.source for row in store.sources()] == ["bob"]
    counts = store.counts()
    assert (counts.trajectories, counts.trained, counts.uncollected) == (34, 34, 0)
    assert store.replayable("train") == 30
    drawn = {row.trajectory.id for row in store.sample("train", 1000, np.random.default_rng(0), balanced=True)}
    assert len(drawn) == 30
    for version in store.versions()[1:]:
        bank = read_bank(Versions(store.path), version)
        exemplars = [one.trajectory_id for pattern in bank.patterns for one in pattern.exemplars]
        assert exemplars
        assert set(exemplars) <= {row.trajectory.id for row in rows}


def test_nothing_of_the_source_is_left_in_any_file(store: Store) -> None:
    assert files_with(store.path, MARKER) == [
        "store.db",
        "store.db-wal",
        "bank.msgpack",
        "bank.msgpack",
        "bank.msgpack",
    ]
    patterns = [len(read_bank(Versions(store.path), version).patterns) for version in store.versions()[1:]]
    done = erase(store, Versions(store.path), EVE)
    check_erased(store)
    assert (done.trajectories, done.feedback, done.claims) == (20, 20, 10)
    assert done.exemplars > 0
    assert (done.rewritten, done.removed) == (("v2", "v3", "v4"), ())
    assert [len(read_bank(Versions(store.path), version).patterns) for version in store.versions()[1:]] == patterns
    assert store.read_state("probes") == b"of the base model"
    with pytest.raises(UnknownIdError, match="nothing was changed"):
        erase(store, Versions(store.path), EVE)


def test_an_unknown_source_is_an_error_and_nothing_is_touched(store: Store) -> None:
    store.prune(Limits(days=0, trajectories=15, per_source=0, unlearned=True))  # some exemplars are nobody's now
    before = {version.id: version.digest for version in store.versions()}
    files = {path: path.read_bytes() for path in (store.path / "versions").rglob("*") if path.is_file()}
    with pytest.raises(UnknownIdError, match=r"'eve-marker'.*the nearest that are known: 'eve-Xq7-marker', 'bob'"):
        erase(store, Versions(store.path), "eve-marker")
    assert {version.id: version.digest for version in store.versions()} == before
    assert {path: path.read_bytes() for path in (store.path / "versions").rglob("*") if path.is_file()} == files
    assert store.read_state("erasure") is None
    assert store.counts().trajectories == 15


def test_an_erasure_that_was_cut_short_goes_on_where_nothing_else_knows_the_source(store: Store) -> None:
    erasure = store.erasure(EVE)
    erasure.begin()
    erasure.delete_rows()
    erasure.forget()
    done = erase(store, Versions(store.path), EVE)
    assert (done.trajectories, done.learned) == (0, ("v2", "v3", "v4"))
    check_erased(store)


def of_both(known: bool) -> dict[str, bytes]:
    """A version's skills with a row of Eve's and one of Bob's for each, with or without whose they are."""
    skills = SkillSet()
    for name, eve in (("s1", True), ("s2", False)):
        skills = skills.put(Skill(id=name, adapter=name, born_cycle=1, touched_cycle=1, usual=(0.5,) * 8))
        for place, source in enumerate([EVE, "bob"] if eve else ["bob"]):
            row = np.full((1, 4), place + 1, np.float32)
            skills = skills.with_rows(name, row, [source] if known else [])
            skills = skills.with_rows(HELD_OUT + name, row, [source] if known else [])
    return files_of(skills)


def test_its_features_go_and_the_figures_that_may_be_its_own(store: Store) -> None:
    publish(store, of_both(known=True))
    folders = Versions(store.path)
    done = erase(store, folders, EVE)
    assert (done.features, done.not_covered) == (2, ())
    left = read_skills(folders.verify(store.current()))
    assert {name: rows[:, 0].tolist() for name, rows in left.rows.items()} == {
        "s1": [2],
        f"{HELD_OUT}s1": [2],
        "s2": [1],
        f"{HELD_OUT}s2": [1],
    }
    assert [len(skill.usual) for skill in left.skills] == [0, 8]


@pytest.mark.parametrize("name", [SKILLS, ROUTER])
def test_cut_short_at_either_file_of_the_router_it_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    publish(store, of_both(known=True))
    put = Versions.put

    def failing(self: Versions, version_id: str, file: str, data: bytes) -> None:
        if file == name:
            raise StoreError("the disk")
        put(self, version_id, file, data)

    with monkeypatch.context() as patch:
        patch.setattr(Versions, "put", failing)
        with pytest.raises(StoreError, match="the disk"):
            erase(store, Versions(store.path), EVE)
    assert erase(store, Versions(store.path), EVE).features == 2
    left = read_skills(Versions(store.path).verify(store.current()))
    assert ([len(skill.usual) for skill in left.skills], left.row_count) == ([0, 8], 4)


def test_a_router_that_does_not_say_whose_its_features_are_is_named(store: Store) -> None:
    version = publish(store, of_both(known=False))
    done = erase(store, Versions(store.path), EVE)
    assert (done.features, done.not_covered) == (0, (str(store.path / "versions" / version.id / ROUTER),))
    left = read_skills(Versions(store.path).verify(store.current()))
    assert [len(skill.usual) for skill in left.skills] == [0, 0]
    assert sum(map(len, left.rows.values())) == 6


def test_the_versions_that_learned_from_it_are_named(store: Store) -> None:
    done = erase(store, Versions(store.path), EVE)
    assert (done.learned, done.in_force, done.roll_back_to) == (("v2", "v3", "v4"), "v3", "v1")


def test_a_version_in_force_that_learned_nothing_from_it_stays(store: Store) -> None:
    store.set_current("v1")
    done = erase(store, Versions(store.path), EVE)
    assert (done.learned, done.roll_back_to) == (("v2", "v3", "v4"), None)


def test_what_a_rejected_cycle_trained_on_is_replayed_by_all_later_versions(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        learn(store, range(4), ["bob"])
        add(store, told(20, "eve"))
        run_cycle(store)
        learn(store, range(5, 9), ["bob"])
        assert erase(store, Versions(store.path), EVE).learned == ("v3",)


def test_what_retention_deleted_before_is_named_and_its_exemplars_go(store: Store) -> None:
    store.prune(Limits(days=0, trajectories=1, per_source=0, unlearned=True))
    done = erase(store, Versions(store.path), EVE)
    assert (done.learned, done.trajectories) == (("v2", "v3", "v4"), 10)
    assert files_with(store.path, MARKER) == []


def test_a_backup_keeps_what_it_had(store: Store, tmp_path: Path) -> None:
    """Its files are links to the same bytes; they are exchanged, not written over."""
    store.backup(tmp_path / "copy")
    erase(store, Versions(store.path), EVE)
    with Store.open(tmp_path / "copy", read_only=True) as copy:
        assert copy.counts().trajectories == 54
        for version in copy.versions()[1:]:
            Versions(tmp_path / "copy").verify(version)


def test_files_of_repairs_are_told_about(store: Store) -> None:
    (store.path / "store.db.damaged-1").write_text("old")
    (store.path / "quarantine").mkdir()
    done = erase(store, Versions(store.path), EVE)
    assert [Path(path).name for path in done.not_covered] == ["store.db.damaged-1", "quarantine"]


def test_a_damaged_version_goes_unless_it_is_in_force(store: Store) -> None:
    spoil(store.path / "versions" / "v2" / BANK)
    assert erase(store, Versions(store.path), EVE).removed == ("v2",)
    assert files_with(store.path, MARKER) == []
    spoil(store.path / "versions" / "v3" / BANK)
    with pytest.raises(StoreCorruptError, match="v3"):
        erase(store, Versions(store.path), "bob")


def test_a_reader_that_keeps_the_log_is_said(store: Store) -> None:
    with Store.open(store.path, read_only=True) as reader:
        with reader._snapshot() as connection:
            assert connection.execute("SELECT count(*) FROM trajectories").get == 54
            with pytest.raises(StoreLockedError, match="end that one"):
                erase(store, Versions(store.path), EVE)
        erase(store, Versions(store.path), EVE)
    check_erased(store)


def test_one_erasure_at_a_time(store: Store) -> None:
    store.erasure(EVE).begin()
    with pytest.raises(StoreError, match=f"the erasure of '{EVE}' was cut short; 'sona erase {EVE} --yes' comes first"):
        erase(store, Versions(store.path), "bob")
    with pytest.raises(InvalidInputError, match="source"):
        erase(store, Versions(store.path), "")
    assert erase(store, Versions(store.path), EVE).goes_on, "it was begun before"
    assert store.counts().trajectories == 34


KILLED = """
import os, signal, sys
from pathlib import Path
from sona.erasure import erase
from sona.loops.version_files import read_bank
from sona.storage import erasure
from sona.storage.store import Store
from sona.storage.transactions import Transactions
from sona.storage.versions import Versions

def killing(at):
    steps = 0
    def wrap(kind, name):
        inner = getattr(kind, name)
        def step(*args, **named):
            nonlocal steps
            steps += 1
            if steps == at:
                os.kill(os.getpid(), signal.SIGKILL)
            result = inner(*args, **named)
            steps += 1
            if steps == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        setattr(kind, name, step)
    for kind, name in ((Transactions, "run"), (Transactions, "apart"), (Versions, "put"), (Path, "replace")):
        wrap(kind, name)

folder = Path(sys.argv[1])
for at in range(int(sys.argv[3]), int(sys.argv[4])):
    child = os.fork()
    if child == 0:
        erasure.CHUNK = 3
        store = Store.open(folder)
        killing(at)
        erase(store, Versions(folder), sys.argv[2])
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    store = Store.open(folder)  # it opens, and the version in force can be served
    read_bank(Versions(folder), store.current())
    for version in store.versions()[1:]:
        Versions(folder).verify(version)
    store.close()
    if status == 0:
        break
    assert status == -signal.SIGKILL, status
print(at, status)
"""


def test_killed_anywhere_it_can_be_taken_to_its_end(store: Store) -> None:
    """Each attempt is killed one step later than the one before, and goes on from where that one was."""
    store.close()
    last, status = run(KILLED, store.path, EVE, 1, 1000).split()
    assert (int(last) > 10, status) == (True, "0")
    with Store.open(store.path) as after:
        check_erased(after)
        assert after.read_state("erasure") is None


def test_each_kill_alone_is_made_up_for(store: Store, tmp_path: Path) -> None:
    """As a user would: one kill, then the same erasure again, which names what the first would have named; or the next
    start, which does not know the name.
    """
    store.close()
    for at in range(1, 1000, 4):
        copy = tmp_path / f"copy{at}"
        with Store.open(store.path, read_only=True) as before:
            before.backup(copy)
        status = run(KILLED, copy, EVE, at, at + 1).split()[1]
        with Store.open(copy) as after:
            is_marked = after.read_state("erasure") is not None
            if is_marked and at % 8 == 1 and (begun := after.erasure_under_way()) is not None and begun.source is None:
                assert finish(after, lambda: None)
                assert after.erasure_under_way() is None
            elif is_marked or after.counts().trajectories > 34:
                assert erase(after, Versions(copy), EVE).learned == ("v2", "v3", "v4")
            check_erased(after)
        if status == "0":
            break
    assert at > 40


def test_a_backup_from_the_midst_of_an_erasure_is_not_called_damaged(store: Store, tmp_path: Path) -> None:
    """Nor does whoever opens it for work delete what was sent; the same erasure again does."""
    store.erasure(EVE).begin()
    copy = tmp_path / "copy"
    store.backup(copy)
    for folder, severity, says in (
        (store.path, "note", f"the erasure of '{EVE}' is under way"),
        (copy, "repairable", f"'sona erase {EVE} --yes'"),
    ):
        (found,) = (one for one in diagnose(folder).findings if one.where == "state 'erasure'")
        assert (found.severity, found.repair) == (severity, "")
        assert says in found.what
    with Store.open(copy, read_only=True) as opened:
        before = opened.counts().trajectories
    with open_small(copy, None) as engine:
        assert engine.status().store.trajectories == before
        engine.erase(EVE)
        assert files_with(copy, MARKER) == []
    assert diagnose(copy).findings == ()
    with Store.open(copy) as opened:
        check_erased(opened)


@pytest.mark.parametrize("is_in_the_way", [False, True])
def test_what_nobody_names_any_more_is_overwritten(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, is_in_the_way: bool
) -> None:
    def cut(_: object) -> None:
        raise StoreError("cut short")

    with monkeypatch.context() as patched:
        patched.setattr(Erasure, "scrub", cut)
        with pytest.raises(StoreError, match="cut short"):
            erase(store, Versions(store.path), EVE)
    store.close()
    begun = UnderWay(None, ("v2", "v3", "v4"))
    if is_in_the_way:  # then the engine is of use all the same
        monkeypatch.setattr(Erasure, "scrub", cut)
    with open_small(store.path, None) as engine:
        assert engine.version.id == "v3"
    with Store.open(store.path) as opened:
        assert opened.erasure_under_way() == (begun if is_in_the_way else None)
        if not is_in_the_way:
            check_erased(opened)
    assert ("cut short can't be" if is_in_the_way else "learned from it: v2, v3, v4") in caplog.text


def features_of(engine: sona.SyncEngine, task: str, seed: int) -> Float32:
    """float32 (n, width) of what :func:`record_task` records, as a version keeps them."""
    prompts = [to_messages(example.prompt) for example in WORLD.sample(task, 60, seed)]
    rows = engine.model.features([engine.model.encode_prompt(prompt) for prompt in prompts])
    return rows.astype(np.float16).astype(np.float32)


def among(skills: SkillSet, rows: Float32) -> float:
    """Share of ``rows`` that the version keeps."""
    kept = np.concatenate([own for own in skills.rows.values() if len(own)])
    return float(np.mean([np.abs(kept - row).max(1).min() < 1e-2 for row in rows]))


def test_an_engine_erases_beside_its_traffic(tmp_path: Path) -> None:
    with open_small(tmp_path / "store") as engine:
        record_task(engine, 60, seed=1, task="tool_call")
        record_task(engine, 60, seed=2, task="routing_policy")
        assert engine.learn().status == "published"
        engine.record(sona.Trajectory(messages="late", response="one", source="tool_call"), quality=0.5)
        sources = {engine.get(one.trajectory_id).trajectory.source for p in engine.bank.patterns for one in p.exemplars}
        assert sources == {"tool_call", "routing_policy"}
        v1 = Versions(tmp_path / "store").path("v1")
        asked = {task: features_of(engine, task, seed) for seed, task in enumerate(("tool_call", "routing_policy"), 1)}
        assert all(among(read_skills(v1), rows) > 0.5 for rows in asked.values())
        done: Erased = engine.erase("tool_call")
        assert (among(read_skills(v1), asked["tool_call"]), done.not_covered) == (0, ()), (
            "nobody can tell what it asked"
        )
        assert among(read_skills(v1), asked["routing_policy"]) > 0.5
        assert done.features > 0
        assert engine.generate(WORLD.sample("tool_call", 1, 7)[0].prompt).adapter == "s1", "it serves as before"
        assert (done.trajectories, done.learned, done.roll_back_to) == (61, ("v1",), "v0")
        sources = {engine.get(one.trajectory_id).trajectory.source for p in engine.bank.patterns for one in p.exemplars}
        assert sources == {"routing_policy"}
        assert engine.generate("What now?").version == "v1"
        assert engine.roll_back().id == "v0"
        assert engine.backup(tmp_path / "copy").trajectories == 60
        with engine._engine._cycles.alone("another"), pytest.raises(CycleError, match="under way"):
            engine.erase("routing_policy")
        assert not any(b"late" in path.read_bytes() for path in (tmp_path / "store" / "journal").iterdir())
        record_task(engine, 60, seed=3, task="routing_policy")
        assert engine.learn().status in ("published", "rejected"), "the next cycle goes on from it"
    with open_small(tmp_path / "store") as engine:
        assert engine.roll_back("v1").id == "v1"


def test_a_mark_of_an_erasure_names_nobody(store: Store) -> None:
    store.erasure(EVE).begin()
    mark = store.read_state("erasure")
    assert mark is not None
    assert MARKER.encode() not in mark
    assert encode(store.current()) is not None
