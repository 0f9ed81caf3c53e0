"""Readers: beside the writer, and where nothing may be written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import apsw
import numpy as np
import pytest

from sona.errors import (
    StoreReadOnlyError,
)
from sona.storage.store import DATABASE, Store
from tests.processes import run
from tests.storage.learned import ADAPTER, publish
from tests.storage.records import add, rated, report, run_cycle, trajectory


def test_a_reader_beside_the_writer_sees_what_was_committed(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store, Store.open(tmp_path, read_only=True) as reader:
        add(store, rated("a"))
        assert reader.get("a").quality == 0.5
        run_cycle(store, publish=True)
        assert reader.current().id == "v1"
        assert len(reader.sample("train", 3, np.random.default_rng(0))) == 3


def test_a_reader_changes_nothing(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    with Store.open(tmp_path, read_only=True) as reader:
        for use in (
            lambda: reader.append([trajectory("a")]),
            lambda: reader.commit_cycle(report(1), [], None),
            lambda: reader.set_current("v0"),
            lambda: reader.write_state("x", b""),
        ):
            with pytest.raises(StoreReadOnlyError, match="read_only"):
                use()


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that other users can get to, which pytest's own is not."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    path.chmod(0o755)
    shutil.rmtree(path)


def without_permission(script: str, path: Path) -> str:
    """Run ``script`` as a user who may read ``path`` and not write to it."""
    folder = path / "store"
    (folder / "versions").chmod(0o555)
    for file in folder.iterdir():
        file.chmod(0o444 if file.is_file() else 0o555)
    for file in folder.glob("*/**/*"):
        if file.stat().st_mode & 0o777:  # but for what a test has taken away
            file.chmod(0o644 if file.is_file() else 0o755)
    folder.chmod(0o555)
    imports = """
import os, sys
import numpy
from sona.errors import StoreError, StoreReadOnlyError
from sona.storage.store import Store
from tests.storage.learned import ADAPTER, publish
from tests.storage.records import rated, trajectory
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
"""
    try:
        return run(imports + script, folder)
    finally:
        folder.chmod(0o755)


READ = """
with Store.open(sys.argv[1], read_only=True) as reader:
    print([row.trajectory.id for row in reader.iterate()], reader.counts().feedback, reader.current().id)
"""


def test_a_closed_store_is_read_without_write_permission(shared: Path) -> None:
    with Store.open(shared / "store") as store:
        add(store, rated("ab"))
    assert without_permission(READ, shared) == "['a', 'b'] 2 v0"
    assert sorted(os.listdir(shared / "store")) == ["blobs", "store.db", "store.lock", "versions"]


DIAGNOSE = """
from sona.storage.doctor import diagnose
print(diagnose(sys.argv[1]).findings)
"""


def test_a_closed_store_is_examined_without_write_permission(shared: Path) -> None:
    with Store.open(shared / "store") as store:
        add(store, rated("ab"))
    assert without_permission(DIAGNOSE, shared) == "()"
    with apsw.Connection(str(shared / "store" / DATABASE)) as connection:
        connection.execute("UPDATE trajectories SET crc = crc + 1 WHERE seq = 1")
    connection.close()
    assert "trajector" in without_permission(DIAGNOSE, shared)


def test_a_version_that_may_not_be_read_is_not_called_damaged(shared: Path) -> None:
    with Store.open(shared / "store") as store:
        add(store, rated("ab"))
        version = publish(store)
    (shared / "store" / "versions" / version.id / ADAPTER).chmod(0)
    script = f"""
try:
    {DIAGNOSE.replace(chr(10), chr(10) + "    ")}
except StoreError as error:
    print(error)
"""
    told = without_permission(script, shared)
    assert "Permission denied" in told
    assert "see that this user may read its files" in told


def test_an_open_store_is_read_without_write_permission(shared: Path) -> None:
    with Store.open(shared / "store") as store:
        add(store, rated("ab"))
        assert without_permission(READ, shared) == "['a', 'b'] 2 v0"


def test_a_log_left_by_a_crash_is_read_whole_or_refused_without_write_permission(shared: Path) -> None:
    """With nobody's shared memory beside it; never may the records that only the log holds be missing silently."""
    with Store.open(shared / "live") as store:
        add(store, rated("ab"))
        (shared / "store" / "versions").mkdir(parents=True)
        for name in (DATABASE, f"{DATABASE}-wal"):
            shutil.copy(shared / "live" / name, shared / "store" / name)
    script = f"""
try:
    with Store.open(sys.argv[1], read_only=True) as reader:
        print([row.trajectory.id for row in reader.iterate()])
except StoreReadOnlyError as error:
    print("['a', 'b']" if "{DATABASE}-wal" in str(error) else error)
"""
    assert without_permission(script, shared) == "['a', 'b']"


def test_writing_without_permission_is_refused(shared: Path) -> None:
    Store.open(shared / "store").close()
    script = """
for path in (sys.argv[1], os.path.join(sys.argv[1], "deeper")):
    try:
        Store.open(path)
    except StoreReadOnlyError as error:
        print("write permission" in str(error))
"""
    assert without_permission(script, shared) == "True\nTrue"


def test_a_read_only_mount_is_read(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        add(store, rated("ab"))
    (tmp_path / "mounted").mkdir()
    mount = 'mount --bind "$1" "$2" && mount -o remount,ro,bind "$2" && shift && shift && exec "$@"'
    names = ["unshare", "-m", "sh", "-c", mount, "sh", str(tmp_path / "store"), str(tmp_path / "mounted")]
    if shutil.which("unshare") is None or subprocess.run([*names, "true"], check=False, capture_output=True).returncode:
        pytest.skip("only one who may mount can make a read-only mount")
    script = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"
    inner = f"""
import sys
from sona.errors import StoreReadOnlyError
from sona.storage.store import Store
{READ}
try:
    Store.open(sys.argv[1])
except StoreReadOnlyError:
    print("refused")
"""
    output = run(script, *names, sys.executable, "-c", inner, tmp_path / "mounted")
    assert output == "['a', 'b'] 2 v0\nrefused"


def test_another_users_store_is_told_as_one(shared: Path) -> None:
    Store.open(shared / "store").close()
    script = """
try:
    Store.open(sys.argv[1], read_only=True)
except StoreError as error:
    print(error)
"""
    imports = """
import os, sys
from sona.errors import StoreError
from sona.storage.store import Store
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
else:
    os.chmod(sys.argv[1], 0)
"""
    try:
        assert "another user's" in run(imports + script, shared / "store")
    finally:
        (shared / "store").chmod(0o700)
