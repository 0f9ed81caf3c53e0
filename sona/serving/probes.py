"""What the base model can do, in its own words: prompts that it writes itself, and its answers to them.

Nobody has the data that a base model was trained on. A model that is sampled from the opening of a user's turn writes
prompts like those it knows (Xu et al. 2024, "Magpie", arXiv:2406.08464). With its own greedy answers they show what
an adapter made it forget, and, mixed into the batches, keep it from forgetting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from transformers import PreTrainedModel

from sona.checks import Int32
from sona.serving.chat import ChatCodec
from sona.serving.generation import Sampling, continuations

BATCH = 64
ROUNDS = 4  # of drawing again where prompts came out equal or empty


def make_probes(
    model: PreTrainedModel,
    codec: ChatCodec,
    *,
    count: int,
    tokens: int,
    seed: int,
    stop_ids: Sequence[int],
    pad_id: int,
    on_batch: Callable[[int, int], None],
) -> list[tuple[Int32, Int32]]:
    """Up to ``count`` distinct (prompt, answer) pairs of int32 token ids, both at most ``tokens`` long inside the
    template.

    Fewer come back from a model that keeps repeating itself. The same seed gives the same pairs.
    ``on_batch`` is called with prompts and answers done, and their number in all.
    """
    before, after = codec.user_frame()
    prompts: dict[bytes, Int32] = {}
    stops = [*stop_ids, *after[:1].tolist()]
    for draw in range(ROUNDS * -(-count // BATCH)):
        if len(prompts) >= count:
            break
        sampling = Sampling(max_new_tokens=tokens, temperature=1.0, seed=seed * 1_000_003 + draw)
        start = before if len(before) else np.asarray([pad_id], dtype=np.int32)
        for drawn in continuations(model, [start] * BATCH, sampling, stop_ids=stops, pad_id=pad_id):
            words = np.asarray(drawn[:-1] if drawn and drawn[-1] in stops else drawn, dtype=np.int32)
            if len(words):
                prompt = np.concatenate([start, words, after])
                prompts.setdefault(prompt.tobytes(), prompt)
        on_batch(min(len(prompts), count), 2 * count)
    chosen = list(prompts.values())[:count]
    answered: list[tuple[Int32, Int32]] = []
    for batch in _of_one_length(chosen):
        answers = continuations(model, batch, Sampling(max_new_tokens=tokens), stop_ids=stop_ids, pad_id=pad_id)
        answered += [(ask, np.asarray(answer, np.int32)) for ask, answer in zip(batch, answers, strict=True) if answer]
        on_batch(count + len(answered), 2 * count)
    return answered


def _of_one_length(prompts: Sequence[Int32]) -> Iterator[list[Int32]]:
    """Batches whose prompts are equally long, so that no padding touches the answers' rounding."""
    by_length: dict[int, list[Int32]] = {}
    for prompt in prompts:
        by_length.setdefault(len(prompt), []).append(prompt)
    for group in by_length.values():
        for start in range(0, len(group), BATCH):
            yield group[start : start + BATCH]
