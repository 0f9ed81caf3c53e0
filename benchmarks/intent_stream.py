"""A stream of real queries whose domains arrive one after the other, some of the recorded answers wrong."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.dataset import DataNeed, Row, read_rows

WRONG_SHARE = 0.15
TEST_SHARE = 0.25  # of an intent's queries, where the data bring no split of their own
LEAST_CHUNK = 100  # trajectories; a smaller domain gets fewer cycles
OUT_OF_SCOPE = "oos"


@dataclass(frozen=True)
class Query:
    """What a user asked, and the right answer."""

    text: str
    intent: str
    """In words: underscores are spaces."""
    domain: str


@dataclass(frozen=True)
class Recorded:
    """A query as the agent handled it."""

    query: Query
    response: str
    quality: float
    """1.0 where the response is right, 0.0 where it is not."""


@dataclass(frozen=True)
class StreamSize:
    """How much of the data is used."""

    domains: int = 6
    """The largest ones, in the order in which the file names them first."""
    intents: int | None = None
    """Of each domain, drawn by the seed; None takes all."""
    chunks: int = 2
    """Of each domain, a cycle after each."""
    chunk: int = 300
    """Trajectories between two cycles, at most."""
    held_out: int = 150
    """Queries of each domain that are asked and never recorded, at most."""


@dataclass(frozen=True)
class IntentStream:
    """What arrives between the cycles, and what is asked after each."""

    domains: tuple[str, ...]
    """In the order of their arrival."""
    chunks: tuple[tuple[Recorded, ...], ...]
    chunk_domains: tuple[str, ...]
    """(chunks,) the domain of each."""
    held_out: dict[str, tuple[Query, ...]]
    """By domain; no text of them is in a chunk."""

    def merged(self) -> IntentStream:
        """The same trajectories as one chunk, for training on everything at once."""
        return IntentStream(
            self.domains, (tuple(one for chunk in self.chunks for one in chunk),), ("all",), self.held_out
        )


def has_intents(row: Row) -> bool:
    """Whether a row is a query with its intent and its domain."""
    return {"text", "intent"} <= row.keys() and bool({"domain", "group"} & row.keys())


NEED = DataNeed("text, intent, and domain or group", has_intents)


def intent_stream(folder: Path, size: StreamSize, seed: int) -> IntentStream:
    """The stream that the data in ``folder`` make: the same for the same seed.

    Held out are the data's own test queries (``orig_split``), or a quarter of each intent's drawn by the seed.
    """
    rng = random.Random(f"intent stream {seed}")
    by_domain = _largest(read_rows_of_domains(folder), size.domains)
    chunks: list[tuple[Recorded, ...]] = []
    chunk_domains: list[str] = []
    held_out: dict[str, tuple[Query, ...]] = {}
    for domain, rows in by_domain.items():
        kept = _some_intents(rows, size.intents, rng)
        test, train = _split(kept, rng)
        held_out[domain] = tuple(test[: size.held_out])
        recorded = _answered(train[: size.chunks * size.chunk], rng)
        count = max(1, min(size.chunks, len(recorded) // LEAST_CHUNK))
        chunks += [tuple(recorded[place::count]) for place in range(count)]
        chunk_domains += [domain] * count
    return IntentStream(tuple(by_domain), tuple(chunks), tuple(chunk_domains), held_out)


Labelled = tuple[Query, str | None]
"""A query and the split that its data put it in."""


def read_rows_of_domains(folder: Path) -> dict[str, list[Labelled]]:
    """Queries by domain, each text once, without those that belong to none."""
    found: dict[str, list[Labelled]] = defaultdict(list)
    seen: set[str] = set()
    for row in read_rows(folder):
        text, domain = str(row["text"]).strip(), str(row["domain"] if "domain" in row else row["group"])
        if not text or text in seen or OUT_OF_SCOPE in (domain, row["intent"]):
            continue
        seen.add(text)
        found[domain].append((Query(text, str(row["intent"]).replace("_", " "), domain), row.get("orig_split")))
    return dict(found)


def _largest(by_domain: dict[str, list[Labelled]], count: int) -> dict[str, list[Labelled]]:
    sizes = Counter({domain: len(rows) for domain, rows in by_domain.items()})
    largest = {domain for domain, _ in sizes.most_common(count)}
    return {domain: rows for domain, rows in by_domain.items() if domain in largest}


def _some_intents(rows: Sequence[Labelled], count: int | None, rng: random.Random) -> list[Labelled]:
    names = sorted({query.intent for query, _ in rows})
    chosen = set(names if count is None else rng.sample(names, min(count, len(names))))
    return [row for row in rows if row[0].intent in chosen]


def _split(rows: Sequence[Labelled], rng: random.Random) -> tuple[list[Query], list[Query]]:
    """Test and training queries, each shuffled."""
    if any(split == "test" for _, split in rows):
        test = [query for query, split in rows if split == "test"]
        train = [query for query, split in rows if split != "test"]
        rng.shuffle(test)
        rng.shuffle(train)
        return test, train
    by_intent: dict[str, list[Query]] = defaultdict(list)
    for query, _ in rows:
        by_intent[query.intent].append(query)
    test, train = [], []
    for queries in by_intent.values():
        rng.shuffle(queries)
        cut = max(1, round(TEST_SHARE * len(queries)))
        test += queries[:cut]
        train += queries[cut:]
    rng.shuffle(test)
    rng.shuffle(train)
    return test, train


def _answered(queries: Sequence[Query], rng: random.Random) -> list[Recorded]:
    """The queries with their answers, of which some are another intent of the same domain and rated 0."""
    intents = sorted({query.intent for query in queries})
    recorded = []
    for query in queries:
        others = [intent for intent in intents if intent != query.intent]
        if others and rng.random() < WRONG_SHARE:
            recorded.append(Recorded(query, rng.choice(others), 0.0))
        else:
            recorded.append(Recorded(query, query.intent, 1.0))
    return recorded
