"""Fast weights before the output head: each row its own, and nothing else changes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM, PreTrainedModel

from sona.checks import Float32, Int32
from sona.config import ServeConfig
from sona.errors import InvalidInputError, ModelError, UnknownTokenError
from sona.ports import FastRow, Served
from sona.serving.head import fast_weights, logits_of, states_of
from sona.serving.local import LocalModel
from sona.types import Message
from tests.learn.tiny_models import tiny_model
from tests.serving.noisy_adapter import one, write_noisy_adapter

TEXTS = ("echo blue river", "reverse one two three", "count x y z")


class Told:
    """Gives each prompt of a call the row that stands at its place."""

    def __init__(self, rows: Sequence[FastRow | None]) -> None:
        self.given, self.asked = rows, list[tuple[str, list[str | None]]]()

    def __len__(self) -> int:
        return len(self.given)

    def rows(self, version: str, adapters: Sequence[str | None], embeddings: Float32) -> list[FastRow | None]:
        self.asked.append((version, list(adapters)))
        assert embeddings.shape == (len(adapters), 128)
        return list(self.given)[: len(adapters)]


@pytest.fixture
def model() -> LocalModel:
    return LocalModel("tiny", ServeConfig(device="cpu", threads=1))


def prompts_of(model: LocalModel) -> list[Int32]:
    return [model.encode_prompt([Message(role="user", content=text)]) for text in TEXTS]


def row(seed: int, width: int = 128, rank: int = 1, size: float = 0.7) -> FastRow:
    rng = np.random.default_rng(seed)
    A = np.linalg.qr(rng.normal(size=(width, rank)))[0].T.astype(np.float32)
    B = rng.normal(size=(width, rank)).astype(np.float32)
    return FastRow(f"p{seed}", A, (3 * size * B / np.linalg.norm(B)).astype(np.float32))


def by_hand(hidden: torch.Tensor, one: FastRow | None) -> torch.Tensor:
    if one is None:
        return hidden
    return hidden + hidden @ torch.from_numpy(one.A).T @ torch.from_numpy(one.B).T


@pytest.mark.parametrize("count", [1, 3])
def test_each_row_of_a_batch_is_moved_by_its_own_weights(count: int) -> None:
    model, rows = tiny_model(), [row(1, 32), None, row(2, 32, rank=2)][:count]
    ids = torch.randint(3, 64, (count, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids).last_hidden_state
        plain = model(input_ids=ids).logits
        with fast_weights(model, rows):
            moved = model(input_ids=ids).logits
        wanted = torch.stack([by_hand(states, one) for states, one in zip(hidden, rows, strict=True)])
        torch.testing.assert_close(moved, logits_of_all(model, wanted), atol=1e-4, rtol=1e-4)
        assert not torch.equal(moved[0], plain[0])
        if count == 3:
            assert torch.equal(moved[1], plain[1]), "a row without fast weights is as it was, bit for bit"
        assert torch.equal(model(input_ids=ids).logits, plain), "and after the block all are"


def logits_of_all(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    logits: torch.Tensor = head(hidden)
    return logits


def test_an_exception_leaves_the_head_as_it_was() -> None:
    model = tiny_model()
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    before = dict(vars(head))
    with pytest.raises(ZeroDivisionError), fast_weights(model, [row(1, 32)]):
        raise ZeroDivisionError
    assert vars(head) == before


def test_answers_take_their_pattern_s_weights_in_a_batch_as_alone(model: LocalModel) -> None:
    prompts = prompts_of(model)
    plain = [reply.token_ids for reply in model.generate_batch(prompts, max_new_tokens=8)]
    rows = [row(1, size=5.0), None, row(2, rank=2, size=5.0)]
    alone = []
    for prompt, one_row in zip(prompts, rows, strict=True):
        model.fast_weights = Told([one_row])
        alone.append(model.generate(prompt, max_new_tokens=8))
    model.fast_weights = Told(rows)
    replies = model.generate_batch(prompts, max_new_tokens=8)
    assert [reply.micro for reply in replies] == ["p1", None, "p2"]
    assert [reply.token_ids for reply in replies] == [reply.token_ids for reply in alone]
    assert [reply.micro for reply in alone] == ["p1", None, "p2"]
    assert replies[1].token_ids == plain[1]
    assert replies[0].token_ids != plain[0]
    model.fast_weights = None
    assert [reply.token_ids for reply in model.generate_batch(prompts, max_new_tokens=8)] == plain


def test_they_stand_beside_adapters_also_in_a_mixed_batch(model: LocalModel, tmp_path: Path) -> None:
    folders = {name: write_noisy_adapter(model, tmp_path / name, seed) for seed, name in enumerate("ab")}

    class Fixed:
        def route(self, features: Float32) -> list[str | None]:
            return ["a", None, "b"][: len(features)]

    prompts, rows = prompts_of(model), [row(place, size=3.0) for place in (1, 2, 3)]
    model.swap("v1", Served(folders, Fixed()))
    told = Told(rows)
    model.fast_weights = told
    mixed = [reply.token_ids for reply in model.generate_batch(prompts, max_new_tokens=8)]
    ((version, keys),) = told.asked
    assert (version, keys[1]) == ("v1", None)
    assert None not in (keys[0], keys[2])
    for place, name in enumerate(("a", None, "b")):
        model.swap(f"only-{name}", one(folders[name] if name else None))
        model.fast_weights = Told([rows[place]])
        assert model.generate(prompts[place], max_new_tokens=8).token_ids == mixed[place]


def test_with_no_weights_nothing_is_asked(model: LocalModel) -> None:
    told = Told([])
    model.fast_weights = told
    assert model.generate(prompts_of(model)[0], max_new_tokens=4).micro is None
    assert told.asked == []


# ------------------------------------------------------------------------------------------------ states


def frozen(model: PreTrainedModel) -> PreTrainedModel:
    model.train(False)
    return model


def gemma() -> PreTrainedModel:
    shape = Gemma2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        final_logit_softcapping=0.5,
        initializer_range=0.3,
    )
    return frozen(Gemma2ForCausalLM(shape))


def granite() -> PreTrainedModel:
    shape = GraniteConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        logits_scaling=7.0,
    )
    return frozen(GraniteForCausalLM(shape))


@pytest.mark.parametrize("make", [tiny_model, gemma, granite])
def test_the_states_give_the_logits_that_the_model_has(make: Callable[[], PreTrainedModel]) -> None:
    model = make()
    prompt, response = np.array([5, 6, 7], np.int32), np.array([8, 9], np.int32)
    hidden = states_of(model, prompt, response)
    ids = torch.from_numpy(np.concatenate([prompt, response])).long()[None]
    with torch.no_grad():
        wanted = model(input_ids=ids).logits[0, 2:4]
    torch.testing.assert_close(logits_of(model, hidden).detach(), wanted, atol=1e-5, rtol=1e-5)


def test_an_unknown_change_after_the_head_is_refused() -> None:
    model = granite()
    forward = model.forward

    def odd(**named: Any) -> Any:
        found = forward(**named)
        found.logits = found.logits / 7
        return found

    vars(model)["forward"] = odd
    with pytest.raises(ModelError, match="in a way that is not known"):
        states_of(model, np.array([5, 6], np.int32), np.array([8], np.int32))


def test_a_response_s_states_are_those_of_the_version_in_force(model: LocalModel, tmp_path: Path) -> None:
    prompt, response = prompts_of(model)[0], model.encode_response("blue river")
    with model.response_states(prompt, response) as base:
        assert (base.version, base.adapter) == ("v0", None)
        assert base.hidden.shape == (len(response), 128)
        logits = base.head(torch.from_numpy(base.hidden))
    greedy = model.generate(prompt, max_new_tokens=len(response)).token_ids
    assert tuple(response.tolist()) == greedy
    assert tuple(logits.argmax(dim=1).tolist()) == greedy
    model.swap("v1", one(write_noisy_adapter(model, tmp_path / "a", 1)))
    with model.response_states(prompt, response) as learned:
        assert learned.version == "v1"
        assert learned.adapter is not None
        assert not np.array_equal(learned.hidden, base.hidden)


def test_what_is_too_long_or_foreign_is_refused(model: LocalModel) -> None:
    prompt = prompts_of(model)[0]
    with pytest.raises(InvalidInputError, match="at most 512"), model.response_states(prompt, np.tile(prompt, 100)):
        pass
    with pytest.raises(UnknownTokenError), model.response_states(prompt, np.array([99_999], np.int32)):
        pass
