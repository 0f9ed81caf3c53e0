"""The served model: answers, embeddings, probes, adapters that come and go."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sona.config import ServeConfig
from sona.errors import SwapError
from sona.serving.local import LocalModel
from sona.tiny import model_path
from sona.types import Message
from tests.other_model import write_other_model
from tests.serving.noisy_adapter import one, write_noisy_adapter

ASK = [Message(role="user", content="echo blue river")]


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return LocalModel("tiny", ServeConfig(device="cpu", threads=1))


def test_greedy_answers_are_those_of_transformers(model: LocalModel) -> None:
    plain: Any = AutoModelForCausalLM.from_pretrained(model_path())
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": ASK[0].content}], add_generation_prompt=True, tokenize=False
    )
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    wanted = plain.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    reply = model.generate(model.encode_prompt(ASK), max_new_tokens=12)
    assert list(reply.token_ids) == wanted.tolist()
    assert list(reply.prompt_ids) == inputs["input_ids"][0].tolist()
    assert reply.finish_reason == "stop"
    assert "<|" not in reply.text


def test_a_checkpoint_s_sampling_habits_are_not_ours(tmp_path: Path, model: LocalModel) -> None:
    """generate() fills what a call leaves open from the checkpoint's generation settings."""
    copy = tmp_path / "habits"
    loaded = AutoModelForCausalLM.from_pretrained(model_path())
    loaded.generation_config.repetition_penalty = 50.0
    loaded.save_pretrained(copy)
    AutoTokenizer.from_pretrained(model_path()).save_pretrained(copy)
    stubborn = LocalModel(str(copy), ServeConfig(device="cpu"))
    prompt = model.encode_prompt(ASK)
    assert stubborn.generate(prompt, max_new_tokens=12).token_ids == model.generate(prompt, max_new_tokens=12).token_ids


def test_sampling_follows_its_seed_and_leaves_the_host_s_generator_alone(model: LocalModel) -> None:
    prompt = model.encode_prompt(ASK)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    first = model.generate(prompt, max_new_tokens=12, temperature=3.0, seed=1)
    assert torch.equal(torch.rand(3), wanted)
    assert first == model.generate(prompt, max_new_tokens=12, temperature=3.0, seed=1)
    others = {model.generate(prompt, max_new_tokens=12, temperature=3.0, seed=seed).token_ids for seed in range(2, 6)}
    assert others != {first.token_ids}


def test_embeddings_are_the_mean_of_the_last_hidden_states(model: LocalModel) -> None:
    prompts = [model.encode_prompt(ASK), model.encode_prompt([Message(role="user", content="reverse a b c d e f")])]
    plain = AutoModelForCausalLM.from_pretrained(model_path())
    for prompt, vector in zip(prompts, model.embed(prompts), strict=True):
        with torch.no_grad():
            hidden = plain.model(input_ids=torch.tensor(prompt[None].astype(np.int64))).last_hidden_state
        np.testing.assert_allclose(vector, hidden[0].mean(0).numpy(), atol=1e-5)


def test_a_long_prompt_is_embedded_by_its_end(model: LocalModel) -> None:
    long = np.concatenate([np.full(600, 20, np.int32), model.encode_prompt(ASK)])
    np.testing.assert_allclose(model.embed([long]), model.embed([long[-512:]]), atol=1e-6)


def test_adapters_swap_and_never_touch_the_base(tmp_path: Path, model: LocalModel) -> None:
    prompt = model.encode_prompt(ASK)
    base_answer, base_vector = model.generate(prompt, max_new_tokens=8).token_ids, model.embed([prompt])
    answers = {"v0": base_answer}
    for number in (1, 2, 3):
        folder = write_noisy_adapter(model, tmp_path / f"v{number}", number)
        model.swap(f"v{number}", one(folder))
        reply = model.generate(prompt, max_new_tokens=8)
        assert reply.version == f"v{number}" == model.version
        answers[reply.version] = reply.token_ids
        np.testing.assert_array_equal(model.embed([prompt]), base_vector)
    assert len(set(answers.values())) == 4
    for name in ("v1", "v0", "v3", "v2"):
        model.swap(name, one(None if name == "v0" else tmp_path / name))
        assert model.generate(prompt, max_new_tokens=8).token_ids == answers[name]
    model.swap("v0", one(None))


def test_a_broken_adapter_is_not_served(tmp_path: Path, model: LocalModel) -> None:
    folder = write_noisy_adapter(model, tmp_path / "broken", 1)
    (folder / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(SwapError):
        model.swap("v9", one(folder))
    with pytest.raises(SwapError):
        model.swap("v9", one(tmp_path / "nowhere"))
    assert model.version == "v0"
    assert model.generate(model.encode_prompt(ASK), max_new_tokens=4).version == "v0"


def test_probes_are_the_model_s_own_questions_and_answers(model: LocalModel) -> None:
    probes = model.make_probes(24, 24, seed=0)
    assert len(probes) == 24
    assert len({prompt.tobytes() for prompt, _ in probes}) == 24
    opening, closing = model.encode_prompt([Message(role="user", content="x")])[[0, -1]]
    assert all(prompt[0] == opening and prompt[-1] == closing for prompt, _ in probes)
    for prompt, answer in probes[:6]:
        assert model.generate(prompt, max_new_tokens=24).token_ids == tuple(answer.tolist())
    again = model.make_probes(24, 24, seed=0)
    assert all(np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) for a, b in zip(probes, again, strict=True))


def test_a_model_without_a_chat_template_reads_lines(tmp_path: Path) -> None:
    folder = write_other_model(tmp_path / "plain", chat_template=False)
    plain = LocalModel(folder, ServeConfig(device="cpu"))
    ids = plain.encode_prompt([Message(role="system", content="be brief"), Message(role="user", content="echo a")])
    assert plain.decode(ids.tolist()).strip().split("\n") == ["be brief", "echo a"]
    assert plain.make_probes(4, 8, seed=0)


def test_an_end_token_that_the_base_never_met_is_not_the_answer_s_end(tmp_path: Path) -> None:
    folder = write_other_model(tmp_path / "plain", chat_template=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end, newline = tokenizer.eos_token_id, tokenizer.encode("\n", add_special_tokens=False)[-1]
    assert LocalModel(folder, ServeConfig(device="cpu")).encode_response("a")[-1] == end
    base: Any = AutoModelForCausalLM.from_pretrained(folder)
    head = base.get_output_embeddings().weight.data
    head[end] = head[base.config.eos_token_id] = head[0]  # as all that were never trained are alike
    base.save_pretrained(folder)
    assert LocalModel(folder, ServeConfig(device="cpu")).encode_response("a")[-1] == newline
