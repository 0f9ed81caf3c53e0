"""The base model's own prompts and answers: made once for a store, then the measure of what was forgotten."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

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

    def __len__(self) -> int:
        return len(self.trained) + len(self.judged)


def read_probes(store: TrajectoryStore, model: ServedModel, config: Config, report: Report) -> Probes:
    """The store's probes for this model and these settings; made and kept there when they are first needed."""
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
    return Probes(
        trained=[example for place, example in enumerate(examples) if place % 4],
        judged=examples[::4],
    )


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
