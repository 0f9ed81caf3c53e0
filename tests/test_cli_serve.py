"""``sona serve`` before it serves."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sona.cli_serve import _check_free
from sona.errors import StoreLockedError
from sona.storage.layout import LOCK
from sona.storage.store import Store

ROOT = Path(__file__).parents[1]
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from sona.__main__ import main; main()"


@pytest.mark.parametrize(("is_store_busy", "said"), [(True, "another process writes to it"), (False, "already in use")])
def test_a_busy_store_or_port_is_refused_before_torch_is_imported(
    tmp_path: Path, is_store_busy: bool, said: str
) -> None:
    with Store.open(tmp_path / "busy"), socket.create_server(("127.0.0.1", 0)) as taken:
        store = tmp_path / ("busy" if is_store_busy else "store")
        words = ("serve", "--store", str(store), "--model", "tiny", "--port", str(taken.getsockname()[1]))
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 2, done.stderr
    assert said in done.stderr.lower()
    assert not (tmp_path / "store").exists()


def test_looking_at_a_store_takes_no_lock_of_it(tmp_path: Path) -> None:
    Store.open(tmp_path / "store").close()
    lock = tmp_path / "store" / LOCK
    lock.write_text("who had it last\n")
    _check_free(tmp_path / "store")
    assert lock.read_text() == "who had it last\n"
    with Store.open(tmp_path / "store"), pytest.raises(StoreLockedError, match=f"pid {os.getpid()}"):
        _check_free(tmp_path / "store")
