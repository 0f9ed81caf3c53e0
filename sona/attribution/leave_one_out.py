"""Scores by a model in this process: exact, and much faster than a full pass for each memory that is left out.

The ways, from the fastest to the one that always works:

* ``packed``: the whole passage once, then of each variant only the tokens after what it shares with the whole, many
  variants side by side (:mod:`sona.attribution.packed`); for plain causal attention.
* ``walked``: the same by the model's own cache, one variant after the other (:mod:`sona.attribution.walked`); for
  sliding windows, recurrent states and all else that continues rightly from a cache.
* ``plain``: a full pass for each, all its tokens at once.

In all of them the output head runs on the responses' rows alone. Which one fits is not read off the model's name: each
is tried once on a short passage and must give what full passes give.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self, runtime_checkable

import numpy as np
import torch
from transformers import PreTrainedModel

from sona.attribution.cascade import cascading
from sona.attribution.packed import packed_scores
from sona.attribution.passes import as_tokens, check_head, plain_scores, vocab_of
from sona.attribution.scorer import Answer, Passage, Range, Scores, check_scores
from sona.attribution.walked import walked_scores
from sona.checks import Int32
from sona.errors import InvalidInputError, ScoringError, UnknownTokenError
from sona.ports import ModelTree

Way = Literal["packed", "walked", "plain"]
STEP_TOKENS = 2048
PROBE_TOKENS, PROBE_START = 96, 40
SINGLE = 1e-4
"""In single precision two ways differ by some 1e-6 nats a token, wrong ones by 0.01 and more."""
HALF = 0.1
"""In half precision by about 0.01."""
FLOORS = {torch.bfloat16: 0.27, torch.float16: 0.05}
"""Nats that a response's total moves by rounding (measured against float32); in single precision :data:`FLOOR`."""
FLOOR = 1e-3


class TreeSource(Protocol):
    """Who lends the model."""

    @property
    def max_tokens(self) -> int:
        """The longest passage."""

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""

    def lend_tree(self, prompt: Int32) -> AbstractContextManager[ModelTree]:
        """A tree that answers as ``prompt`` (tokens,) would be answered now, for one thread until the block ends."""


@runtime_checkable
class HeldSource(TreeSource, Protocol):
    """Who lends one version of the model."""

    @property
    def version(self) -> str:
        """Its name."""


@runtime_checkable
class VersionedSource(TreeSource, Protocol):
    """Who lends a model that another version may be swapped into."""

    def hold(self) -> AbstractContextManager[HeldSource]:
        """Who lends the version that is in force now until the block ends."""


@dataclass
class _Turns:
    """What a scorer and those that it holds share: one at a time computes."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    user: int = 0
    """The thread whose turn it is."""
    way: Way | None = None
    floor: float = 0.0
    """Nats; 0 until the way was found."""


class LeaveOneOut:
    """A :class:`sona.attribution.scorer.PassagesScorer` in this process. Safe to call from several threads: they wait
    for each other.

    Args:
        source: who lends the model.
        step_tokens: at most so many tokens are read at once, which bounds the memory that a pass takes beside the
            whole passage's keys and values.
        way: None finds the fastest that is right for the model.
    """

    def __init__(self, source: TreeSource, *, step_tokens: int = STEP_TOKENS, way: Way | None = None) -> None:
        if step_tokens < 1:
            raise InvalidInputError(f"step_tokens: {step_tokens}; at least 1 is allowed")
        self.step_tokens = step_tokens
        self._source, self._turns = source, _Turns(way=way)

    @property
    def name(self) -> str:
        """For a person."""
        return "in process"

    @property
    def max_tokens(self) -> int:
        """The longest passage that it takes."""
        return self._source.max_tokens

    @property
    def noise_floor(self) -> float:
        """Nats, of the model's precision, or more where its ways differ by more."""
        self._find()
        return self._turns.floor

    @property
    def version(self) -> str:
        """Of the model, as far as it has versions; else empty."""
        return self._source.version if isinstance(self._source, HeldSource) else ""

    @contextmanager
    def hold(self) -> Iterator[Self]:
        """One that scores by the version that is in force now until the block ends, whatever is swapped meanwhile."""
        if not isinstance(self._source, VersionedSource):
            yield self
            return
        with self._source.hold() as source:
            held = copy.copy(self)
            held._source = source
            yield held

    @property
    def way(self) -> Way:
        """How it computes, which the first call finds."""
        return self._find()

    def score(self, ids: Int32, ranges: Sequence[Range]) -> Scores:
        """See :meth:`sona.attribution.scorer.Scorer.score`."""
        passage = Passage(ids, tuple(ranges))
        for _, scores in self.score_all([passage]):
            if isinstance(scores, Exception):
                raise scores
            return scores
        return []

    def score_all(self, passages: Sequence[Passage]) -> Iterator[Answer]:
        """See :meth:`sona.attribution.scorer.PassagesScorer.score_all`. All are answered with the adapter that the
        first one's last response is.
        """
        if not passages:
            return
        for passage in passages:
            self.check(passage)
        with self.lent(prompt_of(passages[0])) as (tree, way):
            for place, scores in answers(tree, passages, way, self.step_tokens):
                yield place, checked(scores, passages[place])

    def check(self, passage: Passage) -> None:
        """Raises InvalidInputError or UnknownTokenError where the model can't take it."""
        if len(passage.ids) > self.max_tokens:
            raise InvalidInputError(
                f"context: {len(passage.ids)} tokens; the model takes {self.max_tokens}, so score it in chunks of fewer"
            )
        if not len(passage.ids):
            return
        low, high = int(passage.ids.min()), int(passage.ids.max())
        if low < 0 or high >= self._source.vocab_size:
            raise UnknownTokenError(
                f"token ids {low}..{high}: this model knows 0 to {self._source.vocab_size - 1}; use its tokenizer"
            )

    @contextmanager
    def lent(self, prompt: Int32) -> Iterator[tuple[ModelTree, Way]]:
        """The model and the way to compute with it, for one thread until the block ends."""
        turns = self._turns
        if turns.user == threading.get_ident():
            raise ScoringError(
                "scorer: asked amid its own answers on the same thread; take them all first, or close them"
            )
        with turns.lock:
            turns.user = threading.get_ident()
            try:
                with self._source.lend_tree(prompt) as tree:
                    if turns.way is None or not turns.floor:
                        self._find_way(tree)
                    assert turns.way is not None
                    yield tree, turns.way
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                raise ScoringError(
                    f"scorer: out of memory with {self.step_tokens} tokens at once; lower step_tokens or chunk_tokens"
                ) from error
            finally:
                turns.user = 0

    def _find(self) -> Way:
        if self._turns.way is None or not self._turns.floor:
            with self.lent(np.zeros(1, dtype=np.int32)) as (_, way):
                return way
        return self._turns.way

    def _find_way(self, tree: ModelTree) -> None:
        """Try the ways on a passage and a variant of it, against full passes."""
        passages = probe(vocab_of(tree), min(PROBE_TOKENS, self.max_tokens))
        check_head(tree, as_tokens(passages[0].ids, tree.model.device))
        wanted = [plain_scores(tree, passage) for passage in passages]
        dtype = tree.model.dtype
        limit = HALF if dtype in FLOORS else SINGLE
        turns = self._turns
        ways: tuple[Way, ...] = ("packed", "walked", "plain") if turns.way is None else (turns.way,)
        for way in ways:
            apart, total = _difference(tree, passages, wanted, way)
            if apart <= limit or way == "plain":
                turns.way, turns.floor = way, max(FLOORS.get(dtype, FLOOR), 4.0 * total)
                return
        raise ScoringError(f"way: {ways[0]!r} is wrong for this model, by {apart:.2g} nats a token; leave it out")


def _is_out_of_memory(error: Exception) -> bool:
    # On a CPU torch raises a plain RuntimeError.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def prompt_of(passage: Passage) -> Int32:
    """What comes before its last response: who is shown it picks the adapter."""
    return passage.ids[: passage.ranges[-1][0]] if passage.ranges else passage.ids[:1]


def answers(tree: ModelTree, passages: Sequence[Passage], way: Way, step: int) -> Iterator[tuple[int, Scores]]:
    """Each passage's scores by one of the ways; the first is the whole."""
    if way == "plain":
        for place, passage in enumerate(passages):
            yield place, plain_scores(tree, passage)
        return
    compute = packed_scores if way == "packed" else walked_scores
    with cascading(tree.model) if way == "packed" else nullcontext():
        yield from compute(tree, passages, step)


def checked(scores: Scores, passage: Passage) -> Scores | ScoringError:
    """The scores, or what is wrong with them."""
    try:
        check_scores(scores, passage)
    except ScoringError as error:
        return error
    return scores


def probe(vocab_size: int, tokens: int) -> list[Passage]:
    """A random passage, and the same without eight tokens in its middle."""
    ids = np.random.default_rng(0).integers(0, vocab_size, max(4, tokens)).astype(np.int32)
    middle = max(1, min(PROBE_START, len(ids) // 2))
    cut = np.concatenate([ids[:middle], ids[middle + min(8, middle) :]])
    return [Passage(one, ((max(1, len(one) * 2 // 3), len(one)),)) for one in (ids, cut)]


def _difference(
    tree: ModelTree, passages: Sequence[Passage], wanted: Sequence[Scores], way: Way
) -> tuple[float, float]:
    """Nats: the mean over tokens, and the largest of a response; infinite where the way fails."""
    try:
        found = dict(answers(tree, passages, way, step=PROBE_TOKENS // 4))
    # What a model that knows no cache, or another kind of attention, raises has no common base.
    except Exception:
        return float("inf"), 0.0
    gaps = [found[place][0] - wanted[place][0] for place in range(len(passages))]
    mean = float(np.mean([np.abs(gap).mean() for gap in gaps]))
    return (float("inf") if np.isnan(mean) else mean), max(abs(float(gap.sum())) for gap in gaps)


class OwnTree:
    """A :class:`TreeSource` of a plain transformers model, which nothing else uses.

    Args:
        model: in evaluation mode.
        logits: None: its output head, with nothing after it.
    """

    def __init__(
        self, model: PreTrainedModel, max_tokens: int, logits: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> None:
        self.max_tokens = max_tokens
        self.vocab_size = int(model.config.get_text_config().vocab_size)
        head: Callable[[torch.Tensor], torch.Tensor] = logits or model.get_output_embeddings()  # type: ignore[no-untyped-call]
        self._tree = ModelTree(model, head)

    @contextmanager
    def lend_tree(self, prompt: Int32) -> Iterator[ModelTree]:
        """The model itself."""
        yield self._tree
