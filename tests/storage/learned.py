"""Cycles that leave a version with files behind, as few and small as a test can bear."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from sona.bank.bank import Bank
from sona.ports import Claim, Role
from sona.storage.store import Store
from sona.storage.versions import Versions
from sona.types import Version
from tests.storage.records import report

ADAPTER = "adapter/adapter_model.safetensors"


def publish(store: Store, files: Mapping[str, bytes] | None = None, *, role: Role = "train") -> Version:
    """Claim all that is new, and publish ``v<cycle>`` with an adapter that it shares with its parent, and ``files``."""
    number, parent, folders = store.next_cycle(), store.current(), Versions(store.path)
    claims = [
        Claim(seq=row.seq, role=role, feedback_seq=row.feedback_seq, skill="s1", pattern=f"p{row.seq % 2}")
        for row in store.collect(1000).rows
    ]
    with folders.draft() as draft:
        (draft / "adapter").mkdir()
        if parent.parent is None:
            (draft / ADAPTER).write_bytes(b"weights" * 100)
        else:
            os.link(folders.path(parent.id) / ADAPTER, draft / ADAPTER)
        version = Version(id=f"v{number}", parent=parent.id, cycle=number, created_ns=number, digest="")
        about = {"version.json": msgspec.json.encode(version), "bank.msgpack": Bank().to_bytes()}
        for name, data in {**about, **(files or {})}.items():
            (draft / name).write_bytes(data)
        version = msgspec.structs.replace(version, digest=folders.publish(draft, version.id))
    store.commit_cycle(report(number, status="published", parent=parent.id, version=version.id), claims, version)
    return version


def spoil(file: Path) -> None:
    """Change one bit in the middle of a file, which may be shared, in place."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
