"""Records of the bank's nouns, of which a test says only what it is about."""

from typing import Any

import numpy as np

from sona.bank.lessons import LessonRequest, request_of
from sona.bank.shelf import Asked
from sona.patterns import Exemplar, Lesson, Pattern, Verdict


def exemplar(name: str, quality: float, **other: Any) -> Exemplar:
    fields = {"prompt": f"question {name}", "response": f"answer {name}", "similarity": 0.9, **other}
    return Exemplar(trajectory_id=name, quality=quality, **fields)


def verdict(count: int, mean: float) -> Verdict:
    return Verdict(count=count, mean=mean, m2=count * mean * (1 - mean), recent_weight=count, recent_mean=mean)


def pattern(name: str = "p1", *, count: int = 20, mean: float = 0.6, **other: Any) -> Pattern:
    fields: dict[str, Any] = {
        "exemplars": (exemplar(f"{name}-good1", 1.0), exemplar(f"{name}-good2", 0.9)),
        "failures": (exemplar(f"{name}-bad", 0.1),),
        "touched_cycle": 3,
        **other,
    }
    centroid = np.eye(1, 4, dtype="<f4")[0].tobytes()
    return Pattern(id=name, centroid=centroid, count=count, spread=0.9, verdict=verdict(count, mean), **fields)


def lesson(name: str, **other: Any) -> Lesson:
    fields: dict[str, Any] = {
        "title": f"Title {name}",
        "when": "always",
        "advice": "do",
        "text": f"Do what {name} says.",
        "trajectory_ids": ("p1-good1",),
        "shown": ("p1-good1", "p1-bad"),
        **other,
    }
    return Lesson(id=name, **fields)


def request(most: int = 3, **other: Any) -> LessonRequest:
    made = request_of(pattern(**other), Asked(), most)
    assert made is not None
    return made
