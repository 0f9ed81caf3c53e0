"""Answers that are written together are those that each would be alone."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from sona.errors import ClosedError, QueueFullError, RequestCancelledError
from sona.serving.batch import Apart, Batch
from sona.serving.batch_cache import FINE_STEP, NARROW, WIDE_HEAD, width_for
from sona.serving.packed import Packed
from sona.serving.request import Answering
from sona.tiny import model_path
from sona.types import Token
from tests.learn.tiny_models import ARCHITECTURES, tiny_model
from tests.serving.desk import Ask, Desk, Held, random_adapter, random_asks, slow_answer, slow_logits

PROMPT = np.array([5, 6, 7, 8], np.int32)


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk(tiny_model())
    yield made
    made.scheduler.close()


def waits_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def endless(desk: Desk, tokens: int = 60) -> Ask:
    """One whose answer does not stop before its limit."""
    for seed in range(200):
        ask = Ask(np.random.default_rng(seed).integers(3, 64, 4).astype(np.int32), tokens)
        if len(slow_answer(desk.model, ask)) == tokens:
            return ask
    raise AssertionError


# ------------------------------------------------------------------------------------------------ the same answers


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_in_a_batch_are_the_slow_way_s(architecture: str) -> None:
    model = tiny_model(architecture)
    desk = Desk(model)
    asks = random_asks(model, 24, seed=1)
    assert desk.answers(asks) == [slow_answer(model, ask) for ask in asks]
    assert isinstance(desk.scheduler._rows, Batch)
    assert desk.released == len(asks)
    desk.scheduler.close()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("attention", "kind"), [("sdpa", Packed), ("eager", Batch)])
def test_answers_that_come_and_go_at_any_step_are_each_one_s_alone(
    seed: int, attention: str, kind: type[Batch]
) -> None:
    model = tiny_model(ARCHITECTURES[seed % 2])
    model.set_attn_implementation(attention)
    rng = np.random.default_rng(seed)
    alone, together = Desk(model), Desk(model, rows=int(rng.integers(2, 12)), tokens=int(rng.integers(300, 2000)))
    asks = [replace(ask, logprobs=0) for ask in random_asks(model, 40, seed)]
    wanted = [alone.ask(ask).result(60) for ask in asks]
    handles = []
    for ask in asks:
        handles.append(together.ask(ask))
        if rng.random() < 0.3:
            time.sleep(float(rng.random()) * 0.01)
    found = [handle.result(60) for handle in handles]
    assert [one.token_ids for one in found] == [one.token_ids for one in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        for one, other in zip(ours.tokens, theirs.tokens, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
    for desk in (alone, together):
        assert type(desk.scheduler._rows) is kind
        desk.scheduler.close()


def test_a_prompt_of_one_token_is_read_as_it_is_beside_a_longer_one() -> None:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model_path())
    desk = Desk(model.train(False))
    held = Held()
    asks = [Ask(np.array(prompt, np.int32), 3, logprobs=0) for prompt in ([7], [9, 8, 7, 6, 5])]
    alone = [desk.ask(ask).result(60).tokens for ask in asks]
    handles = [desk.ask(Ask(PROMPT, 1), held)]
    assert held.reached.wait(30)
    handles += [desk.ask(ask) for ask in asks]
    held.go.set()
    assert [handle.result(60).tokens for handle in handles[1:]] == alone, "to the last bit"
    desk.scheduler.close()


def test_tokens_are_told_when_their_step_is_done(desk: Desk) -> None:
    held, seen = Held(), list[tuple[int, int]]()
    handles = [desk.ask(Ask(PROMPT, 1), held)]
    assert held.reached.wait(30)
    handles += [desk.ask(Ask(PROMPT, 1), lambda _: seen.append(desk.scheduler.counts)) for _ in range(3)]
    held.go.set()
    for handle in handles:
        handle.result(60)
    assert seen == [(0, 0)] * 3, "each one's row was free before anyone was told"


def test_a_prompt_is_read_in_chunks_between_the_others_tokens(desk: Desk) -> None:
    long = Ask(np.random.default_rng(0).integers(3, 64, 100).astype(np.int32), 5)
    short = endless(desk)
    wanted = [slow_answer(desk.model, ask) for ask in (short, long)]
    assert desk.answers([short]) == wanted[:1]  # the rows are there now
    desk.scheduler._chunk = 16
    written: list[str] = []
    held = Held()

    def on_short(token: Token) -> None:
        written.append("short")
        held(token)

    handles = [desk.ask(short, on_short)]
    assert held.reached.wait(30)
    handles.append(desk.ask(long, lambda _: written.append("long")))
    held.go.set()
    assert [handle.result(60).token_ids for handle in handles] == wanted
    assert 6 <= written.index("long") < len(wanted[0])


def test_a_sampled_answer_is_its_seed_s_whatever_stands_beside_it(desk: Desk) -> None:
    asks = [Ask(PROMPT, 12, temperature=1.5, seed=seed) for seed in range(6)]
    alone = [desk.answers([ask])[0] for ask in asks]
    assert len(set(alone)) == len(alone)
    assert desk.answers([*asks[::-1], *random_asks(desk.model, 10, 3)])[:6] == alone[::-1]
    assert desk.answers([asks[2], asks[2], asks[0]]) == [alone[2], alone[2], alone[0]]


def test_log_probabilities_are_those_of_the_model(desk: Desk) -> None:
    ask = Ask(PROMPT, 4, random_adapter(desk.model, 1), temperature=0.8, seed=3, logprobs=3)
    reply = desk.ask(ask).result(60)
    for place, token in enumerate(reply.tokens):
        wanted = slow_logits(desk.model, ask, reply.token_ids[:place]).log_softmax(-1)
        assert token.logprob == pytest.approx(float(wanted[token.id]), abs=1e-4)
        best = wanted.topk(3)
        assert [one for one, _ in token.top] == best.indices.tolist()
        assert [value for _, value in token.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def mistral() -> PreTrainedModel:
    """Sees eight tokens back."""
    config = MistralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        initializer_range=0.3,
    )
    return MistralForCausalLM(config)


def hybrid() -> PreTrainedModel:
    """One layer remembers a state, the other keys and values."""
    config = Qwen3NextConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        num_experts=0,
        mlp_only_layers=[0, 1],
        initializer_range=0.3,
    )
    return Qwen3NextForCausalLM(config)


@pytest.mark.parametrize("make", [mistral, hybrid])
def test_a_model_whose_cache_can_t_be_put_together_answers_row_by_row(make: Callable[[], PreTrainedModel]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = make()
    model.train(False)
    desk = Desk(model)
    asks = random_asks(model, 8, seed=2, longest=24)
    assert desk.answers(asks) == [slow_answer(model, ask) for ask in asks]
    assert isinstance(desk.scheduler._rows, Apart)
    desk.scheduler.close()


def test_widths_leave_out_those_in_which_sums_are_cut_otherwise() -> None:
    assert [width_for(tokens) for tokens in (1, 64, 65, 384, 385, 512, 513)] == [64, 64, 128, 384, 512, 512, 1024]
    assert [width_for(tokens, FINE_STEP) for tokens in (1, 16, 17, 384, 385)] == [16, 16, 32, 384, 512]


@pytest.mark.parametrize("head", [WIDE_HEAD, 64, 80, 128])
@pytest.mark.parametrize("tokens", [1, 2, 4, 16])
def test_torch_s_attention_gives_the_same_in_each_fine_width(head: int, tokens: int) -> None:
    random = torch.Generator().manual_seed(head + tokens)
    query = torch.randn(3, 2, tokens, head, generator=random)
    keys, values = torch.randn(2, 3, NARROW, 2, head, generator=random).transpose(2, 3)
    for length in (3, 16, 17, 40):
        found = []
        for width in range(width_for(length, FINE_STEP), NARROW + 1, FINE_STEP):
            mask = torch.zeros(3, 1, tokens, width)
            mask[..., length:] = torch.finfo(torch.float32).min
            found.append(
                functional.scaled_dot_product_attention(query, keys[:, :, :width], values[:, :, :width], attn_mask=mask)
            )
        assert all(torch.equal(one, found[0]) for one in found)


# ------------------------------------------------------------------------------------------------ one by itself


def test_a_cancelled_request_frees_its_row(desk: Desk) -> None:
    held = Held()
    handle = desk.ask(endless(desk), held)
    assert held.reached.wait(30)
    beside = desk.ask(Ask(PROMPT, 6))
    handle.cancel()
    held.go.set()
    with pytest.raises(RequestCancelledError):
        handle.result(30)
    assert beside.result(30).token_ids == slow_answer(desk.model, Ask(PROMPT, 6))
    waits_for(lambda: desk.scheduler.counts == (0, 0))
    assert desk.released == 2
    handle.cancel()  # and once more does nothing


def test_one_that_is_cancelled_before_its_turn_is_never_read(desk: Desk) -> None:
    held = Held()
    first = desk.ask(Ask(PROMPT, 3), held)
    assert held.reached.wait(30)
    told: list[Token] = []
    second = desk.ask(Ask(PROMPT, 3), told.append)
    second.cancel()
    held.go.set()
    with pytest.raises(RequestCancelledError):
        second.result(30)
    first.result(30)
    assert told == []


def test_what_a_callback_raises_fails_its_own_request_alone(desk: Desk) -> None:
    def fail(_: Token) -> None:
        raise ZeroDivisionError

    asks = random_asks(desk.model, 8, seed=5)
    handles = [desk.ask(ask, fail if place == 3 else None) for place, ask in enumerate(asks)]
    for place, (ask, handle) in enumerate(zip(asks, handles, strict=True)):
        if place == 3:
            with pytest.raises(ZeroDivisionError):
                handle.result(30)
        else:
            assert handle.result(30).token_ids == slow_answer(desk.model, ask)
    assert desk.released == len(asks)


def test_a_row_with_which_the_model_fails_fails_alone(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    asks = random_asks(desk.model, 8, seed=6)
    odd = asks[2].prompt.tolist()
    whole = Packed.forward

    def forward(self: Packed, seats: Sequence[Any], feeds: Sequence[Sequence[int]]) -> torch.Tensor:
        if any(seat.request.prompt.tolist() == odd for seat in seats):
            raise MemoryError
        return whole(self, seats, feeds)

    monkeypatch.setattr(Packed, "forward", forward)
    handles = [desk.ask(ask) for ask in asks]
    with pytest.raises(MemoryError):
        handles[2].result(30)
    for ask, handle in zip(asks, handles, strict=True):
        if handle is not handles[2]:
            assert handle.result(30).token_ids == slow_answer(desk.model, ask)


# ------------------------------------------------------------------------------------------------ bounds and the end


def test_more_than_may_wait_are_refused() -> None:
    desk = Desk(tiny_model(), rows=1, waiting=2)
    held = Held()
    handles = [desk.ask(Ask(PROMPT, 3), held)]
    assert held.reached.wait(30)
    handles += [desk.ask(Ask(PROMPT, 3)) for _ in range(2)]
    with pytest.raises(QueueFullError, match=r"2 requests wait.*serve\.max_waiting is 2"):
        desk.ask(Ask(PROMPT, 3))
    held.go.set()
    assert len({handle.result(30).token_ids for handle in handles}) == 1
    assert len(desk.ask(Ask(PROMPT, 3)).result(30).token_ids) == 3
    desk.scheduler.close()


@pytest.mark.parametrize("limits", [{"rows": 2}, {"tokens": 2 * 64}])
def test_no_more_rows_than_the_limits_allow(limits: dict[str, int]) -> None:
    desk = Desk(tiny_model(), **limits)
    most = 0

    def look(_: Token) -> None:
        nonlocal most
        most = max(most, desk.scheduler.counts[0])

    handles = [desk.ask(Ask(PROMPT, 4), look) for _ in range(7)]
    assert [len(handle.result(30).token_ids) for handle in handles] == [4] * 7
    assert most == 2
    desk.scheduler.close()


def test_one_alone_is_answered_whatever_the_limits() -> None:
    desk = Desk(tiny_model(), tokens=8)
    assert desk.answers([Ask(PROMPT, 20)] * 2) == [slow_answer(desk.model, Ask(PROMPT, 20))] * 2
    desk.scheduler.close()


def test_closing_fails_what_is_under_way_and_what_waits() -> None:
    desk = Desk(tiny_model(), rows=1)
    held = Held()
    handles = [desk.ask(endless(desk), held)]
    assert held.reached.wait(30)
    handles += [desk.ask(Ask(PROMPT, 3)) for _ in range(3)]
    closing = threading.Thread(target=desk.scheduler.close)
    closing.start()
    waits_for(lambda: desk.scheduler._closed)
    held.go.set()
    closing.join(30)
    for handle in handles:
        with pytest.raises(ClosedError):
            handle.result(0)
    assert desk.released == len(handles)
    with pytest.raises(ClosedError):
        desk.ask(Ask(PROMPT, 3))
    desk.scheduler.close()


def test_the_thread_ends_when_nothing_comes_and_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sona.serving.scheduler.IDLE_S", 0.01)
    desk = Desk(tiny_model())
    assert desk.scheduler._thread is None  # none before the first request
    first = desk.answers([Ask(PROMPT, 3)])
    waits_for(lambda: desk.scheduler._thread is None)
    assert desk.answers([Ask(PROMPT, 3)]) == first
    desk.scheduler.close()


def test_a_fault_of_the_scheduler_s_own_leaves_nobody_waiting(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "leave", broken)
        handle: Answering = desk.ask(Ask(PROMPT, 3))
        with pytest.raises(ZeroDivisionError):
            handle.result(30)
    assert desk.answers([Ask(PROMPT, 3)]) == [slow_answer(desk.model, Ask(PROMPT, 3))]
