"""What a user might take instead: one adapter by PEFT, alone or with what the field offers against forgetting.

All take the same steps (:data:`STEPS` an hour of :data:`BATCH` answers), imitate rewarded answers alone, and run on one
thread. Rates and strengths were tuned on the seeds 100 and 101, which are not reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from benchmarks.forgetting.adapter import Adapter
from benchmarks.forgetting.stream import Hour, Stream
from benchmarks.forgetting.world import BASE, Question

STEPS = 32
BATCH = 32


class Plain:
    """One adapter, trained on each hour as it comes. The other peers change what it says here."""

    rate = 3e-3

    def __init__(self, folder: Path, seed: int) -> None:
        self.adapter = Adapter(folder, self.rate, seed)
        self.rng = Random(f"{type(self).__name__}/{seed}")

    def learn(self, hour: Hour) -> None:
        """Take the hour's steps; each rewarded answer comes once before any comes again."""
        new = successful(hour)
        waiting: list[Question] = []
        for _ in range(STEPS if new else 0):
            batch = self.batch(new, waiting)
            self.adapter.step(batch, self.penalty)
        self.remember(new)

    def batch(self, new: Sequence[Question], waiting: list[Question]) -> list[Question]:
        """The questions of a step; ``waiting`` are those of ``new`` that have not come since all last had."""
        return self.next_of(new, waiting, BATCH)

    def next_of(self, new: Sequence[Question], waiting: list[Question], count: int) -> list[Question]:
        """``count`` questions out of ``waiting``, which is filled up with ``new`` in a random order."""
        while len(waiting) < count:
            waiting += self.rng.sample(new, len(new))
        taken, waiting[:] = waiting[:count], waiting[count:]
        return taken

    def penalty(self) -> Tensor:
        """What is added to each step's loss."""
        return torch.zeros(())

    def remember(self, new: Sequence[Question]) -> None:
        """What is kept of an hour."""

    def end_task(self) -> None:
        """What is done at a true boundary."""

    def share_right(self, questions: Sequence[Question]) -> float:
        """See :class:`benchmarks.forgetting.course.Examined`."""
        return self.adapter.share_right(questions)


class Replay(Plain):
    """Half of each batch is drawn from all that earlier hours rewarded."""

    rate = 3e-3

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder, seed)
        self._stored: list[Question] = []

    def batch(self, new: Sequence[Question], waiting: list[Question]) -> list[Question]:
        """Half new, half replayed, once there is something to replay."""
        if not self._stored:
            return super().batch(new, waiting)
        return self.next_of(new, waiting, BATCH - BATCH // 2) + self.rng.choices(self._stored, k=BATCH // 2)

    def remember(self, new: Sequence[Question]) -> None:
        """Everything."""
        self._stored += new


class AvalancheEwc(Plain):
    """EWC (Kirkpatrick et al. 2017, arXiv:1612.00796) as Avalanche 0.6 computes it, given the true boundaries.

    Penalty: λ Σ_tasks Σ_i F_i (θ_i − θ*_i)², one term a task, of mode ``separate``. Its flaw: F is the squared gradient
    of a batch's mean loss, averaged over the batches, where the Fisher information is the mean of the single answers'
    squared gradients. In a batch's mean the answers' gradients cancel, so that F comes out too small, by about the
    size of the batch, and not by the same factor for every weight.

    The formula is written anew here: the package itself can't be installed beside a torch for CPUs, as it needs
    torchvision.
    """

    strength = 100.0
    """λ."""

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder, seed)
        self._terms: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
        self._of_task: list[Question] = []

    def penalty(self) -> Tensor:
        """λ Σ_tasks Σ_i F_i (θ_i − θ*_i)²."""
        total = torch.zeros(())
        for importance, anchor in self._terms:
            for name, parameter in self.adapter.parameters.items():
                total = total + (importance[name] * (parameter - anchor[name]).square()).sum()
        return self.strength * total

    def remember(self, new: Sequence[Question]) -> None:
        """The task's own answers, until it ends."""
        self._of_task += new

    def end_task(self) -> None:
        """Measure F on the task's answers, batch by batch, and hold the weights that it ended with."""
        batches = [self._of_task[start : start + BATCH] for start in range(0, len(self._of_task), BATCH)]
        importance = {name: torch.zeros_like(value) for name, value in self.adapter.parameters.items()}
        for batch in batches:
            for name, gradient in self.adapter.gradient(batch).items():
                importance[name] += gradient.square() / len(batches)
        self._terms.append((importance, self.adapter.copies()))
        self._of_task = []


class OLora(Plain):
    """O-LoRA (Wang et al. 2023, arXiv:2310.14152), given the true boundaries: an adapter a task, all added up.

    Penalty: λ Σ_earlier Σ |A A_earlierᵀ|, so that a task's A stays orthogonal to those before it. The sum of earlier
    adapters is merged into the weights, which gives the same outputs as keeping them apart.
    """

    strength = 0.01
    """λ."""

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder, seed)
        self._earlier: dict[str, Tensor] = {}
        """The rows of all earlier A of each layer, (tasks · rank, in)."""

    def penalty(self) -> Tensor:
        """λ Σ |A A_earlierᵀ|."""
        total = torch.zeros(())
        for name, earlier in self._earlier.items():
            total = total + (self.adapter.parameters[name] @ earlier.T).abs().sum()
        return self.strength * total

    def end_task(self) -> None:
        """Keep the task's A, merge its adapter, and begin a new one."""
        for name, value in self.adapter.copies().items():
            if ".lora_A." in name:
                before = [self._earlier[name]] if name in self._earlier else []
                self._earlier[name] = torch.cat([*before, value])
        self.adapter.merge()


class Joint:
    """The usual limit: one adapter, trained on the whole stream at once, shuffled, in as many steps as the others take.

    It is given no answers of a task that changes later: only those that are right at the end.
    """

    rate = 3e-3

    def __init__(self, folder: Path, seed: int) -> None:
        self.adapter = Adapter(folder, self.rate, seed)
        self._rng = Random(f"joint/{seed}")

    def learn_all(self, stream: Stream) -> None:
        """Take the steps of all its hours."""
        valid = {BASE, *stream.judged}
        pool = [question for hour in stream.hours for question in successful(hour, valid)]
        for _ in range(STEPS * len(stream.hours)):
            self.adapter.step(self._rng.sample(pool, min(BATCH, len(pool))))

    def share_right(self, questions: Sequence[Question]) -> float:
        """See :class:`benchmarks.forgetting.course.Examined`."""
        return self.adapter.share_right(questions)


PEERS: dict[str, Callable[[Path, int], Plain]] = {
    "replay": Replay,
    "peft": Plain,
    "ewc_avalanche": AvalancheEwc,
    "olora": OLora,
}
"""Those that learn hour by hour, by the method's name; each takes the base model's folder and a seed."""


def successful(hour: Hour, tasks: set[str] | None = None) -> list[Question]:
    """The rewarded answers; with ``tasks`` those of these tasks alone."""
    return [
        Question(one.prompt, one.response) for one in hour if one.reward > 0.5 and (tasks is None or one.task in tasks)
    ]
