"""The conversations that leave-one-out is measured on."""

import numpy as np
import pytest

from benchmarks.leave_one_out.naive import largest_difference
from benchmarks.leave_one_out.scenario import LAYOUTS, MEMORIES, RESPONSES, conversation, passages


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_variant_lacks_its_memory_and_nothing_else(layout: str) -> None:
    turns = conversation(layout, 8192, 0)
    whole, *variants = passages(turns)
    memories = sorted((p for turn in turns for p in turn if p.memory >= 0), key=lambda part: part.memory)
    assert len(variants) == MEMORIES
    for memory, variant in zip(memories, variants, strict=True):
        assert len(variant.ids) == len(whole.ids) - len(memory.ids)
        assert len(variant.ranges) == RESPONSES
        for (a, b), (c, d) in zip(whole.ranges, variant.ranges, strict=True):
            np.testing.assert_array_equal(whole.ids[a:b], variant.ids[c:d])


def test_online_only_the_memories_so_far_are_dropped_and_the_last_response_is_scored() -> None:
    turns = conversation("interleaved", 8192, 0)
    assert [len(passages(turns[:count], last_alone=True)) for count in (1, 2, 8)] == [3, 5, 17]
    assert all(len(one.ranges) == 1 for one in passages(turns[:3], last_alone=True))


def test_the_difference_is_the_largest_of_any_token() -> None:
    one = [[np.array([1.0, 2.0], np.float32)], [np.array([3.0], np.float32)]]
    other = [[np.array([1.0, 2.5], np.float32)], [np.array([2.0], np.float32)]]
    assert largest_difference(one, other) == 1.0
