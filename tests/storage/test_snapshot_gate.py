"""Who overwrites waits for those that read before, and for nobody else."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from sona.storage.snapshot_gate import SnapshotGate, make_gate


def test_readers_that_come_later_are_not_waited_for(tmp_path: Path) -> None:
    make_gate(tmp_path)
    mine, other = SnapshotGate(tmp_path), SnapshotGate(tmp_path)
    assert mine.passed(0.0)
    with other.shared():
        with mine.shared():
            assert not mine.passed(0.0)
        assert not mine.passed(0.0)
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            with other.shared():
                time.sleep(0.002)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    try:
        assert all(mine.passed(10.0) for _ in range(20)), "though at no moment nobody reads"
    finally:
        stop.set()
        for reader in readers:
            reader.join()


def test_a_forked_child_keeps_no_reader_alive(tmp_path: Path) -> None:
    make_gate(tmp_path)
    gate = SnapshotGate(tmp_path)
    with gate.shared():
        child = os.fork()
        if not child:
            time.sleep(30)
            os._exit(0)
    try:
        assert gate.passed(1.0)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_forked_child_that_leaves_the_block_takes_nothing_from_its_parent(tmp_path: Path) -> None:
    make_gate(tmp_path)
    gate = SnapshotGate(tmp_path)
    with ExitStack() as stack:
        stack.enter_context(gate.shared())
        child = os.fork()
        if not child:
            stack.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert not gate.passed(0.0)
    assert gate.passed(0.0)
