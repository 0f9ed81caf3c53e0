"""Token ids and ranges through chat templates that trim, strip thinking, and hide."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sona.attribution.context import ALL_MEMORIES, Context, Drop, Segment
from sona.attribution.layout import lay_out
from sona.attribution.tokens import Encoded, encode
from sona.errors import ModelError
from sona.serving.chat import ChatCodec
from sona.tiny import model_path
from sona.types import ToolCall

PLAIN = None
TRIMS = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}\n"
    "{% for c in m.get('tool_calls', []) %}[{{ c.function.name }} {{ c.function.arguments | tojson }}]{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
THINKS = (  # as Qwen3's: earlier thinking is cut away, the last answer gets a block even where it has none
    "{% for m in messages %}{% set c = m.content %}{% if m.role == 'assistant' %}"
    "{% set t = c.split('</think>')[0].split('<think>')[-1] if '</think>' in c else '' %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}"
    "<|assistant|>{% if loop.last %}<think>{{ t }}</think>{% endif %}{{ c }}<|end|>"
    "{% else %}<|{{ m.role }}|>{{ c }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SHOUTS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | upper }}{% endfor %}"
HIDES = "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}{% endif %}{% endfor %}"
REFUSES = "{% if messages | length < 3 %}{{ raise_exception('too few') }}{% endif %}" + TRIMS

TALK = Context(
    (
        Segment("system", "be kind"),
        Segment("memory", "river blue", "m"),
        Segment("user", "what is assistant <|assistant|> ? "),
        Segment("assistant", "the assistant is blue "),
        Segment("user", "and user ?"),
        Segment("assistant", "<think>\nhm </think>\n\nstone river"),
    )
)


def codec(template: str | None) -> ChatCodec:
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    if template is not None:
        tokenizer.chat_template = template
    return ChatCodec(tokenizer, tokenizer.eos_token_id)


def texts(made: ChatCodec, found: Encoded, which: str = "responses") -> list[str]:
    return [made.decode(found.ids[a:b].tolist()).strip() for a, b in getattr(found, which).values()]


@pytest.mark.parametrize("template", [PLAIN, TRIMS, THINKS])
def test_responses_and_memories_are_found_where_segments_say_and_thinking_is_not_scored(template: str | None) -> None:
    made = codec(template)
    found = encode(TALK, made)
    assert texts(made, found) == ["the assistant is blue", "stone river"]
    assert texts(made, found, "memories") == ["river blue"]
    assert list(found.responses) == [3, 5]


@pytest.mark.parametrize("template", [PLAIN, TRIMS, THINKS, ""])
def test_the_ids_are_those_of_the_prompt_that_the_model_would_get(template: str | None) -> None:
    made = codec(template)
    upto = Context(TALK.segments[:5])
    prompt = made.encode_prompt([one.message for one in lay_out(upto)])
    ids = encode(upto, made).ids
    np.testing.assert_array_equal(ids, prompt[: len(ids)])
    assert len(prompt) - len(ids) <= 3  # the opening of an answer


def test_without_a_template_a_response_is_its_own_line() -> None:
    made = codec("")
    assert texts(made, encode(TALK, made))[0] == "the assistant is blue"


def test_a_variant_is_what_the_model_would_have_read() -> None:
    made = codec(PLAIN)
    left = encode(TALK, made, ALL_MEMORIES)
    wanted = Context(tuple(one for one in TALK.segments if one.kind != "memory"))
    np.testing.assert_array_equal(left.ids, encode(wanted, made).ids)
    assert not left.memories


def test_a_special_token_that_is_said_stays_text() -> None:
    made = codec(PLAIN)
    ids = encode(TALK, made).ids
    spelled = [made.spell(int(token)) for token in ids]
    assert spelled.count("<|assistant|>") == 2


def test_a_template_that_alters_words_is_followed_message_by_message() -> None:
    made = codec(SHOUTS)
    assert texts(made, encode(TALK, made))[0] == "THE ASSISTANT IS BLUE"


def test_a_template_that_shows_no_answer_is_told_as_such() -> None:
    with pytest.raises(ModelError, match="does not show the answer"):
        encode(TALK, codec(HIDES))


def test_a_template_that_refuses_what_is_left_is_told_as_such() -> None:
    short = Context(
        (Segment("user", "a"), Segment("memory", "b", "m"), Segment("user", "c"), Segment("assistant", "d"))
    )
    made = codec(REFUSES)
    encode(short, made)
    with pytest.raises(ModelError, match="too few"):
        encode(short, made, Drop(indices=(0,)))


def test_an_answer_that_calls_a_tool_is_the_call() -> None:
    call = ToolCall(name="look", arguments='{"at": "sky"}')
    context = Context((Segment("user", "go"), Segment("assistant", tool_calls=(call,)), Segment("tool", "rain")))
    made = codec(TRIMS)
    (only,) = texts(made, encode(context, made))
    assert only == '[look {"at": "sky"}]'


def test_an_answer_that_is_all_thinking_is_not_scored() -> None:
    made = codec(THINKS)
    context = Context((Segment("user", "go"), Segment("assistant", "<think>hm</think>"), Segment("user", "so?")))
    assert encode(context, made).responses == {}


def test_nothing_after_the_last_response_is_in_the_passage() -> None:
    made = codec(PLAIN)
    more = Context((*TALK.segments, Segment("user", "and then ?")))
    assert len(encode(more, made).passage().ids) == encode(more, made).responses[5][1]
