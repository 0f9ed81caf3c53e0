"""The model that ships in the package: its files, its tokenizer, its skills, and what it has still to learn."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from sona.tiny import AGENT_TASKS, SKILLS, AgentWorld, Example, model_path, sample
from sona.tiny.conversation import PROMPT_WEIGHT, RESPONSE_WEIGHT, batches, collate, encode_example
from sona.tiny.lexicon import CLASSES, CONTENT, GLUE
from sona.tiny.scoring import exact_match
from sona.tiny.skills import PLAIN_WORDS
from sona.tiny.tokenizer import SPECIALS, build_tokenizer
from sona.tiny.training import SKILL_SHARES, TrainingSettings, questions, weighted_loss

WEIGHTS = Path(model_path())
MOST_BYTES = 4_000_000  # the weights travel in every wheel
SCORED = 200  # of each skill: enough to see a broken model, not to measure one
TOLERANCE = 0.05


@pytest.fixture(scope="module")
def model() -> Any:  # what transformers says of its models and tokenizers is of little use to a type checker
    return AutoModelForCausalLM.from_pretrained(WEIGHTS)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(WEIGHTS)


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    return json.loads((WEIGHTS / "recipe.json").read_text())  # type: ignore[no-any-return]


def test_weights_are_those_of_the_recipe_and_small(recipe: dict[str, Any]) -> None:
    weights = (WEIGHTS / "model.safetensors").read_bytes()
    assert len(weights) <= MOST_BYTES
    assert hashlib.sha256(weights).hexdigest() == recipe["sha256"]


def test_no_file_needs_unpickling() -> None:
    assert {path.suffix for path in WEIGHTS.iterdir()} == {".json", ".safetensors"}


def test_model_is_as_large_as_the_recipe_says(model: Any, recipe: dict[str, Any]) -> None:
    assert model.num_parameters() == recipe["parameters"]
    assert model.config.vocab_size == recipe["vocabulary"]


def test_model_and_tokenizer_agree_on_the_markers(model: Any, tokenizer: Any) -> None:
    assert tokenizer.convert_tokens_to_ids(list(SPECIALS)) == list(range(len(SPECIALS)))
    for settings in (model.config, model.generation_config):
        assert settings.pad_token_id == tokenizer.pad_token_id == SPECIALS.index("<|pad|>")
        assert settings.eos_token_id == tokenizer.eos_token_id == SPECIALS.index("<|end|>")


@given(text=st.text() | st.lists(st.sampled_from([*SPECIALS, " ", "\n", "rome", "7", "é", "|"])).map("".join))
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_word_is_one_token_wherever_it_stands(tokenizer: Any) -> None:
    for word in PLAIN_WORDS:
        first, *rest = tokenizer(f"{word} {word}")["input_ids"]
        assert rest == [first], word


def test_digits_are_tokens_of_their_own(tokenizer: Any) -> None:
    assert tokenizer.tokenize("count 407") == ["Ġcount", "Ġ4", "0", "7"]


def test_chat_template_writes_what_training_wrote(tokenizer: Any) -> None:
    turns = [
        {"role": "system", "content": "anna is in rome"},
        {"role": "user", "content": "where is anna ?"},
        {"role": "assistant", "content": "rome"},
        {"role": "user", "content": "echo rome"},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|system|>anna is in rome<|user|>where is anna ?<|assistant|>rome<|end|><|user|>echo rome<|assistant|>"
    )
    asked = tokenizer.apply_chat_template(turns[3:], add_generation_prompt=True)["input_ids"]
    example = encode_example(tokenizer.backend_tokenizer, Example("echo rome", "rome", "echo"))
    assert example.ids[: len(asked)] == tuple(asked)
    assert tokenizer.decode(example.ids) == "<|user|>echo rome<|assistant|>rome<|end|>"


def test_a_vocabulary_without_room_for_the_words_is_refused() -> None:
    with pytest.raises(ValueError, match="vocabulary of 300 is too small"):
        build_tokenizer([], 300)


def test_every_word_stands_in_one_list_only() -> None:
    assert len(set(PLAIN_WORDS)) == len(CONTENT) + len(CLASSES) + len(GLUE)
    assert sum(map(len, CLASSES.values())) == len(CONTENT)


@pytest.mark.parametrize("skill", SKILLS)
def test_skill_is_drawn_the_same_for_the_same_seed(skill: str) -> None:
    assert sample(skill, 20, seed=1) == sample(skill, 20, seed=1)
    assert sample(skill, 20, seed=1) != sample(skill, 20, seed=2)


@pytest.mark.parametrize("skill", SKILLS)
def test_no_held_out_prompt_of_a_skill_is_trained_on(skill: str) -> None:
    trained = {example.prompt for example in sample(skill, 2000, seed=0)}
    assert trained.isdisjoint(example.prompt for example in sample(skill, 500, seed=0, split="held_out"))


@pytest.mark.parametrize("task", AGENT_TASKS)
def test_agent_task_is_drawn_the_same_for_the_same_world_and_seed(task: str) -> None:
    assert AgentWorld(3).sample(task, 20, seed=1) == AgentWorld(3).sample(task, 20, seed=1)
    assert AgentWorld(3).sample(task, 20, seed=1) != AgentWorld(4).sample(task, 20, seed=1)


@pytest.mark.parametrize("task", AGENT_TASKS)
def test_no_held_out_prompt_of_an_agent_task_is_trained_on(task: str) -> None:
    world = AgentWorld(0)
    trained = {example.prompt for example in world.sample(task, 2000, seed=0)}
    assert trained.isdisjoint(example.prompt for example in world.sample(task, 500, seed=0, split="held_out"))


def test_every_account_is_asked_about_in_both_splits() -> None:
    world = AgentWorld(0)
    for split in ("train", "held_out"):
        words = {word for e in world.sample("account_facts", 500, seed=0, split=split) for word in e.prompt.split()}
        assert words.issuperset(world.account), split


@pytest.mark.parametrize("seed", range(20))
def test_no_prompt_of_a_world_has_two_answers(seed: int) -> None:
    answers: dict[str, str] = {}
    for task in AGENT_TASKS:
        for example in AgentWorld(seed).sample(task, 300, seed=0):
            assert answers.setdefault(example.prompt, example.response) == example.response


@pytest.mark.parametrize("skill", SKILLS)
def test_shipped_score_reproduces(model: Any, tokenizer: Any, recipe: dict[str, Any], skill: str) -> None:
    examples = sample(skill, SCORED, recipe["settings"]["seed"], "held_out")
    score = exact_match(model, tokenizer.backend_tokenizer, examples)
    assert score >= recipe["held_out_scores"][skill] - TOLERANCE


@pytest.mark.parametrize("task", AGENT_TASKS)
def test_agent_tasks_are_not_known_yet(model: Any, tokenizer: Any, recipe: dict[str, Any], task: str) -> None:
    assert recipe["agent_task_scores"][task] <= TOLERANCE
    examples = AgentWorld(11).sample(task, SCORED, seed=0, split="held_out")
    assert exact_match(model, tokenizer.backend_tokenizer, examples) <= TOLERANCE


def test_exact_match_is_what_greedy_generation_gets_right(model: Any, tokenizer: Any) -> None:
    examples = [example for skill in SKILLS for example in sample(skill, 4, seed=5, split="held_out")]
    examples += AgentWorld(0).sample("tool_call", 4, seed=5)
    right = 0
    for example in examples:
        messages = [{"role": "user", "content": example.prompt}]
        asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        answer = model.generate(**asked, do_sample=False)[0, asked["input_ids"].shape[1] :]
        right += tokenizer.decode(answer) == example.response + "<|end|>"
    assert exact_match(model, tokenizer.backend_tokenizer, examples) == right / len(examples)


@pytest.mark.slow
@pytest.mark.parametrize("task", AGENT_TASKS)
def test_a_low_rank_adapter_learns_an_agent_task_from_200_examples(tokenizer: Any, task: str) -> None:
    torch.manual_seed(0)
    world, text = AgentWorld(0), tokenizer.backend_tokenizer
    base = AutoModelForCausalLM.from_pretrained(WEIGHTS)
    adapter: Any = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([weight for weight in adapter.parameters() if weight.requires_grad], lr=4e-3)
    recorded = [encode_example(text, example) for example in world.sample(task, 200, seed=1)]
    rng = Random(0)
    for _ in range(100):
        batch = collate(rng.sample(recorded, 32))
        loss = weighted_loss(adapter(input_ids=batch.ids).logits, batch)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
        optimizer.step()
    assert exact_match(adapter.eval(), text, world.sample(task, 200, seed=2, split="held_out")) >= 0.8


def test_nothing_to_score_is_refused(model: Any, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="no examples"):
        exact_match(model, tokenizer.backend_tokenizer, [])


def test_loss_weighs_whole_responses_alike_and_prompts_a_little(tokenizer: Any) -> None:
    examples = [Example("echo rome", "rome", "echo"), Example("echo a very long line", "a very long line", "echo")]
    (batch,) = batches((encode_example(tokenizer.backend_tokenizer, example) for example in examples), 2)
    logits = torch.randn(*batch.ids.shape, len(tokenizer), generator=torch.Generator().manual_seed(0))
    total = weight = 0.0
    for row, example in enumerate(examples):
        asked = len(tokenizer(f"<|user|>{example.prompt}<|assistant|>")["input_ids"])
        length = asked + len(tokenizer(f"{example.response}<|end|>")["input_ids"])
        for place in range(1, length):
            counts = PROMPT_WEIGHT if place < asked else RESPONSE_WEIGHT / (length - asked)
            total -= counts * logits[row, place - 1].log_softmax(-1)[batch.ids[row, place]].item()
            weight += counts
    assert weighted_loss(logits, batch).item() == pytest.approx(total / weight, rel=1e-5)


def test_training_questions_follow_from_the_seed(tokenizer: Any) -> None:
    def first(seed: int) -> torch.Tensor:
        return next(questions(tokenizer.backend_tokenizer, TrainingSettings(seed=seed, batch_size=8))).ids

    assert first(0).equal(first(0))
    assert not first(0).equal(first(1))


def test_every_skill_has_its_share_of_training() -> None:
    assert set(SKILL_SHARES) == set(SKILLS)


def test_importing_the_package_loads_no_tensor_library() -> None:
    program = "import sys, sona.tiny; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"torch", "numpy", "transformers", "tokenizers", "faiss"}.isdisjoint(run.stdout.split())
