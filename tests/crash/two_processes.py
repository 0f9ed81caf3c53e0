"""Two processes at one store: one writes, however they end, and readers see it whole."""

from __future__ import annotations

import shutil

from sona.errors import StoreError, StoreLockedError
from sona.storage.store import Store
from tests.crash.host import Host, named
from tests.crash.killed_host import KILLS_A_STORE, look
from tests.crash.ledger import Ledger
from tests.crash.run import Run


def kill_beside_a_reader(run: Run) -> None:
    """One reader outlives many writers; beside each no second one gets in."""
    for first in range(0, run.rounds, KILLS_A_STORE):
        folder, ledger = run.new_folder(), Ledger()
        Store.open(folder).close()
        with Store.open(folder, read_only=True) as reader:
            for number in range(first, min(first + KILLS_A_STORE, run.rounds)):
                life = run.nursery.bear("record", str(folder), f"n{number}", tell=ledger.says)
                life.wait_for("ready")
                _is_locked_out(run, folder)
                run.counts.kills += life.kill(run.rng.uniform(0.0, 0.03))
                ledger.check(reader, run.counts, power_failed=True)  # what was only recorded still lies in the journal
            look(folder, ledger, run.counts)
            ledger.check(reader, run.counts)
        run.counts.acknowledged += ledger.acknowledged
        shutil.rmtree(folder)


def _is_locked_out(run: Run, folder: object) -> None:
    try:
        Store.open(str(folder)).close()
    except StoreLockedError:
        return
    except StoreError as error:
        run.counts.miss(f"a second writer is told {error!r}")
        return
    run.counts.miss("a second writer was let in")


def kill_readers(run: Run) -> None:
    """A reader that dies leaves nothing behind that a writer, or the next reader, would stumble over."""
    folder, ledger = run.new_folder(), Ledger()
    with Host(folder, ledger) as host:
        for number in range(run.rounds):
            host.put(*named("h", number))
            life = run.nursery.bear("read", str(folder), f"r{number}", tell=lambda _: None)
            life.wait_for("ready")
            host.put(*named("g", number))
            host.flush()
            if number % 5 == 0:
                host.cycle(host.store.next_cycle())
            run.counts.kills += life.kill(run.rng.uniform(0.0, 0.01))
    look(folder, ledger, run.counts)
    run.counts.acknowledged += ledger.acknowledged
