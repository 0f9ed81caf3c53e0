"""Whether a model's rows can be computed together: by what its configuration says, and by trying it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from sona.serving.adapted import AdaptedModel
from sona.serving.batch import Apart, Batch, Rows
from sona.serving.choice import Chooser
from sona.serving.generation import Sampling
from sona.serving.packed import Packed
from sona.serving.request import Request, Voice
from sona.serving.seat import Seat
from sona.types import Token

log = logging.getLogger("sona.serving")

NEIGHBOURLY = 0.02
"""Of the largest logit: by so much may a row of a batch differ from the row alone before the model is taken for one
that can't be batched. Half precision differs by less, a wrong mask or position by far more."""
LENGTHS = (7, 2, 20)  # of the trial's prompts: across the block to which prompts are padded, and unlike
LEANS_ON_OTHERS = ("dynamic", "longrope")  # rotary positions that depend on the longest row of the batch


def rows_for(model: AdaptedModel, pad_id: int, max_tokens: int) -> Rows:
    """What computes answers of ``model``: together, or where its cache can't be put together, one by one.

    Layers that remember by other means than keys and values of every token (a sliding window, a recurrent state) can't
    be taken out of one batch and put into another.
    """
    why = _unfit(model.model, max_tokens)
    if not why:
        for kind in (Packed, Batch):  # the first that fits
            if not (why := _misfit(kind, model, pad_id)):
                return kind(model, pad_id)
    log.info("%s answers one request at a time, step by step: %s", type(model.model).__name__, why)
    return Apart(model)


def _unfit(model: PreTrainedModel, max_tokens: int) -> str:
    """What its configuration says against it; empty where nothing."""
    config = model.config.get_text_config(decoder=True)
    try:
        layers = DynamicCache(config=model.config).layers
    except Exception as error:  # a configuration that transformers can make no cache of
        return f"no cache can be made for it ({error})"
    for layer in layers:
        sees_all = isinstance(layer, DynamicSlidingWindowLayer) and layer.sliding_window >= max_tokens
        if type(layer) is not DynamicLayer and not sees_all:
            return f"its cache has a {type(layer).__name__}"
    rotary = getattr(config, "rope_parameters", None) or {}
    if rotary.get("rope_type") in LEANS_ON_OTHERS:
        return f"its positions are of the kind {rotary['rope_type']!r}"
    return ""


@torch.no_grad()
def _misfit(kind: type[Batch], model: AdaptedModel, pad_id: int) -> str:
    """What goes wrong when three rows are read and then go on by a token, the last of them beside another that is still
    to be read where a pass takes both; empty where nothing does.
    """
    vocabulary = int(model.model.config.get_text_config().vocab_size)
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, vocabulary, length).tolist() for length in LENGTHS]
    try:
        batch = kind(model, pad_id)
        seats = [_seat(text) for text in texts]
        for seat in seats:
            batch.join(seat)
        read = seats[1:] if batch.at_once else seats
        batch.forward(read, [seat.todo[:-1] for seat in read])
        for seat in read:
            seat.read, seat.todo = len(seat.todo) - 1, seat.todo[-1:]
            seat.answer.append(Token(id=seat.todo[0]))  # as if it had written that one
        found = batch.forward(seats, [seat.todo for seat in seats])
        wanted = _alone(model, texts)
    except Exception as error:  # whatever a model's code makes of a mask or a cache that it does not know
        return f"a batch of it fails ({type(error).__name__}: {error})"
    finally:
        model.set_rows(())
    worst = float((found - wanted).abs().max() / wanted.abs().max())
    return "" if worst <= NEIGHBOURLY else f"in a batch its logits differ by {worst:.3f} of the largest"


def _alone(model: AdaptedModel, texts: Sequence[Sequence[int]]) -> Tensor:
    """The logits (n, V) after each text, without a cache or neighbours."""
    model.set_rows([None])
    device = model.model.device
    rows = [model.model(input_ids=torch.tensor([list(text)], device=device), use_cache=False) for text in texts]
    return torch.stack([row.logits[0, -1].float() for row in rows])


def _seat(text: Sequence[int]) -> Seat:
    request = Request(
        prompt=np.asarray(text, dtype=np.int32),
        sampling=Sampling(1),
        logprobs=None,
        stop_ids=frozenset(),
        find_voice=lambda: Voice(None, None, None),
        make_reply=lambda voice, tokens: NotImplemented,
        release=lambda: None,
    )
    return Seat(request, Chooser(request.sampling, None), list(text))
