"""Questions about long conversations and articles, where it is labelled which parts hold the answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from benchmarks.dataset import Row
from sona.attribution.context import Context, Segment
from sona.attribution.tokens import Codec

MEMORIES = 10  # to a question: those that hold the answer, the rest drawn by chance
ROOM = 0.9  # of what the model takes; the rest is the question, the answer and the template


@dataclass(frozen=True)
class Item:
    """One question."""

    memories: tuple[str, ...]
    evidence: tuple[int, ...]
    """Which of them hold the answer."""
    question: str
    answer: str
    cut: bool = False
    """Whether memories were shortened, because the model takes no more."""

    def context(self) -> Context:
        """Its memories in the system's message, then the question with the right answer."""
        memories = [Segment("memory", text, key=f"memory-{place}") for place, text in enumerate(self.memories)]
        return Context((*memories, Segment("user", self.question), Segment("assistant", self.answer)))


def is_evidence(row: Row) -> bool:
    """Whether a row is of one of the two kinds of data."""
    return {"scenario", "turns"} <= row.keys() or {"supporting_facts", "context"} <= row.keys()


def read_items(folder: Path, seed: int) -> Iterator[Item]:
    """The questions, in an order by chance."""
    items = list(_conversations(folder) if (folder / "dev" / "conversations.jsonl").is_file() else _articles(folder))
    rng = Random(f"evidence/{seed}")
    rng.shuffle(items)
    return (_thinned(item, rng) for item in items)


def _rows(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def _conversations(folder: Path) -> Iterator[Item]:
    turns = {
        row["scenario"]: [turn["content"] for turn in row["turns"]]
        for row in _rows(folder / "dev" / "conversations.jsonl")
    }
    for row in _rows(folder / "dev" / "questions.jsonl"):
        evidence = tuple(row["evidence_turns"])
        if evidence:
            yield Item(tuple(turns[row["scenario"]]), evidence, row["question"], str(row["answers"][0]))


def _articles(folder: Path) -> Iterator[Item]:
    for row in _rows(folder / "dev" / "questions.jsonl"):
        titles = [part["title"] for part in row["context"]]
        texts = tuple(f"{part['title']}: {''.join(part['sentences'])}" for part in row["context"])
        evidence = tuple(sorted({titles.index(title) for title, _ in row["supporting_facts"] if title in titles}))
        if evidence:
            yield Item(texts, evidence, row["question"], row["answer"])


def _thinned(item: Item, rng: Random) -> Item:
    others = [place for place in range(len(item.memories)) if place not in item.evidence]
    drawn = rng.sample(others, min(len(others), max(1, MEMORIES - len(item.evidence))))
    kept = sorted([*item.evidence, *drawn])
    return replace(
        item,
        memories=tuple(item.memories[place] for place in kept),
        evidence=tuple(kept.index(place) for place in item.evidence),
    )


def fitted(item: Item, codec: Codec, max_tokens: int) -> Item:
    """The item with memories short enough for the model: each longer one is cut to the characters around the answer,
    or to its beginning where it does not spell it.
    """
    room = int(ROOM * max_tokens) - tokens_in(codec, [item.question, item.answer])
    share = max(1, room // len(item.memories))
    texts = tuple(_cut(text, item.answer, codec, share) for text in item.memories)
    return replace(item, memories=texts, cut=texts != item.memories)


def tokens_in(codec: Codec, texts: Sequence[str]) -> int:
    """How many tokens they are."""
    return sum(len(codec.spell_out(text, ()).ids) for text in texts)


def _cut(text: str, answer: str, codec: Codec, most: int) -> str:
    tokens = tokens_in(codec, [text])
    while tokens > most:
        length = max(1, int(len(text) * most / tokens * 0.95))
        at = max(0, text.lower().find(answer.lower()))
        start = min(max(0, at + len(answer) // 2 - length // 2), len(text) - length)
        text = text[start : start + length].strip() or text[:length]
        tokens = tokens_in(codec, [text])
    return text
