"""The base model's own prompts and answers: made once for a store, then the measure of what was forgotten."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from sona.checks import Float32
from sona.config import Config
from sona.errors import StoreCorruptError
from sona.learn.dataset import Example
from sona.ports import Report, ServedModel, TrajectoryStore
from sona.types import Progress


@dataclass(frozen=True)
class Probes:
    """Three quarters of the probes are mixed into the batches, one quarter is only ever looked at."""

    trained: list[Example]
    judged: list[Example]
    trained_features: Float32
    """(trained, width) of their prompts, for a router; (0, 0) where they were not asked for."""
    judged_features: Float32
    """(judged, width)"""

    def __len__(self) -> int:
        return len(self.trained) + len(self.judged)


def read_probes(
    store: TrajectoryStore, model: ServedModel, config: Config, report: Report, *, features: bool = False
) -> Probes:
    """The store's probes for this model and these settings; made and kept there when they are first needed.

    With ``features``, what a router reads of them too.
    """
    settings = config.cycle
    name = f"probes/{model.fingerprint[:16]}-{settings.probes}-{settings.probe_tokens}-{config.seed}"
    pairs = _read(store, name)
    if pairs is None:

        def on_batch(done: int, total: int) -> None:
            report(Progress(stage="probes", done=done, total=total))

        made = (
            model.make_probes(settings.probes, settings.probe_tokens, config.seed, on_batch) if settings.probes else []
        )
        pairs = [(prompt.astype("<i4").tobytes(), answer.astype("<i4").tobytes()) for prompt, answer in made]
        store.write_state(name, msgspec.msgpack.encode(pairs))
    examples = [Example(np.frombuffer(prompt, "<i4"), np.frombuffer(answer, "<i4")) for prompt, answer in pairs]
    rows = _features(store, model, name, examples) if features and examples else np.zeros((0, 0), np.float32)
    judged = np.arange(len(examples)) % 4 == 0
    return Probes(
        trained=[example for example, chosen in zip(examples, judged, strict=True) if not chosen],
        judged=[example for example, chosen in zip(examples, judged, strict=True) if chosen],
        trained_features=rows[~judged] if len(rows) else rows,
        judged_features=rows[judged] if len(rows) else rows,
    )


def _features(store: TrajectoryStore, model: ServedModel, name: str, examples: list[Example]) -> Float32:
    """(examples, width) float32 of their prompts, kept in the store as float16."""
    data = store.read_state(f"{name}/features")
    if data is None:
        data = model.features([example.prompt for example in examples]).astype("<f2").tobytes()
        store.write_state(f"{name}/features", data)
    rows = np.frombuffer(data, "<f2").astype(np.float32)
    if len(rows) % len(examples):
        raise StoreCorruptError("the features of the store's probes can't be read; restore the store from a backup")
    return rows.reshape(len(examples), -1)


def _read(store: TrajectoryStore, name: str) -> list[tuple[bytes, bytes]] | None:
    data = store.read_state(name)
    if data is None:
        return None
    try:
        return msgspec.msgpack.decode(data, type=list[tuple[bytes, bytes]])
    except msgspec.DecodeError as error:
        raise StoreCorruptError(
            f"the store's probes can't be read ({error}); restore the store from a backup"
        ) from None
