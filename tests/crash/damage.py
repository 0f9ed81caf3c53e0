"""Damaged bytes: each read gives what was stored, or an error of the store's own.

Of the journal, of the database, its blob files and its log; single bits and whole stretches. A record that reads other
than it was given, and an error that is none of the store's, is undetected damage. What a damaged index only hides (a
row, a later feedback) must be told by another read, or by SQLite's own check.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from random import Random

import apsw

from sona.config import StoreConfig
from sona.errors import SonaError, StoreCorruptError
from sona.storage.layout import BLOBS
from sona.storage.mapped import FOLDER, SMALLEST_SEGMENT, MappedJournal, scanned_in
from sona.storage.segment import HEADER_BYTES, scan
from sona.storage.store import DATABASE, Store
from tests.crash.host import USUAL, Host, named
from tests.crash.ledger import Ledger, is_trajectory, truth
from tests.crash.reads import Answer, answer, reads, wrong
from tests.crash.run import Run

LOG = f"{DATABASE}-wal"
IN_BLOBS = StoreConfig(queue_bytes=1 << 20, batch_records=16, blob_batch_bytes=0, blob_file_bytes=16384)
BOUND = 64 * SMALLEST_SEGMENT
ROWS, CYCLES = 75, 3
READS = reads([id for number in range(ROWS) for id in named("x", number) if is_trajectory(id)], CYCLES)


def damage_database(run: Run) -> None:
    """A store that was closed: all is in the database."""
    _damage(run, DATABASE, _made(run, closed=True))


def damage_log(run: Run) -> None:
    """One whose host was killed. Behind damage SQLite takes the log to have ended, so what is read may be older."""
    _damage(run, LOG, _made(run, closed=False))


def damage_blobs(run: Run) -> None:
    """The files beside the database."""
    sound = _made(run, closed=True, config=IN_BLOBS)
    expected = _answers(run, sound)
    for number in range(run.rounds):
        bad = run.new_folder()
        shutil.copytree(sound, bad, dirs_exist_ok=True)
        path = run.rng.choice(sorted((bad / BLOBS).glob("*.blob")))
        data = path.read_bytes()
        if number % 8 == 0:
            path.unlink()
        else:
            path.write_bytes(data[: run.rng.randrange(len(data))] if number % 8 == 1 else spoilt(data, run.rng))
        run.counts.faults += 1
        _compare(run, bad, expected, may_be_old=False)
        _write(run, bad)
        shutil.rmtree(bad)


def _made(run: Run, *, closed: bool, config: StoreConfig = USUAL) -> Path:
    """A folder with every kind of row; of a store that was closed, or as a kill leaves it."""
    folder, copy = run.new_folder(), run.new_folder()
    host = Host(folder, Ledger(), config)
    host.store.write_state("probes", bytes(range(256)))
    for number in range(ROWS):
        host.put(*named("x", number))
        if number % 20 == 19:
            host.flush()
            host.cycle(number // 20)
    host.flush()
    host.store.pin("v1")
    if closed:
        host.close()
    for name in (DATABASE,) if closed else (DATABASE, LOG):
        shutil.copy(folder / name, copy / name)
    if (folder / BLOBS).exists():
        shutil.copytree(folder / BLOBS, copy / BLOBS)
    if not closed:
        host.close()
    return copy


def _damage(run: Run, name: str, sound: Path) -> None:
    expected = _answers(run, sound)
    data = {file.name: file.read_bytes() for file in sound.glob(f"{DATABASE}*")}
    for _ in range(run.rounds):
        bad = run.new_folder()
        for other in (DATABASE, LOG):
            if other in data:
                (bad / other).write_bytes(spoilt(data[other], run.rng) if other == name else data[other])
        run.counts.faults += 1
        _compare(run, bad, expected, may_be_old=name == LOG)
        _write(run, bad)
        shutil.rmtree(bad)


def _answers(run: Run, folder: Path) -> dict[str, Answer]:
    """To all that can be asked; none where the store is refused."""
    try:
        with Store.open(folder, read_only=True) as store:
            return {what: answer(ask, store) for what, ask in READS.items()}
    except SonaError:
        return {}
    except Exception as error:
        run.counts.miss(f"reading: an error that is none of the store's: {error!r}")
        return {}


def _compare(run: Run, folder: Path, expected: Mapping[str, Answer], *, may_be_old: bool) -> None:
    given = _answers(run, folder)
    hides = False
    for what, items in given.items():
        sound = expected[what]
        assert not isinstance(sound, SonaError)
        if isinstance(items, SonaError):
            continue
        for one in wrong(what, items, sound, may_be_old=may_be_old):
            run.counts.miss(f"{what} gives {one}"[:300])
        hides = hides or list(items) != list(sound)
    told = any(isinstance(items, SonaError) for items in given.values())
    if hides and not (may_be_old or told or _is_found(folder)):
        run.counts.miss("something is hidden, and no check finds why")


def _is_found(folder: Path) -> bool:
    """Whether SQLite finds the damage, asked for it."""
    connection = apsw.Connection(str(folder / DATABASE), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return bool(connection.execute("PRAGMA integrity_check").get != "ok")
    except apsw.Error:
        return True
    finally:
        connection.close()


def _write(run: Run, folder: Path) -> None:
    """A host goes on with it, or is refused."""
    try:
        with Host(folder, Ledger()) as host:
            host.put(*named("y", 1), "later-x-3")
            host.flush()
            host.cycle(1)
    except SonaError:
        return
    except Exception as error:
        run.counts.miss(f"writing: an error that is none of the store's: {error!r}")


def damage_journal(run: Run) -> None:
    """Of what waits, all is taken up that lies outside the damage, and whatever is missing is told."""
    folder = run.new_folder()
    journal = MappedJournal(folder / FOLDER, BOUND)
    ids = [id for number in range(300) for id in named("j", number)]
    assert all(journal.append(journal.prepare(truth(id))) for id in ids)
    run.counts.acknowledged += len(ids)
    for number in range(run.rounds):
        bad = run.new_folder()
        shutil.copytree(folder / FOLDER, bad / FOLDER)
        path = run.rng.choice(sorted((bad / FOLDER).glob("*.seg")))
        data = path.read_bytes()
        path.write_bytes(data[: run.rng.randrange(1, len(data))] if number % 8 == 0 else spoilt(data, run.rng))
        run.counts.faults += 1
        _take_up(run, bad / FOLDER, ids, _harmed(data, path.read_bytes()))
        shutil.rmtree(bad)
    journal.close()


def _harmed(data: bytes, bad: bytes) -> int:
    """How many of a segment's records the damage touches."""
    starts = {(frame.end - HEADER_BYTES - len(frame.payload)) & ~7: frame.end for frame in scan(data).frames}
    return sum(data[start:end] != bad[start:end] for start, end in starts.items())


def _take_up(run: Run, folder: Path, ids: list[str], harmed: int) -> None:
    told = any(found.skipped for found in scanned_in(folder).values())  # what the log and the doctor go by
    try:
        journal = MappedJournal(folder, BOUND)
    except StoreCorruptError:
        return
    except Exception as error:
        run.counts.miss(f"the journal: an error that is none of the store's: {error!r}")
        return
    found = journal.waiting()
    for record in found:
        if record != truth(record.id):
            run.counts.miss(f"the journal gives a wrong {record.id}")
    if len({record.id for record in found}) < len(ids) - harmed:
        run.counts.lose(f"of {len(ids)} records {len(found)} are left, and {harmed} were damaged")
    if len({record.id for record in found}) < len(ids) and not told:
        run.counts.miss(f"of {len(ids)} records {len(found)} are left, and nothing tells of the others")
    journal.close()


def spoilt(data: bytes, rng: Random) -> bytes:
    """``data`` with a bit, a few bytes or up to a quarter of a page changed."""
    bad = bytearray(data)
    kind = rng.choice(("bit", "bit", "bytes", "zeros", "noise", "moved"))
    at = rng.randrange(len(bad))
    length = min(rng.choice((1, 4, 64, 512, 4096)), len(bad) - at)
    if kind == "bit":
        bad[at] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        for _ in range(rng.randrange(1, 8)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
    elif kind == "zeros":
        bad[at : at + length] = bytes(length)
    elif kind == "noise":
        bad[at : at + length] = rng.randbytes(length)
    else:
        other = rng.randrange(len(bad) - length + 1)
        bad[at : at + length] = data[other : other + length]
    return bytes(bad)
