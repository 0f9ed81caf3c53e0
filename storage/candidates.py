"""Candidates in the store: one row a response, by its trajectory and time; see :mod:`sona.candidate`."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import apsw
import msgspec

from sona.candidate import KEPT_REJECTED, LEARNED, STATES, Candidate, Change, Settled, State, check_change, check_is
from sona.checks import check_one_of
from sona.errors import CycleError, StateChangeError, UnknownIdError
from sona.storage.rows import check_crc, decode, encode, row_crc

if TYPE_CHECKING:
    from sona.storage.transactions import Snapshot, Transact

_COLUMNS = "seq, trajectory, at_ns, source, state, divergence, payload, crc"
_BY_SEQ = f"SELECT {_COLUMNS} FROM candidates WHERE seq = ?"
_BY_KEY = f"SELECT {_COLUMNS} FROM candidates WHERE trajectory = ? AND at_ns = ?"
_OF_TRAJECTORY = f"SELECT {_COLUMNS} FROM candidates WHERE trajectory = ?"
_HEAVIEST = (
    f"SELECT {_COLUMNS} FROM candidates WHERE state = ? AND divergence >= ? ORDER BY divergence DESC, seq LIMIT ?"
)
_OLDEST = f"SELECT {_COLUMNS} FROM candidates WHERE state = ? ORDER BY seq LIMIT ?"
_OF_STATE = f"SELECT {_COLUMNS} FROM candidates WHERE state = ?"
_INSERT = "INSERT INTO candidates (trajectory, at_ns, source, state, divergence, payload, crc) VALUES (?,?,?,?,?,?,?)"
_NEXT = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'candidates'), 0) + 1"
TRIES = 3
"""So many versions that the gate turns down before a candidate goes back to a person."""


class CandidateRows:
    """The candidates of a store; the port is :class:`sona.ports.CandidateStore`."""

    def __init__(self, transact: Transact, snapshot: Snapshot) -> None:
        self._transact, self._snapshot = transact, snapshot

    def add(self, candidates: Sequence[Candidate]) -> list[int]:
        """Store new ones, durably; for each the number that it got, 0 for what is known by its key: that stays as it
        is, whatever its state.
        """
        return self._transact(lambda connection: [_add(connection, one) for one in candidates])

    def change(
        self,
        seqs: Sequence[int],
        state: State,
        *,
        by: str,
        note: str = "",
        again: bool = False,
        only: Collection[State] = STATES,
    ) -> list[Candidate]:
        """Bring all into ``state``, durably, or none; returns them as they are then. What is in it already stays as it
        is, or with ``again`` gets the change into its history as well. Of the rejected ones the ten newest are kept.

        Raises:
            UnknownIdError: there is no candidate of such a number.
            StateChangeError: one can't come into the state from where it is, or is in none of ``only``.
            StoreCorruptError: the row of one is damaged.
        """
        moved = Change(state=state, at_ns=time.time_ns(), by=by, note=note)

        def work(connection: apsw.Connection) -> list[Candidate]:
            before = [_get(connection, seq) for seq in dict.fromkeys(seqs)]
            for one in before:
                check_is(one, only)
            changed = [_changed(connection, one, moved, again) for one in before]
            if state == "rejected":
                _drop_rejected(connection)
            return changed

        return self._transact(work)

    def set_alternate(self, seq: int, text: str) -> None:
        """Keep what the model answers without memories, durably; UnknownIdError where there is no such candidate."""

        def work(connection: apsw.Connection) -> None:
            _put(connection, msgspec.structs.replace(_get(connection, seq), alternate=text))

        self._transact(work)

    def get(self, seq: int) -> Candidate:
        """One candidate by its number; UnknownIdError where there is none."""
        with self._snapshot() as connection:
            return _get(connection, seq)

    def knows(self, trajectory_id: str, at_ns: int) -> bool:
        """Whether a response is a candidate, in whatever state."""
        with self._snapshot() as connection:
            row = connection.execute(_BY_KEY, (trajectory_id, at_ns)).get
            return row is not None and bool(_read(row))  # a damaged row is an error, never "unknown"

    def heaviest(self, state: State, *, above: float = float("-inf"), limit: int = 200) -> list[Candidate]:
        """Those in a state whose divergence is at least ``above`` nats, the largest first."""
        check_one_of(state, STATES, "state")
        least = max(above, -1.7e308)
        with self._snapshot() as connection:
            return [_read(row) for row in connection.execute(_HEAVIEST, (state, least, limit))]

    def approved(self, limit: int) -> list[Candidate]:
        """What waits for a cycle, oldest first."""
        with self._snapshot() as connection:
            return [_read(row) for row in connection.execute(_OLDEST, ("approved", limit))]

    def trained(self, cycles: Iterable[int]) -> list[Candidate]:
        """What these cycles moved into the weights and is not deleted, by its number."""
        wanted = frozenset(cycles)
        with self._snapshot() as connection:
            found = [one for one in _of_state(connection, "trained") if one.cycle in wanted and one.continuation_ids]
        return sorted(found, key=lambda one: one.seq)

    def counts(self) -> dict[State, int]:
        """How many there are in each state."""
        with self._snapshot() as connection:
            rows: dict[Any, Any] = dict(connection.execute("SELECT state, count(*) FROM candidates GROUP BY state"))
        return {state: int(rows.get(state, 0)) for state in STATES}


# In a transaction


def settle(connection: apsw.Connection, cycle: int, settled: Sequence[Settled], *, published: bool) -> None:
    """Say, in the transaction that commits a cycle, what it did with approved candidates.

    Raises:
        CycleError: one is not approved, or not there, any more; or it was trained without a version.
    """
    at_ns = time.time_ns()
    for one in settled:
        if one.state == "trained" and not published:
            raise CycleError(f"candidate {one.seq}: trained by cycle {cycle}, which published nothing")
        try:
            candidate = _get(connection, one.seq)
            if candidate.state != "approved":
                raise StateChangeError(f"candidate {one.seq}: it is {candidate.state}")
        except (UnknownIdError, StateChangeError) as error:
            raise CycleError(f"cycle {cycle} took what is not approved any more ({error}); run it again") from None
        state, tries, note = one.state, candidate.tries, one.note
        if state == "approved":
            tries += 1
            state = "approved" if tries < TRIES else "new"
        if state == "trained":
            candidate = msgspec.structs.replace(candidate, cycle=cycle, skill=one.skill)
        candidate = msgspec.structs.replace(candidate, tries=tries if state == "approved" else 0)
        _put(connection, candidate)
        _changed(connection, candidate, Change(state=state, at_ns=at_ns, by=f"cycle {cycle}", note=note))
    if any(one.state == "rejected" for one in settled):
        _drop_rejected(connection)


def has_approved(connection: apsw.Connection, trajectory_id: str) -> bool:
    """Whether a response of a trajectory is approved and waits for training, or is sent and may come back."""
    return any(one.state in ("approved", "sent") for one in _of_trajectory(connection, trajectory_id))


def forget_candidates(connection: apsw.Connection, trajectory_id: str) -> None:
    """Take a deleted trajectory's candidates away, in the transaction under way. Of what training has accepted the key
    stays, without a text.
    """
    for one in list(_of_trajectory(connection, trajectory_id)):
        if one.state in LEARNED:
            _put(connection, one.forgotten())
        else:
            connection.execute("DELETE FROM candidates WHERE seq = ?", (one.seq,))


def cycles_of(connection: apsw.Connection, source: str) -> set[int]:
    """The cycles that moved a candidate of a source into the weights."""
    sql = f"SELECT {_COLUMNS} FROM candidates WHERE source = ? AND state = 'trained'"
    return {one.cycle for one in map(_read, connection.execute(sql, (source,))) if one.cycle}


def _of_trajectory(connection: apsw.Connection, trajectory_id: str) -> Iterator[Candidate]:
    yield from map(_read, connection.execute(_OF_TRAJECTORY, (trajectory_id,)))


def _of_state(connection: apsw.Connection, state: State) -> Iterator[Candidate]:
    yield from map(_read, connection.execute(_OF_STATE, (state,)))


def _get(connection: apsw.Connection, seq: int) -> Candidate:
    row = connection.execute(_BY_SEQ, (seq,)).get
    if row is None:
        raise UnknownIdError(f"candidate {seq}: there is none of this number; 'sona candidates list' shows those left")
    return _read(row)


def _read(row: tuple[Any, ...]) -> Candidate:
    seq, trajectory, *values, crc = row
    name = f"candidate {seq!r}, of trajectory {trajectory!r}"
    check_crc(crc, seq, trajectory, *values, row=name)
    return decode(values[-1], Candidate, name)


def _add(connection: apsw.Connection, candidate: Candidate) -> int:
    known = connection.execute(_BY_KEY, candidate.key).get
    if known is not None:
        _read(known)
        return 0
    seq = int(connection.execute(_NEXT).get)
    now = Change(state="new", at_ns=time.time_ns(), by="scoring")
    _check_new(candidate)
    candidate = msgspec.structs.replace(candidate, seq=seq, changes=(now,))
    values = _values(candidate)
    connection.execute(_INSERT, (*values, row_crc(seq, *values)))
    assert connection.last_insert_rowid() == seq
    return seq


def _check_new(candidate: Candidate) -> None:
    if candidate.state != "new":
        name = f"candidate of trajectory {candidate.trajectory_id!r}"
        raise StateChangeError(f"{name}: it comes as {candidate.state}; only what is new is added")


def _values(candidate: Candidate) -> tuple[Any, ...]:
    key = (candidate.trajectory_id, candidate.at_ns, candidate.source, candidate.state, candidate.divergence)
    return (*key, encode(candidate))


def _changed(connection: apsw.Connection, candidate: Candidate, change: Change, again: bool = False) -> Candidate:
    check_change(candidate.state, change.state, str(candidate.seq))
    if candidate.state == change.state and not again:
        return candidate
    changed = msgspec.structs.replace(candidate, state=change.state, changes=(*candidate.changes, change))
    _put(connection, changed)
    return changed


def _put(connection: apsw.Connection, candidate: Candidate) -> None:
    values = _values(candidate)
    sql = "UPDATE candidates SET state = ?, divergence = ?, payload = ?, crc = ? WHERE seq = ?"
    connection.execute(sql, (*values[3:], row_crc(candidate.seq, *values), candidate.seq))


def _drop_rejected(connection: apsw.Connection) -> None:
    """All but the newest ones."""
    rejected = sorted(_of_state(connection, "rejected"), key=lambda one: (one.changes[-1].at_ns, one.seq))
    for one in rejected[:-KEPT_REJECTED]:
        connection.execute("DELETE FROM candidates WHERE seq = ?", (one.seq,))
