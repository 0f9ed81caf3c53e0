"""EWC++ in one run of the trainer: what holds the weights, and what is observed for the runs to come."""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import Tensor

from sona.config import TrainConfig
from sona.errors import ModelError
from sona.learn.ewc import EwcState
from sona.learn.fisher import PerExampleTaps
from sona.learn.flat import FlatWeights
from sona.learn.penalty import Penalty, ProductPenalty
from sona.learn.products import Products
from sona.learn.strength import current_lambda
from sona.learn.walk import Walk

SCORE_EVERY = 10
"""Steps between two path scores: long enough for a path to rise above one step's noise."""


class Hold:
    """Begins at the state that earlier cycles left, and at the weights as they are."""

    def __init__(self, model: PeftModel, flat: FlatWeights, state: EwcState, settings: TrainConfig) -> None:
        """Raises ModelError where the state is of another adapter, or not on what ``settings.ewc_on`` says."""
        if state.on != settings.ewc_on:
            raise ModelError(
                f"EWC state: on {state.on!r}, but train.ewc_on is {settings.ewc_on!r}; change it back, or begin anew"
            )
        self._model, self._flat, self._settings = model, flat, settings
        self._products = Products.of_model(model) if state.on == "delta" else None
        layout = flat.layout if self._products is None else self._products.layout
        state = state.fitted(layout, flat.values.device)
        self._layout = layout
        self._walk = Walk(state, flat.values)
        self.lam = current_lambda(state, settings)
        """λ; where it is 0 the weights are observed, not held."""
        self._proximal: Penalty | None = None
        self.penalty: Penalty | ProductPenalty | None = None
        """On the adapter's vector (P,)."""
        if self.lam:
            plain = Penalty.of(state, self.lam)
            self.penalty = plain if self._products is None else ProductPenalty(plain, self._products)
            self._proximal = plain if settings.ewc_form == "proximal" else None

    def taps(self, step: int) -> PerExampleTaps | None:
        """To be open during the backward pass of ``step``, then handed to :meth:`observe_fisher`; None: not due."""
        if step % self._settings.fisher_every:
            return None
        return PerExampleTaps(self._model, self._settings.ewc_on)

    def observe_fisher(self, taps: PerExampleTaps) -> None:
        """Take the batch's Fisher information into the running average."""
        self._walk.observe_fisher(self._layout.join(taps.mean()), self._settings.fisher_decay)

    def pull(self) -> Tensor | None:
        """The penalty's gradient (P,), for the optimizer to follow with the task's; None where it does not hold so."""
        if self.penalty is None or self._proximal is not None:
            return None
        return self.penalty.gradient(self._flat.values)

    def settle(self, before: Tensor, rate: float) -> Tensor | None:
        """After the optimizer's step of ``rate`` from ``before`` (P,): let the weights settle, in place.

        Returns the distance that the penalty moved them, against that of the optimizer; None where it does not hold so.
        """
        if self._proximal is None:
            return None
        values = self._flat.values
        settled = self._proximal.settled(values, rate)
        step = torch.linalg.vector_norm(values - before)
        share: Tensor = torch.linalg.vector_norm(settled - values) / (step + 1e-12)
        values.copy_(settled)
        return share

    def observe_step(self, step: int, gradient: Tensor, before: Tensor) -> None:
        """The task's ``gradient`` (P,) at ``before`` (P,), from where ``step`` led to the weights as they are."""
        self._walk.observe_step(gradient, before, self._flat.values)
        if (step + 1) % SCORE_EVERY == 0:
            self.take_score()

    def take_score(self) -> None:
        """End a stretch of the path here."""
        self._walk.take_score(self._flat.values)

    def consolidate(self) -> EwcState:
        """The state for the next run, anchored at the weights as they are."""
        values = self._flat.values
        place = values if self._products is None else self._products.of(values)
        return self._walk.consolidate(place)
