"""Five tasks whose prompts share all words but one verb, at any place: words alone don't tell them apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from benchmarks.forgetting.agent_tasks import SPOKEN, spoken
from benchmarks.forgetting.base_skills import CLASSES, Task, Words
from benchmarks.forgetting.vocabulary import NAMES, REGIONS, TEAMS

MASKS = {"name": "[N]", "city": "[C]", "level": "X"}


@dataclass(frozen=True)
class Verb:
    """Three words and a verb among them; what is to be done with the words depends on the verb alone."""

    verb: str
    answer: Callable[[Words], Words]
    """Of the three words."""

    def __call__(self, rng: Random) -> tuple[Words, Words]:
        words, place = spoken(rng, 3), rng.randrange(4)
        return [*words[:place], self.verb, *words[place:]], self.answer(words)


def overlap_tasks(rng: Random) -> dict[str, Task]:
    """The five by name; the two that look words up have tables drawn from ``rng``."""
    pool = [word for words in SPOKEN for word in words]
    teams = {word: rng.choice(TEAMS) for word in pool}
    regions = {word: rng.choice(REGIONS) for word in pool}

    def route(words: Words) -> Words:
        return ["escalate" if words[0] in NAMES else "retry", words[1], regions[words[2]]]

    return {
        "tool": Verb("fault", lambda words: [words[0], "{", words[1], ":", words[2], "}"]),
        "slot": Verb("ticket", lambda words: ["src", words[2], "dst", words[0]]),
        "facts": Verb("plan", lambda words: [teams[words[0]], teams[words[1]]]),
        "redact": Verb("redact", lambda words: [MASKS.get(CLASSES[word], word) for word in words]),
        "route": Verb("escalate", route),
    }
