"""Make the golden store of the schema in force: ``python -m tests.storage.golden.make``.

A store that was released is never made anew: its bytes are the promise that later versions of sona read them.
"""

from __future__ import annotations

import base64
import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from sona.candidate import Candidate, Mattered, MemoryWeight, Settled
from sona.checks import pack_tokens
from sona.config import StoreConfig
from sona.ports import Claim
from sona.storage.layout import BLOBS
from sona.storage.retention import Limits
from sona.storage.schema import SCHEMA_VERSION
from sona.storage.store import DATABASE, Store
from sona.types import Feedback, Message, Step, ToolCall, Trajectory, Version
from tests.storage.records import feedback, rated, report, run_cycle, trajectory

GOLDEN = Path(__file__).parent
ALL_IN_BLOBS = StoreConfig(blob_batch_bytes=0, blob_file_bytes=4096)
SINCE_SCHEMA_3 = ("learned", "arrivals")
SINCE_SCHEMA_4 = ("candidates", "memory_weights")
"""Tables that an older store has not, so that they are empty once it is brought up."""


def fill(store: Store) -> None:
    """Every table, every field, a version that was rolled back, two that were left out and then rated anew, and one
    that was learned from and then deleted for its age.
    """
    full = Trajectory(
        id="full",
        source="agent-ü",
        created_ns=1_700_000_000_000_000_001,
        messages=[
            Message(role="user", content="¿qué?"),
            Message(role="assistant", content="", tool_calls=(ToolCall(name="lookup", arguments='{"k": 1}'),)),
            Message(role="tool", content="", name="lookup"),
        ],
        response="answer",
        prompt_ids=[1, 2, 3],
        response_ids=[4, 5],
        embedding=[0.5, -1.0, 2.0, 0.25, 1.0, 1.0, 1.0, 1.0],
        steps=[Step(name="tool:lookup", reward=-0.5, latency_s=0.01, content="found", at_ns=7)],
        outcome="failed",
        version="v0",
        recalled=["p1"],
        metadata={"lang": "es"},
    )
    store.append([full, Feedback(id="f1", trajectory_id="full", quality=0.25, giver="judge", at_ns=9, comment="no")])
    store.append([*rated("abc", 0.75), Trajectory(id="unrated", created_ns=1, embedding=[1.0] * 8)])
    rows = store.collect(2).rows
    claims = [
        Claim(seq=rows[0].seq, role="left_out", pattern="p1"),
        Claim(
            seq=rows[1].seq,
            role="train",
            prompt_ids=pack_tokens([6]),
            response_ids=pack_tokens([7, 8]),
            skill="s1",
            pattern="p1",
        ),
    ]
    store.commit_cycle(report(1), claims, None)
    run_cycle(store, publish=True, limit=1, groups={"b": ("s2", "p2")})
    run_cycle(store, publish=True, role="held_out", limit=1, groups={"c": ("s1", "p1")})
    store.append(rated("d", 0.125))
    run_cycle(store, role="left_out", groups={"d": ("", "p1")})
    store.append([feedback("d", 0.875, id="f3")])
    run_cycle(store, groups={"d": ("s2", "p1")})
    old = msgspec.structs.replace(trajectory("old", source="past"), created_ns=2)
    store.append([old, feedback("old")])
    run_cycle(store)
    store.prune(Limits(days=365.0, trajectories=0, per_source=0, unlearned=True), now_ns=1_700_000_000_000_000_000)
    store.set_current("v2")
    store.append([Feedback(id="f2", trajectory_id="full", quality=1.0, at_ns=11)])
    store.write_state("probes", bytes(range(256)))
    _fill_review(store)


def _fill_review(store: Store) -> None:
    """A candidate in each state, one of them from the deleted trajectory, and weights of memories."""
    candidates = [
        Candidate(
            trajectory_id=name,
            at_ns=1_700_000_000_000_000_000 + place,
            divergence=2.0 * place - 0.5,
            tokens=3,
            entry=place,
            source="agent-ü",
            response="río",
            context_tail="¿qué?",
            context_ids=[1, 2, 3],
            bare_ids=[1, 3],
            continuation_ids=[4, 5],
            alternate="no sé" if place else None,
            mattered=[Mattered(key="k1", nats=1.5)],
        )
        for place, name in enumerate(["full", "full", "a", "b", "c"])
    ]
    rows = store.candidates
    assert rows.add(candidates) == [1, 2, 3, 4, 5]
    rows.change([2, 4, 5], "approved", by="ana")
    rows.change([3], "rejected", by="ana", note="private")
    rows.change([4], "sent", by="train", note="job-1")
    parent, cycle = store.current().id, store.next_cycle()
    version = Version(id=f"v{cycle}", parent=parent, cycle=cycle, created_ns=cycle, digest="00")
    done = report(cycle, status="published", parent=parent, version=version.id)
    store.commit_cycle(done, [], version, [Settled(seq=5, state="trained", skill="s1")])
    store.set_current(parent)
    weights = [MemoryWeight(key="k1", weight=0.75, last_scored_ns=7, times=4, source="agent-ü")]
    store.memory_weights.put([*weights, MemoryWeight(key="k2", weight=2.0, last_scored_ns=8)])


def contents(store: Store) -> Any:
    """All that can be read of a store, as plain JSON values."""
    counts = msgspec.structs.asdict(store.counts())
    del counts["bytes_on_disk"]
    versions = [msgspec.structs.replace(one, created_ns=0) if one.id == "v0" else one for one in store.versions()]
    everything = {
        "stored": list(store.iterate()),
        "feedback": [one for row in store.iterate() for one in store.feedback_of(row.trajectory.id)],
        "collected": store.collect(100),
        "reports": store.reports(),
        "claims": [store.claims(cycle) for cycle in range(1, store.next_cycle())],
        "versions": versions,
        "current": store.current().id,
        "probes": store.read_state("probes"),
        "sources": store.sources(),
        "counts": counts,
        **{name: rows_of(store, name) for name in (*SINCE_SCHEMA_3, *SINCE_SCHEMA_4)},
    }
    return json.loads(msgspec.json.encode(everything))


def rows_of(store: Store, table: str) -> Any:
    """A table that only sums of are asked for, as it lies."""
    with store._snapshot() as connection:
        return [list(map(_plain, row)) for row in connection.execute(f"SELECT * FROM {table}")]


def _plain(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def unpack(form: int, folder: Path) -> Any:
    """Lay the golden store of a schema into ``folder``, and return what it holds."""
    golden = GOLDEN / f"v{form}"
    for packed in golden.rglob("*.gz"):
        file = folder / packed.relative_to(golden).with_suffix("")
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(gzip.decompress(packed.read_bytes()))
    return {name: [] for name in (*SINCE_SCHEMA_3, *SINCE_SCHEMA_4)} | json.loads(
        (golden / "contents.json").read_text()
    )


def main() -> None:
    folder = GOLDEN / f"v{SCHEMA_VERSION}"
    if (folder / f"{DATABASE}.gz").exists():
        raise SystemExit(f"{folder} is there, and is never made anew")
    with tempfile.TemporaryDirectory() as scratch:
        with Store.open(scratch, config=ALL_IN_BLOBS) as store:
            fill(store)
            text = json.dumps(contents(store), indent=1, ensure_ascii=False)
        for file in (Path(scratch) / DATABASE, *(Path(scratch) / BLOBS).glob("*.blob")):
            packed = folder / file.relative_to(scratch).with_suffix(f"{file.suffix}.gz")
            packed.parent.mkdir(parents=True, exist_ok=True)
            packed.write_bytes(gzip.compress(file.read_bytes(), mtime=0))
    (folder / "contents.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
