"""A store of versions whose adapters surely change the shipped model's answers, made without training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from sona.bank.bank import Bank
from sona.bank.skills import SkillSet
from sona.config import LoraConfig
from sona.learn.lora import attach, save_adapter
from sona.loops.checkpoint import AdapterFiles, Checkpoint, write_checkpoint
from sona.loops.version_files import ADAPTER, PROOF, adapter_root, write_proof
from sona.serving.local import LocalModel
from sona.storage.store import Store
from sona.storage.versions import Versions
from sona.types import CycleReport, Funnel, Version
from tests.serving.noisy_adapter import write_noisy_adapter


def publish_noisy(
    store: Store, model: LocalModel, seeds: Mapping[str, int], *, empty: bool = False, proof: bool = True
) -> Version:
    """A version with an adapter of rank 2 for each of ``seeds``; ``empty``: adapters as they are before training."""
    number, folders = store.next_cycle(), Versions(store.path)
    with folders.draft() as draft:
        files = {}
        for name, seed in seeds.items():
            files[name] = AdapterFiles(adapter_root(draft, name))
            _write(model, adapter_root(draft, name) / ADAPTER, seed, empty=empty)
        about = Version(id=f"v{number}", parent=store.current().id, cycle=number, created_ns=number, digest="")
        write_checkpoint(draft, Checkpoint(Bank(), files, SkillSet()), about)
        if proof:
            write_proof(draft, model)
        version = msgspec.structs.replace(about, digest=folders.publish(draft, about.id))
    report = CycleReport(
        cycle=number,
        status="published",
        reason="a test",
        funnel=Funnel(collected=0, trained=0, held_out=0),
        parent=about.parent or "",
        version=version.id,
    )
    store.commit_cycle(report, [], version)
    return version


def _write(model: LocalModel, folder: Path, seed: int, *, empty: bool) -> None:
    if empty:
        save_adapter(attach(model.trainable_copy(), LoraConfig(rank=2), seed), folder)
    else:
        write_noisy_adapter(model, folder, seed)


def forget_vocabulary(proof: Path) -> None:
    """As a sona wrote proofs that did not keep the size of the vocabulary."""
    told = msgspec.json.decode(proof.read_bytes())
    del told["vocabulary"]
    proof.write_bytes(msgspec.json.encode(told))


__all__ = ["PROOF", "forget_vocabulary", "publish_noisy"]
