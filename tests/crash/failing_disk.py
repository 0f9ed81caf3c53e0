"""A disk that refuses: I/O errors, writes that are cut short, no room. Once it works again all that was recorded
becomes durable.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import apsw

from sona.errors import SonaError, StoreError
from sona.storage.schema import SCHEMA_VERSION
from sona.storage.store import Store
from tests.crash.counts import Counts
from tests.crash.host import SMALL, Host, named
from tests.crash.killed_host import look
from tests.crash.ledger import Ledger
from tests.crash.run import Run
from tests.crash.torn_disk import Disk, torn_disk
from tests.storage.golden.make import contents, unpack

ERRORS: tuple[Callable[[str], apsw.Error], ...] = (apsw.IOError, apsw.FullError)
KINDS = ("write", "sync", "truncate", "read")


class _Trouble:
    """While it is on, operations fail: each by chance, or the next few of one kind."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._kinds: tuple[str, ...] = ()
        self._share = 0.0
        self._left = 0
        self.failed = 0

    def begin(self) -> None:
        if self._rng.random() < 0.5:
            self._kinds, self._share, self._left = KINDS, self._rng.choice((0.01, 0.1, 0.5, 1.0)), 1 << 30
        else:
            self._kinds, self._share, self._left = (self._rng.choice(KINDS),), 1.0, self._rng.randrange(1, 4)

    def end(self) -> None:
        self._left = 0

    def failure(self, operation: str) -> apsw.Error | None:
        if self._left <= 0 or operation not in self._kinds or self._rng.random() >= self._share:
            return None
        self._left -= 1
        self.failed += 1
        return self._rng.choice(ERRORS)(f"the disk refused to {operation}")


def fail_at_work(run: Run) -> None:
    """While it records, commits and runs cycles, also as it opens and closes; now and then the power fails too."""
    for number in range(run.rounds):
        folder, ledger, trouble = run.new_folder(), Ledger(), _Trouble(run.rng)
        cuts: list[tuple[Path, Ledger]] = []
        with torn_disk(run.rng) as disk:

            def maybe_cut(disk: Disk = disk, ledger: Ledger = ledger, cuts: list[tuple[Path, Ledger]] = cuts) -> None:
                if run.rng.random() < 0.003:
                    cuts.append((run.new_folder(), ledger.copy()))  # the ledger first: it only grows
                    disk.power_off(cuts[-1][0])

            disk.failure, disk.before_operation = trouble.failure, maybe_cut
            for turn in range(4):
                _turn(run, folder, ledger, trouble, f"f{number}-{turn}")
        look(folder, ledger, run.counts)
        for left, then in cuts:
            look(left, then, run.counts, power_failed=True)
            shutil.rmtree(left)
        run.counts.faults += trouble.failed + len(cuts)
        run.counts.acknowledged += ledger.acknowledged
        shutil.rmtree(folder)


def _turn(run: Run, folder: Path, ledger: Ledger, trouble: _Trouble, name: str) -> None:
    """Open, work in trouble, recover, and close in trouble."""
    if run.rng.random() < 0.3:
        trouble.begin()
    with _only_typed(run.counts, "opening"):
        Host(folder, Ledger(), SMALL).drop()
    trouble.end()
    host = Host(folder, ledger, SMALL)
    for number in range(30):
        if run.rng.random() < 0.3:
            trouble.begin()
        with _only_typed(run.counts, "at work"):
            _do_something(host, named(name, number), run.rng)
        if run.rng.random() < 0.5:
            trouble.end()
    trouble.end()
    with _nothing_left(run.counts):
        host.flush()
    host.put(*named(name, 30))
    trouble.begin()
    host.drop()
    trouble.end()


def _do_something(host: Host, ids: list[str], rng: Random) -> None:
    host.put(*ids)
    if rng.random() < 0.4:
        host.flush()
    if rng.random() < 0.1:
        host.cycle(host.store.next_cycle())


@contextmanager
def _only_typed(counts: Counts, where: str) -> Iterator[None]:
    """The store's own errors may come, and no other ones."""
    try:
        yield
    except SonaError:
        pass
    except Exception as error:
        counts.miss(f"{where}: {error!r}")


@contextmanager
def _nothing_left(counts: Counts) -> Iterator[None]:
    """The disk works again, so no error is right."""
    try:
        yield
    except StoreError as error:
        counts.lose(f"could not be stored when the disk worked again: {error}")


def fail_to_migrate(run: Run) -> None:
    forms = range(1, SCHEMA_VERSION)
    for number in range(run.rounds):
        folder, trouble = run.new_folder(), _Trouble(run.rng)
        expected = unpack(forms[number % len(forms)], folder)
        with torn_disk(run.rng) as disk:
            disk.failure = trouble.failure
            trouble.begin()
            with _only_typed(run.counts, "migrating"):
                Store.open(folder).close()
            trouble.end()
            with Store.open(folder) as store:
                if contents(store) != expected:
                    run.counts.lose(f"what a store of schema {forms[number % len(forms)]} held")
        run.counts.faults += trouble.failed
        shutil.rmtree(folder)


def fill_the_disk(run: Run) -> None:
    """A real one of 16 MiB, filled to where the store, its log or its journal can't grow."""
    with _small_disk(run) as disk:
        if disk is None:
            return
        for number in range(run.rounds):
            folder, ledger = disk / "store", Ledger()
            folder.mkdir()
            if number % 5 == 4:
                _migrate_when_full(run, folder, disk / "ballast")
            else:
                _work_when_full(run, folder, ledger, disk / "ballast", number)
                look(folder, ledger, run.counts)
            run.counts.acknowledged += ledger.acknowledged
            shutil.rmtree(folder)


def _migrate_when_full(run: Run, folder: Path, ballast: Path) -> None:
    expected = unpack(1, folder)
    _fill(ballast, keep_free=run.rng.choice((0, 1, 8, 40)) * 4096)
    with _only_typed(run.counts, "migrating on a full disk"):
        run.counts.faults += 1
        Store.open(folder).close()
        run.counts.faults -= 1  # there was room enough
    ballast.unlink()
    with Store.open(folder) as store:
        if contents(store) != expected:
            run.counts.lose("what a store of schema 1 held")


def _work_when_full(run: Run, folder: Path, ledger: Ledger, ballast: Path, number: int) -> None:
    """Fill the disk with a host at work; when there is room again, all that it recorded is stored."""
    host, name = Host(folder, ledger, SMALL), f"e{number}"
    _fill(ballast, keep_free=(0, 1, 8, 64, 200)[number % 6 % 5] * 4096)  # the first time none: the short form hits it
    for place in range(100):
        with _only_typed(run.counts, "on a full disk"):
            host.put(*named(name, place))
            if place == 99 or run.rng.random() < 0.1:
                host.flush()
            if run.rng.random() < 0.05:
                host.cycle(host.store.next_cycle())
    told = host.writer.counts()
    run.counts.faults += told.failed_attempts + told.rejected
    goes_on = run.rng.random() < 0.5
    if not goes_on:
        host.drop()
    ballast.unlink()
    if goes_on:
        with _nothing_left(run.counts):
            host.flush()
        host.close()


def _fill(path: Path, keep_free: int) -> None:
    """Leave about so many bytes."""
    state = os.statvfs(path.parent)
    with path.open("wb") as file, suppress(OSError):  # the journal may have grown meanwhile
        os.posix_fallocate(file.fileno(), 0, max(4096, state.f_bavail * state.f_bsize - keep_free))


@contextmanager
def _small_disk(run: Run) -> Iterator[Path | None]:
    """A file system of its own, where this user may mount one."""
    folder = run.new_folder()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "sona-crash", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        run.skipped = "a small tmpfs can't be mounted by this user"
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a failure may have left files open
