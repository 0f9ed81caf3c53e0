"""A small model that reads facts and answers where someone is, trained here from nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from benchmarks.attribution.facts import MOST_FACTS, Case, World, words_of
from sona.attribution.leave_one_out import LeaveOneOut, OwnTree
from sona.serving.chat import ChatCodec
from sona.types import Message

PAD, UNKNOWN, USER, ASSISTANT, END = SPECIALS = ("<|pad|>", "<|unk|>", "<|user|>", "<|assistant|>", "<|end|>")
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MAX_TOKENS = 256
BATCH = 32
GROWING = 500  # steps over which the stories get longer
CHECKED, COOLING = 25, 400
MASTERED = 0.84  # of all answers: .86 can be known, and a guess finds one in six of the rest, so a sure reader has .89
QUESTIONS = 4  # to a story, so that a step has more answers to learn from
STRANGER = 0.2  # this share of the questions is about anyone, told of or not
PEAKS = (0.002, 0.002)  # of Muon for the layers' matrices, AdamW for the rest
IGNORED = -100


@dataclass(frozen=True)
class Reader:
    """The model with its words."""

    model: Qwen3ForCausalLM
    tokenizer: PreTrainedTokenizerFast
    codec: ChatCodec
    scorer: LeaveOneOut

    def answers_rightly(self, case: Case) -> bool:
        """Whether its likeliest answer is the right one."""
        ids = self.codec.encode_prompt([message_of(case)])
        with torch.inference_mode():
            logits = self.model(input_ids=torch.from_numpy(ids.astype(np.int64))[None], use_cache=False).logits
        return int(logits[0, -1].argmax()) == self.tokenizer.convert_tokens_to_ids(case.where)


def message_of(case: Case) -> Message:
    """What the case's context lays out to, without its answer."""
    return Message(role="user", content="\n\n".join([*(fact.text for fact in case.facts), case.question]))


def train(world: World, steps: int, seed: int, report: Callable[[int, float], None] = lambda *_: None) -> Reader:
    """A reader of this world's stories, trained until it reads fresh ones rightly, for ``steps`` at most. It answers
    about someone of whom nothing is told by a guess.
    """
    tokenizer = word_tokenizer(words_of(world))
    torch.manual_seed(seed)
    model = new_model(len(tokenizer))
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "layers" in name]
    others = [weight for name, weight in model.named_parameters() if not (weight.ndim == 2 and "layers" in name)]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=PEAKS[0], momentum=0.95, weight_decay=0.0, ns_steps=4),
        torch.optim.AdamW(others, lr=PEAKS[1], betas=(0.9, 0.98), weight_decay=0.0),
    ]
    model.train()
    end = steps  # brought forward once it reads its stories rightly: then the rates fall to 0
    for step, (ids, labels) in enumerate(batches(world, tokenizer, steps, seed)):
        if step == end:
            break
        if end == steps and step >= GROWING and step % CHECKED == 0 and right_share(model, ids, labels) >= MASTERED:
            end = min(steps, step + COOLING)
        for optimizer, peak in zip(optimizers, PEAKS, strict=True):
            optimizer.param_groups[0]["lr"] = peak * min(1.0, (step + 1) / 50, (end - step) / COOLING)
        loss = loss_of(model, ids, labels)
        model.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        report(step, loss.item())
    model.train(False)
    return Reader(model, tokenizer, ChatCodec(tokenizer, None), LeaveOneOut(OwnTree(model, MAX_TOKENS)))


def right_share(model: Qwen3ForCausalLM, ids: Tensor, labels: Tensor) -> float:
    """The share of the answers of fresh stories that are its likeliest."""
    with torch.no_grad():
        found = model(input_ids=ids, use_cache=False).logits[:, :-1].argmax(-1)
    answers = (labels[:, 1:] != IGNORED) & (labels[:, 1:] != SPECIALS.index(END))
    return float((found == labels[:, 1:])[answers].float().mean())


def loss_of(model: Qwen3ForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the answers (B, T); the output head runs on their rows alone."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]  # (B, T - 1, D)
    wanted = labels[:, 1:] != IGNORED
    return F.cross_entropy(model.lm_head(hidden[wanted]), labels[:, 1:][wanted])


def new_model(vocab_size: int) -> Qwen3ForCausalLM:
    """Untrained; its weights follow from torch's global seed."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,
            max_position_embeddings=MAX_TOKENS,
            rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
            tie_word_embeddings=True,
            initializer_range=0.06,
            bos_token_id=None,
            pad_token_id=SPECIALS.index(PAD),
            eos_token_id=SPECIALS.index(END),
        )
    )


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A token a word or mark; what lies between them is not seen."""
    vocabulary = {word: number for number, word in enumerate((*SPECIALS, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in SPECIALS])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        padding_side="left",
        model_max_length=MAX_TOKENS,
        chat_template=TEMPLATE,
    )


def batches(world: World, tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Stories with questions as they are needed, each seen once: ids and labels, int64 (B, T) each. They grow over the
    first part: on long ones alone it stays at guessing among the places that were told.
    """
    rng = Random(f"reader/{seed}")
    for step in range(steps):
        longest = min(MOST_FACTS, 2 + step * MOST_FACTS // GROWING)
        told = [conversation(world, rng, longest) for _ in range(BATCH)]
        rows = tokenizer(["".join(text for text, _ in turns) for turns in told], add_special_tokens=False)["input_ids"]
        ids = torch.full((BATCH, max(map(len, rows))), SPECIALS.index(PAD))
        labels = torch.full_like(ids, IGNORED)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
            for at, token in enumerate(row[:-1]):
                if token == SPECIALS.index(ASSISTANT):
                    labels[place, at + 1 : at + 3] = ids[place, at + 1 : at + 3]  # the answer and its end
        yield ids, labels


def conversation(world: World, rng: Random, longest: int) -> list[tuple[str, str]]:
    """Each question as the model reads it, the first with the story before it, and its answer."""
    facts = world.story(rng, rng.randint(0, longest))
    told = {fact.who: fact.where for fact in facts}  # the last place of each
    turns = []
    for number in range(QUESTIONS):
        known = told and rng.random() >= STRANGER
        who = rng.choice(sorted(told) if known else world.people)
        where = told.get(who) or rng.choice(world.places)
        story = "\n\n".join(fact.text for fact in facts) + "\n\n" if not number else ""
        turns.append((f"{USER}{story}Where is {who}?{ASSISTANT}{where}{END}", where))
    return turns
