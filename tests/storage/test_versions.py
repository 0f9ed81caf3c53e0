"""Version folders: whole or not there, and what they hold is what was published."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sona.errors import ConflictError, InvalidInputError, StoreCorruptError, UnknownIdError
from sona.storage.store import Store
from sona.storage.versions import Versions
from sona.types import Version
from tests.processes import run, start
from tests.storage.records import report


def version(name: str, digest: str) -> Version:
    return Version(id=name, parent="v0", cycle=1, created_ns=0, digest=digest)


def publish(versions: Versions, name: str, files: dict[str, bytes]) -> str:
    with versions.draft() as draft:
        for file, content in files.items():
            (draft / file).parent.mkdir(parents=True, exist_ok=True)
            (draft / file).write_bytes(content)
        return versions.publish(draft, name)


FILES = {"adapter/adapter_model.safetensors": b"abc", "state.msgpack": b"", "README.md": b"# v1"}


def test_what_is_published_is_there_whole(tmp_path: Path) -> None:
    versions = Versions(tmp_path)
    digest = publish(versions, "v1", FILES)
    folder = versions.verify(version("v1", digest))
    assert folder == versions.path("v1") == tmp_path / "versions" / "v1"
    assert {file: (folder / file).read_bytes() for file in FILES} == FILES
    assert os.listdir(tmp_path / "versions") == ["v1"]


def test_a_draft_that_is_not_published_is_gone(tmp_path: Path) -> None:
    versions = Versions(tmp_path)
    with versions.draft() as draft:
        (draft / "x.json").write_text("{}")
    assert os.listdir(tmp_path / "versions") == []


def test_the_digest_follows_names_and_contents_only(tmp_path: Path) -> None:
    versions = Versions(tmp_path)
    digests = [
        publish(versions, f"v{number}", files)
        for number, files in enumerate(
            [
                {"a.json": b"1", "b.json": b"2"},
                {"b.json": b"2", "a.json": b"1"},
                {"a.json": b"2", "b.json": b"1"},
                {"a.json": b"12", "b.json": b""},
                {"a.json": b"1b.json2"},
                {"a.json": b"1", "c.json": b"2"},
                {"d/a.json": b"1", "b.json": b"2"},
            ]
        )
    ]
    assert digests[0] == digests[1]
    assert len(set(digests[1:])) == len(digests) - 1


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "state.msgpack").write_bytes(b"x"),
        lambda folder: (folder / "state.msgpack").unlink(),
        lambda folder: (folder / "more.json").write_text("{}"),
        lambda folder: (folder / "evil.pkl").write_bytes(b""),
        lambda folder: (folder / "README.md").rename(folder / "adapter" / "README.md"),
        lambda folder: (folder / "link.json").symlink_to("/etc/hostname"),
        lambda folder: ((folder / "README.md").unlink(), (folder / "README.md").symlink_to("/etc/hostname")),
    ],
)
def test_a_changed_folder_is_damaged(tmp_path: Path, harm: Callable[[Path], object]) -> None:
    versions = Versions(tmp_path)
    digest = publish(versions, "v1", FILES)
    harm(versions.path("v1"))
    with pytest.raises(StoreCorruptError, match=r"version 'v1'.*damaged"):
        versions.verify(version("v1", digest))


@pytest.mark.parametrize(
    "name", ["model.pkl", "pytorch_model.bin", "model.pt", "run.py", "notes.md", "model.safetensors.tmp"]
)
def test_other_files_are_not_published(tmp_path: Path, name: str) -> None:
    versions = Versions(tmp_path)
    with pytest.raises(InvalidInputError, match="no file of a version"):
        publish(versions, "v1", {name: b"x"})
    with pytest.raises(UnknownIdError):
        versions.path("v1")


def test_links_are_not_published(tmp_path: Path) -> None:
    versions = Versions(tmp_path)
    (tmp_path / "outside.json").write_text("{}")
    for target in (tmp_path / "outside.json", tmp_path):
        with versions.draft() as draft:
            (draft / "link.json").symlink_to(target)
            with pytest.raises(InvalidInputError, match="link"):
                versions.publish(draft, "v1")


def test_a_version_is_published_once(tmp_path: Path) -> None:
    versions = Versions(tmp_path)
    digest = publish(versions, "v1", FILES)
    with pytest.raises(ConflictError, match="v1"):
        publish(versions, "v1", {"other.json": b"{}"})
    versions.verify(version("v1", digest))


@pytest.mark.parametrize("name", ["", ".", "..", "../v1", "a/b", ".draft-x", "v 1", "v\x00", "x" * 101])
def test_an_id_that_is_no_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    versions = Versions(tmp_path)
    with pytest.raises(InvalidInputError, match="version id"):
        versions.path(name)
    with pytest.raises(InvalidInputError, match="version id"):
        publish(versions, name, FILES)


def test_the_base_model_has_no_folder(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store, pytest.raises(UnknownIdError, match="v0"):
        Versions(tmp_path).verify(store.current())


def test_clean_takes_away_what_no_version_names(tmp_path: Path) -> None:
    versions = Versions(tmp_path)
    for name in ("v1", "v2"):
        publish(versions, name, FILES)
    (versions.folder / ".draft-left").mkdir()
    (versions.folder / ".draft-left" / "x.json").write_text("{}")
    (versions.folder / "stray").symlink_to(tmp_path)
    assert versions.clean({"v0", "v1"}) == [".draft-left", "v2", "stray"]
    assert os.listdir(versions.folder) == ["v1"]
    assert [name.split("-")[0] for name in os.listdir(tmp_path / "quarantine")] == ["stray"]
    assert tmp_path.is_dir()


def test_prune_keeps_those_named_and_drafts(tmp_path: Path) -> None:
    versions = Versions(tmp_path)
    for name in ("v1", "v2", "v3"):
        publish(versions, name, FILES)
    with versions.draft() as draft:
        assert versions.prune({"v0", "v3"}) == ["v1", "v2"]
        assert draft.is_dir()
    assert os.listdir(versions.folder) == ["v3"]
    assert versions.prune({"v3"}) == []


def test_a_version_that_goes_while_it_is_read_is_gone_and_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = Versions(tmp_path)
    gone, damaged = (version(name, publish(versions, name, FILES)) for name in ("v1", "v2"))
    real = os.open

    def opened(path: str | Path, *rest: int, **more: int) -> int:
        if Path(path).name == "README.md":
            versions.prune({"v2"})
            (versions.folder / "v2" / "README.md").unlink(missing_ok=True)
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", opened)
    with pytest.raises(UnknownIdError, match="pruned"):
        versions.verify(gone)
    with pytest.raises(StoreCorruptError, match="'v2'"):
        versions.verify(damaged)


def test_a_store_without_versions_has_nothing_to_clean(tmp_path: Path) -> None:
    assert Versions(tmp_path / "nothing").clean(set()) == []


CUT_SHORT = """
import os, signal, sys
from sona.storage.store import Store
from sona.storage.versions import Versions
store, versions = Store.open(sys.argv[1]), Versions(sys.argv[1])
with versions.draft() as draft:
    (draft / "a.json").write_text("{}")
    if sys.argv[2] == "after":
        versions.publish(draft, "v1")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_between_publish_and_commit_leaves_the_store_as_it_was(tmp_path: Path, moment: str) -> None:
    process = start(CUT_SHORT, tmp_path, moment)
    process.communicate(timeout=60)
    assert process.returncode == -9
    versions = Versions(tmp_path)
    with Store.open(tmp_path) as store:
        assert store.current().id == "v0"
        assert len(versions.clean({one.id for one in store.versions()})) == 1
        assert os.listdir(versions.folder) == []
        digest = publish(versions, "v1", FILES)  # the cycle, run again
        made = version("v1", digest)
        store.commit_cycle(report(1, status="published", version="v1"), [], made)
        assert versions.clean({one.id for one in store.versions()}) == []
        versions.verify(store.current())


def test_publishing_syncs_files_before_the_rename_and_the_folder_after_it(tmp_path: Path) -> None:
    """Seen from the outside: the order of the calls to the system."""
    output = run(
        """
import os, sys
from pathlib import Path
from sona.storage.versions import Versions
calls = []
fsync, rename = os.fsync, Path.rename
def noted_fsync(fd):
    calls.append("sync " + os.path.basename(os.readlink(f"/proc/self/fd/{fd}")).split("-")[0])
    fsync(fd)
def noted_rename(self, target):
    calls.append("rename")
    return rename(self, target)
os.fsync, Path.rename = noted_fsync, noted_rename
versions = Versions(sys.argv[1])
with versions.draft() as draft:
    (draft / "deep").mkdir()
    (draft / "deep" / "a.json").write_text("{}")
    (draft / "b.json").write_text("{}")
    versions.publish(draft, "v1")
print(", ".join(calls))
""",
        tmp_path,
    )
    order = output.split(", ")
    assert order[order.index("rename") + 1 :] == ["sync versions"]
    assert set(order[: order.index("rename")]) == {"sync b.json", "sync a.json", "sync deep", "sync .draft"}
    assert order.index("sync a.json") < order.index("sync deep") < order.index("sync .draft")
