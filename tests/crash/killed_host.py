"""``kill -9`` at a random moment of everything that a host does with its store."""

from __future__ import annotations

import shutil
from pathlib import Path

from sona.errors import StoreError
from sona.storage.doctor import diagnose
from sona.storage.schema import SCHEMA_VERSION
from sona.storage.store import Store
from tests.crash.counts import Counts
from tests.crash.host import Host
from tests.crash.ledger import Ledger
from tests.crash.run import Run
from tests.storage.golden.make import contents, unpack

KILLS_A_STORE = 12


def kill_recording(run: Run) -> None:
    _kill_lives(run, "record", within_s=0.05, once="ready")


def kill_recycling(run: Run) -> None:
    _kill_lives(run, "recycle", within_s=0.05, once="ready")


def kill_committing(run: Run) -> None:
    _kill_lives(run, "commit", within_s=0.05, once="ready")


def kill_cycles(run: Run) -> None:
    _kill_lives(run, "cycle", within_s=0.08, once="ready")


def kill_pruning(run: Run) -> None:
    """While it deletes, and overwrites what it has deleted."""
    _kill_lives(run, "prune", within_s=0.08, once="ready")


def kill_opening(run: Run) -> None:
    """While it takes up what a life before it left in the journal."""
    _kill_lives(run, "open_and_close", within_s=0.06, before="stuck")


def kill_closing(run: Run) -> None:
    _kill_lives(run, "open_and_close", within_s=0.02, once="closing")


def kill_migrating(run: Run) -> None:
    """Each store of an older form, killed a few times, holds after all what it held."""
    forms = range(1, SCHEMA_VERSION)
    for number in range(run.rounds):
        folder = run.new_folder()
        expected = unpack(forms[number % len(forms)], folder)
        for _ in range(3):
            life = run.nursery.bear("migrate", str(folder), "", tell=lambda _: None)
            run.counts.kills += life.kill(run.rng.uniform(0.0, 0.012))
        with Store.open(folder) as store:
            if contents(store) != expected:
                run.counts.lose(f"what a store of schema {forms[number % len(forms)]} held")
        shutil.rmtree(folder)


def _kill_lives(run: Run, life: str, within_s: float, once: str | None = None, before: str | None = None) -> None:
    """Kill lives one after another on one store, which is looked at now and then; the next life takes it as it is."""
    folder, ledger = run.new_folder(), Ledger()
    for number in range(run.rounds):
        if before is not None:
            stuck = run.nursery.bear(before, str(folder), f"b{number}", tell=ledger.says)
            run.counts.kills += stuck.kill(0.0, once="waiting")
        born = run.nursery.bear(life, str(folder), f"n{number}", tell=ledger.says)
        run.counts.kills += born.kill(run.rng.uniform(0.0, within_s), once=once)
        is_last = number % KILLS_A_STORE == KILLS_A_STORE - 1 or number == run.rounds - 1
        if is_last or run.rng.random() < 0.25:
            look(folder, ledger, run.counts)
        if is_last:
            run.counts.acknowledged += ledger.acknowledged
            shutil.rmtree(folder)
            folder, ledger = run.new_folder(), Ledger()


def look(folder: Path, ledger: Ledger, counts: Counts, *, power_failed: bool = False) -> None:
    """Open the store as the next host would, let it store what waits, and compare."""
    try:
        with Host(folder, Ledger()) as host:
            host.flush()
        with Store.open(folder, read_only=True) as store:
            ledger.check(store, counts, power_failed=power_failed)
        # A host's versions have no files.
        found = [one for one in diagnose(folder).findings if one.severity != "note" and "version" not in one.where]
        if found:
            counts.miss(f"a doctor finds {found}")
    except StoreError as error:
        counts.lose(f"a whole store: {error}")
    except Exception as error:
        counts.miss(f"an error that is none of the store's: {error!r}")
