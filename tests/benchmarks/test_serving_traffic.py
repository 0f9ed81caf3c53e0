"""What the serving benchmark makes of what its clients saw."""

import anyio
import pytest

from benchmarks.serving import exact, swaps
from benchmarks.serving.traffic import Answered, Seen, questions, traffic
from sona.answer_stream import AnswerStream
from sona.errors import QueueFullError
from sona.types import Reply, Token


def answered(began: float, ended: float, version: str = "v1", question: str = "q") -> Answered:
    reply = Reply(text="a b", token_ids=(1, 2), prompt_ids=(3,), version=version, finish_reason="stop")
    return Answered(question, reply, began, (began + 1.0, ended), ended)


def test_a_request_is_compared_with_its_own_kind_where_no_swap_was_about() -> None:
    result = swaps.Result()
    seen = [
        answered(0.0, 2.0),
        answered(3.0, 5.5),
        answered(6.0, 9.0),
        answered(10.0, 14.0),  # a swap fell into it
        answered(15.0, 15.5, version="v2"),  # and here too, but there is nothing to compare it with
        answered(13.5, 15.0),  # and between the two
    ]
    swaps._reckon(result, seen, [(12.0, 12.5), (14.5, 15.2)], [(3.0, 3.5), (7.0, 8.0)])
    assert result.quiet_extra_ms == pytest.approx([0.0, 500.0])
    assert result.swap_extra_ms == pytest.approx([1500.0, -1000.0])


def test_times_are_those_from_the_question_and_between_pieces() -> None:
    one = answered(2.0, 5.0)
    assert (one.first_s, one.gaps_s) == (1.0, [2.0])


def test_a_refused_request_is_counted_and_its_client_goes_on() -> None:
    def ask(question: str) -> AnswerStream:
        raise QueueFullError("full")

    seen = Seen()
    anyio.run(traffic, ask, questions(0, 5), 2, seen)
    assert seen.refused == ["QueueFullError: full"] * 5


def test_from_the_first_token_that_differs_all_do() -> None:
    def reply(*tokens: tuple[int, float]) -> Reply:
        told = tuple(Token(id=token, logprob=value) for token, value in tokens)
        ids = tuple(token for token, _ in tokens)
        return Reply(text="", token_ids=ids, prompt_ids=(), version="v0", finish_reason="length", tokens=told)

    result = exact.Result()
    exact._note(result, reply((1, -0.5), (2, -1.0), (3, -1.0)), reply((1, -0.25), (4, -2.0), (3, -1.0)))
    assert (result.tokens, result.differ, result.largest) == (3, 2, 0.25)
