from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona.errors import InvalidInputError
from sona.learn.dataset import IGNORED, Example, collate, length_sorted_batches
from tests.learn.tiny_models import PAD, random_examples


def example(prompt: list[int], response: list[int], weight: float = 1.0) -> Example:
    return Example(np.array(prompt, np.int32), np.array(response, np.int32), weight)


def test_batch_is_padded_on_the_right_and_labels_only_responses() -> None:
    batch = collate([example([5, 6, 7], [8]), example([9], [3, 4], weight=0.5)], PAD)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [9, 3, 4, PAD]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch.labels.tolist() == [[IGNORED, IGNORED, IGNORED, 8], [IGNORED, 3, 4, IGNORED]]
    assert batch.weights.tolist() == [1.0, 0.5]
    assert batch.rows.tolist() == [2, 4, 5]  # one before each response token, in the flattened batch
    assert batch.targets.tolist() == [8, 3, 4]
    assert batch.lengths == (1, 2)


def test_a_response_that_holds_the_padding_token_is_learned_in_full() -> None:
    batch = collate([example([5], [PAD, 4]), example([5, 6, 7], [8])], PAD)
    assert batch.labels[0].tolist() == [IGNORED, PAD, 4, IGNORED]
    assert batch.attention_mask[0].tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize(("prompt", "response", "weight"), [([], [1], 1.0), ([1], [], 1.0), ([1], [1], -1.0)])
def test_bad_example_is_refused(prompt: list[int], response: list[int], weight: float) -> None:
    with pytest.raises(InvalidInputError):
        example(prompt, response, weight)


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weight_that_is_not_finite_is_refused(weight: float) -> None:
    with pytest.raises(InvalidInputError, match="finite"):
        example([1], [1], weight)


def test_empty_batch_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no examples"):
        collate([], PAD)


@settings(max_examples=50, deadline=None)
@given(count=st.integers(0, 40), seed=st.integers(0, 1000), max_tokens=st.integers(1, 200))
def test_length_sorted_batches_hold_each_example_once_within_the_bound(count: int, seed: int, max_tokens: int) -> None:
    examples = random_examples(count, seed)
    batches = length_sorted_batches(examples, max_tokens)
    assert sorted(index for batch in batches for index in batch) == list(range(count))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(len(examples[i]) for i in batch) <= max_tokens
    lengths = [len(examples[index]) for batch in batches for index in batch]
    assert lengths == sorted(lengths)
