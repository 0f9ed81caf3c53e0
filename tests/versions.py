"""Versions with adapters, skills and banks in them, made without training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from sona.bank.bank import Bank, BankState
from sona.bank.skills import SkillSet
from sona.loops.checkpoint import AdapterFiles, Checkpoint, read_checkpoint, write_checkpoint
from sona.loops.version_files import ADAPTER, adapter_root
from sona.patterns import Pattern, PatternChange
from sona.ports import Claim
from sona.storage.store import Store
from sona.storage.versions import Versions
from sona.types import CycleReport, Funnel, GateDecision, Version

Array = npt.NDArray[np.float32]
Layers = Mapping[str, tuple[Array, Array]]
"""By the name of a layer of the base model the matrices B (out, r) and A (r, in)."""


def layers(seed: int, *, rank: int = 4, names: Sequence[str] = ("model.layers.0.up", "model.layers.1.up")) -> Layers:
    """Random ones, from 6 to 5 numbers wide."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(size=(5, rank)).astype(np.float32), rng.normal(size=(rank, 6)).astype(np.float32))
        for name in names
    }


def write_adapter(folder: Path, held: Layers, *, alpha: float = 16, **config: Any) -> Path:
    """A PEFT folder; ``config`` is written over what is usual."""
    folder.mkdir(parents=True)
    tensors = {
        f"base_model.model.{name}.lora_{letter}.weight": matrix
        for name, (B, A) in held.items()
        for letter, matrix in (("A", A), ("B", B))
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    rank = max(len(A) for _, A in held.values()) if held else 1
    about = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": ["up"], "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


def bank(patterns: Sequence[Pattern], changes: Sequence[PatternChange] = (), *, forgotten: int = 0) -> Bank:
    """One of patterns of 8 numbers."""
    state = BankState(
        width=8,
        mean=np.zeros(8, "<f4").tobytes(),
        patterns=tuple(patterns),
        changes=tuple(changes),
        forgotten=forgotten,
    )
    return Bank.from_bytes(msgspec.msgpack.encode(state))


def publish_version(
    store: Store,
    *,
    adapters: Mapping[str, Layers] | None = None,
    without: Sequence[str] = (),
    held: Bank | None = None,
    skills: SkillSet | None = None,
    metrics: Mapping[str, float] | None = None,
    settings: Mapping[str, Any] | None = None,
    gate: GateDecision | None = None,
) -> Version:
    """Claim all that is new and publish ``v<cycle>``. Its parent's adapters stay the same files where no others are
    given, but for those that it is to be ``without``; bank and skills stay where there are none given.
    """
    number, parent, folders = store.next_cycle(), store.current(), Versions(store.path)
    before = read_checkpoint(folders, parent)
    claims = [
        Claim(seq=row.seq, role="train" if place else "held_out", feedback_seq=row.feedback_seq, skill="s1")
        for place, row in enumerate(store.collect(1000).rows)
    ]
    trained = max(len(claims) - 1, 0)
    with folders.draft() as draft:
        files = {name: one for name, one in before.adapters.items() if name not in without}
        for name, new in (adapters or {}).items():
            files[name] = AdapterFiles(adapter_root(draft, name))
            write_adapter(adapter_root(draft, name) / ADAPTER, new)
        version = Version(
            id=f"v{number}",
            parent=parent.id,
            cycle=number,
            created_ns=1_700_000_000_000_000_000 + number,
            digest="",
            trajectories=trained,
            metrics=dict(metrics or {}),
            settings=dict(settings or {}),
        )
        state = Checkpoint(before.bank if held is None else held, files, before.skills if skills is None else skills)
        write_checkpoint(draft, state, version)
        version = msgspec.structs.replace(version, digest=folders.publish(draft, version.id))
    report = CycleReport(
        cycle=number,
        status="published",
        reason="a test",
        funnel=Funnel(collected=len(claims), trained=trained, held_out=len(claims) - trained),
        parent=parent.id,
        version=version.id,
        gate=gate,
        metrics=dict(metrics or {}),
    )
    store.commit_cycle(report, claims, version)
    return version
