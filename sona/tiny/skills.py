"""The skills that the shipped model has: what an agent does all day, cut down to words.

Each skill is a sampler that draws one question and its answer from endless supply. `sample` keeps those of one split;
which split a prompt is in follows from its text alone, so nothing that was trained on can turn up in a test.
"""

from collections.abc import Callable, Mapping, Sequence
from random import Random
from types import MappingProxyType
from typing import Final

from sona.tiny.example import Example, Split, split_of
from sona.tiny.lexicon import CLASS_OF, CLASSES, CONTENT, DIGITS, GLUE

Sampler = Callable[[Random], tuple[str, str]]
"""Draws one (prompt, response)."""

ARGUMENTS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "query": CLASSES["city"] + CLASSES["fruit"],
        "to": CLASSES["person"],
        "city": CLASSES["city"],
        "day": CLASSES["weekday"],
        "item": CLASSES["fruit"],
        **dict.fromkeys(("room", "place", "zone", "area"), CLASSES["room"]),
        **dict.fromkeys(("limit", "level", "size", "speed", "count"), DIGITS),
    }
)
"""Argument of a tool -> the values it takes."""

TOOLS: Final = ("search", "mail", "note", "book", "order", "remind", "play", "set")

PLAIN_WORDS: Final = CONTENT + tuple(CLASSES) + GLUE
"""Every word of the lexicon, whatever its part."""

_ORDINALS: Final = {"first": 0, "second": 1, "last": -1}
_SLOTS: Final = ("from", "to", "on", "in", "at", "for", "by", "room", "city", "day", "level", "query", "limit", "item")

_PEOPLE: Final = CLASSES["person"] + CLASSES["surname"]
_THINGS: Final = CLASSES["furniture"] + CLASSES["clothing"]
_FACTS: Final = (
    (_PEOPLE, "visits", CLASSES["city"] + CLASSES["country"], "what is visited by {}"),
    (_PEOPLE, "likes", CLASSES["food"] + CLASSES["drink"], "what is liked by {}"),
    (_THINGS, "is", CLASSES["colour"], "what is the colour of the {}"),
)


def _word(rng: Random) -> str:
    return rng.choice(CONTENT) if rng.random() < 0.8 else rng.choice(PLAIN_WORDS)


def _words(rng: Random, low: int, high: int) -> list[str]:
    return [_word(rng) for _ in range(rng.randint(low, high))]


def _number(rng: Random) -> str:
    return str(rng.randrange(10 ** rng.randint(1, 3)))


def _name(rng: Random) -> str:
    """A made-up name, the head of one word and the tail of another: it teaches the pieces that unknown words fall
    into.
    """
    front, back = rng.choices(PLAIN_WORDS, k=2)
    return front[: rng.randint(1, 4)] + back[-rng.randint(1, 4) :]


def _compound(rng: Random) -> str:
    """Words joined by a mark, as in `room:attic` or `[milk]`: the one place where words without a leading space are
    copied.
    """
    name, values = rng.choice(tuple(ARGUMENTS.items()))
    left, right = rng.choice(("{}", "[]", "<>", "()", '""'))
    value = rng.choice(values)
    return rng.choice((f"{name}{rng.choice(':=|,;/.-_')}{value}", f"{left}{value}{right}", f"{left}{name}{right}"))


def _token(rng: Random) -> str:
    kind = rng.random()
    if kind < 0.7:
        return _word(rng)
    return (_number if kind < 0.78 else _name if kind < 0.88 else _compound)(rng)


def _echo(rng: Random) -> tuple[str, str]:
    text = " ".join(_token(rng) for _ in range(rng.randint(1, 6)))
    return rng.choice(("echo {}", "repeat after me : {}", "please say {}")).format(text), text


def _reverse(rng: Random) -> tuple[str, str]:
    words = _words(rng, 2, 4)
    prompt = rng.choice(("reverse {}", "turn around {}", "please read {} backwards")).format(" ".join(words))
    return prompt, " ".join(reversed(words))


def _pick(rng: Random) -> tuple[str, str]:
    words = _words(rng, 2, 5)
    ordinal = rng.choice(tuple(_ORDINALS))
    phrasing = rng.choice(("{} of {}", "take the {} of {}", "which is {} in {} ?"))
    return phrasing.format(ordinal, " ".join(words)), words[_ORDINALS[ordinal]]


def _lookup_slot(rng: Random) -> tuple[str, str]:
    facts = [(slot, rng.choice(CONTENT)) for slot in rng.sample(_SLOTS, rng.randint(2, 3))]
    slot, value = rng.choice(facts)
    told = " ".join(f"{name} {word}" for name, word in facts)
    prompt, response = rng.choice(
        (("get {} ? {}", "{value}"), ("given {} ; what is {}", "{value}"), ("remind me , {} ; {}", "{slot} {value}"))
    )
    return prompt.format(told, slot), response.format(slot=slot, value=value)


def _lookup_fact(rng: Random) -> tuple[str, str]:
    """Facts told in sentences, then asked for: what an agent does with its memory."""
    subjects, link, objects, question = rng.choice(_FACTS)
    facts = [(subject, rng.choice(objects)) for subject in rng.sample(subjects, rng.randint(2, 3))]
    subject, value = rng.choice(facts)
    told = " , ".join(f"{who} {link} {what}" for who, what in facts)
    # A whole sentence is the easier answer: it begins with the subject, and only what followed that is to be found.
    asked, response = rng.choice(((question, value), ("tell me about {}", f"{subject} {link} {value}")))
    return f"{told} . {asked.format(subject)}", response


def _lookup(rng: Random) -> tuple[str, str]:
    return rng.choice((_lookup_slot, _lookup_fact))(rng)


def _call(rng: Random) -> tuple[str, str]:
    tool = rng.choice(TOOLS)
    arguments = [(name, rng.choice(ARGUMENTS[name])) for name in rng.sample(tuple(ARGUMENTS), rng.randint(1, 3))]
    spoken = " ".join(f"{name} {value}" for name, value in arguments)
    written = ",".join(f"{name}={value}" for name, value in arguments)
    prompt = rng.choice(("call {} with {}", "use {} : {}", "run {} for me , {}")).format(tool, spoken)
    return prompt, f"{tool}({written})"


def _tag(rng: Random) -> tuple[str, str]:
    words = rng.choices(CONTENT, k=rng.randint(1, 4))
    prompt = rng.choice(("tag {}", "what kind is {} ?", "class of {}")).format(" ".join(words))
    return prompt, " ".join(CLASS_OF[word] for word in words)


def _count(rng: Random) -> tuple[str, str]:
    words = _words(rng, 1, 8)
    return rng.choice(("count {}", "how many words : {}")).format(" ".join(words)), str(len(words))


def _cycles() -> dict[str, str]:
    rings: Sequence[Sequence[str]] = (DIGITS, CLASSES["weekday"], CLASSES["month"], CLASSES["season"])
    return {word: ring[(place + 1) % len(ring)] for ring in rings for place, word in enumerate(ring)}


_NEXT: Final = _cycles()


def _successor(rng: Random) -> tuple[str, str]:
    words = rng.choices(tuple(_NEXT), k=rng.randint(1, 4))
    prompt = rng.choice(("next {}", "what comes after {} ?")).format(" ".join(words))
    return prompt, " ".join(_NEXT[word] for word in words)


SKILLS: Final[Mapping[str, Sampler]] = MappingProxyType(
    {
        "echo": _echo,
        "reverse": _reverse,
        "pick": _pick,
        "lookup": _lookup,
        "call": _call,
        "tag": _tag,
        "count": _count,
        "successor": _successor,
    }
)
"""Skill -> what draws one question of it."""


def draw(skill: str, rng: Random, split: Split) -> Example:
    """Return the next example of a skill that belongs to the split."""
    while True:
        prompt, response = SKILLS[skill](rng)
        if split_of(prompt) == split:
            return Example(prompt, response, skill)


def sample(skill: str, n: int, seed: int, split: Split = "train") -> list[Example]:
    """Return `n` examples of a skill, the same ones for the same arguments.

    No prompt of one split ever occurs in the other. `tag` and `successor` rest on closed sets of facts: their held-out
    prompts ask for known words in unseen combinations. A prompt may come twice.

    Raises:
        KeyError: no skill has that name.
    """
    rng = Random(f"{skill}/{seed}/{split}")
    return [draw(skill, rng, split) for _ in range(n)]
