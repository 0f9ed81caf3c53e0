"""Do the memories that a method finds important hold what the answer rests on?

Method, facts (``--data`` a folder with bAbI's stories). A small model (three layers, width 128, a token a word) is
trained here on stories made of the words of bAbI's first task, where someone goes somewhere and is asked for; the
questions measured are the task's own, which it has not seen and must answer rightly to be counted. Every fact is a
memory, and it is known which of them the answer rests on.

* unique: exactly one fact says where the person is.
* duplicated: that fact is told a second time in other words, at a place drawn by chance where it is as true. Either is
  enough, so either counts as found.

Each method weighs the memories. ``loo`` leaves out each by itself; ``strip_all`` leaves out all at once, so that each
gets an equal share; ``ablate`` (64 random ablations; ``ablate_32``: half of them) and ``context_cite``, the published
package of that method with its own masks and solver, fit a sparse linear model. ``top1`` is how often the heaviest
memory is a right one, ``topk`` the share of right ones among as many as there are. ``lds`` is Spearman's correlation
between the log-odds in 32 ablations that no method saw and what the weights foretell. ``warning.recall`` is how often
the redundancy warning fires on duplicated facts, ``warning.false_rate`` on unique ones, ``warning.group`` how often the
memories that it names are exactly the two. ``loo_nats`` is what the heaviest memory gave by itself, ``whole_nats``
what all gave together. Of a fact told twice ``loo`` may put a copy first by a hair, so ``found`` counts a right one
only where its weight is above the noise, as a finding must be.

Method, evidence (a folder with labelled conversations or articles). Ten memories to a question, of which some hold the
answer, and the right answer as the response, scored by ``--model``. Beside the methods stands ``embedding``: cosines of
the question's embedding and each memory's, by word vectors (``--embeddings``) or else by the model itself.
``nats`` is what all memories together gave the right answer: where it is not well above 0 the model does not use them,
and no method can find what it uses.

What would make the figures misleading. The facts are short, and one rests on none but itself; real memories hold
several things, and answers rest on several memories. Not every seed gives a small model that answers all questions:
look at ``answered`` first, for one that hesitates makes every method look bad. A person of whom an earlier fact says
the same place is left out of ``unique``. A linear forecast of a fact told twice can't be perfect. In ``context_cite``
the prompt, the tokens and the response are ours. Evidence is cut to fit a small model, around the answer, which helps
the embeddings too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # found when run as a program, too

from benchmarks.attribution import reader
from benchmarks.attribution.evidence import Item, fitted, is_evidence, read_items
from benchmarks.attribution.facts import KINDS, Case, Kind, is_story, key_of, read_cases, read_world
from benchmarks.attribution.methods import METHODS, PEER, Measured, measure
from benchmarks.attribution.peer import ContextCite
from benchmarks.attribution.score import Float64, lds, precision_at
from benchmarks.benchmark import Benchmark
from benchmarks.call import Call
from benchmarks.dataset import DataNeed, Row, read_rows
from benchmarks.table import spread
from benchmarks.word_vectors import WordVectors
from sona.attribution.leave_one_out import LeaveOneOut
from sona.config import ServeConfig
from sona.serving.local import LocalModel

STEPS, CASES, QUESTIONS = 4000, 200, 40
QUICK_STEPS, QUICK_CASES, QUICK_QUESTIONS = 40, 4, 2
SURE = 0.98  # of the questions answered: with fewer, the figures tell as much of the model as of the methods
EMBEDDING = "embedding"


def run(call: Call) -> None:
    """Whatever suits the folders."""
    for folder in call.data:
        first = next(read_rows(folder))
        if is_story(first):
            for seed in call.seeds:
                _facts(call, folder, seed)
        if is_evidence(first):
            for model in call.models:
                _evidence(call, folder, model)
    if call.values("warning.recall"):
        _tables(call)


def _facts(call: Call, folder: Path, seed: int) -> None:
    steps = QUICK_STEPS if call.quick else STEPS

    def report(step: int, loss: float) -> None:
        if step % 100 == 0:
            call.progress(f"seed {seed}: training, step {step} of at most {steps}, loss {loss:.3f}")

    trained = reader.train(read_world(folder), steps, seed, report)
    with tempfile.TemporaryDirectory() as scratch:
        peer = _peer(call, trained, Path(scratch))
        try:
            for kind in KINDS:
                _measure(call, trained, folder, kind, seed, peer)
        finally:
            if peer is not None:
                peer.close()


def _peer(call: Call, trained: reader.Reader, folder: Path) -> ContextCite | None:
    trained.model.save_pretrained(folder)
    trained.tokenizer.save_pretrained(folder)
    peer = ContextCite(call.options.context_cite_python, folder)
    if peer.version is None:
        peer.close()
        call.note(
            f"{PEER}: not measured, {call.options.context_cite_python} can't import it (pip install context-cite)"
        )
        return None
    call.note(f"{PEER}: context-cite {peer.version}")
    return peer


def _measure(call: Call, trained: reader.Reader, folder: Path, kind: Kind, seed: int, peer: ContextCite | None) -> None:
    count = QUICK_CASES if call.quick else CASES
    cases = list(islice(_spread(list(read_cases(folder, kind, seed))), count))
    right = [case for case in cases if trained.answers_rightly(case)]
    call.result(f"quality.{kind}.answered", len(right) / len(cases))
    if len(right) < SURE * len(cases):
        call.note(
            f"seed {seed}: {len(right)} of {len(cases)} {kind} questions answered; the model hesitates, which tells"
        )
    found: dict[str, list[float]] = defaultdict(list)
    for place, case in enumerate(cases if call.quick else right):  # a quick model answers next to nothing
        if place % 20 == 0:
            call.progress(f"seed {seed}: {kind}, {place} of {len(right)} questions")
        _note(found, kind, case, measure(case.context(), trained.codec, trained.scorer, place, peer))
    for key, values in found.items():
        call.result(key, float(np.mean(values)))


def _spread(cases: Sequence[Case]) -> Sequence[Case]:
    """In an order by chance, so that the first come from all stories."""
    return [cases[place] for place in np.random.default_rng(0).permutation(len(cases))]


def _note(found: dict[str, list[float]], kind: Kind, case: Case, measured: Measured) -> None:
    for method, weights in measured.weights.items():
        found[f"quality.{kind}.{method}_top1"].append(precision_at(weights, case.support, 1))
        found[f"quality.{kind}.{method}_topk"].append(precision_at(weights, case.support, len(case.support)))
        found[f"quality.{kind}.lds.{method}"].append(lds(weights, measured.kept, measured.log_odds))
    for method, floor in measured.floors.items():
        weights = measured.weights[method]
        above = float(weights.max() > floor)
        found[f"quality.{kind}.{method}_found"].append(above * precision_at(weights, case.support, 1))
    found[f"quality.{kind}.loo_nats"].append(float(measured.weights["loo"].max()))
    found[f"quality.{kind}.whole_nats"].append(measured.whole_nats)
    if kind == "unique":
        found["warning.false_rate"].append(float(measured.warned))
    else:
        found["warning.recall"].append(float(measured.warned))
        found["warning.group"].append(float(set(measured.group) == {key_of(place) for place in case.support}))


def _tables(call: Call) -> None:
    for kind in KINDS:
        parts = ("{}_top1", "{}_found", "{}_topk", "lds.{}")
        rows = [
            [method, *(spread(call.values(f"quality.{kind}.{part.format(method)}")) for part in parts)]
            for method in METHODS
            if call.values(f"quality.{kind}.{method}_top1")
        ]
        answered, single, whole = (
            spread(call.values(f"quality.{kind}.{name}")) for name in ("answered", "loo_nats", "whole_nats")
        )
        note = f"answered rightly: {answered}; nats of the heaviest memory by itself {single}, of all {whole}"
        call.table(f"Facts, {kind}", ["method", "top-1", "found", "top-k", "LDS"], rows, note)
    names = ("recall", "false_rate", "group")
    call.table("Redundancy warning", names, [[spread(call.values(f"warning.{name}")) for name in names]])


def _evidence(call: Call, folder: Path, name: str) -> None:
    model = LocalModel("tiny" if name == "shipped" else name, ServeConfig(device=call.options.device))
    vectors = None if call.options.embeddings is None else WordVectors(call.options.embeddings)
    key = f"evidence.{folder.name}" if len(call.models) == 1 else f"evidence.{folder.name}.{Path(name).name}"
    found: dict[str, list[float]] = defaultdict(list)
    try:
        scorer = LeaveOneOut(model)
        for place, item in enumerate(islice(read_items(folder, 0), QUICK_QUESTIONS if call.quick else QUESTIONS)):
            if place % 10 == 0:
                call.progress(f"{folder.name}, {name}: question {place}")
            short = fitted(item, model, model.max_tokens)
            measured = measure(short.context(), model, scorer, place)
            _note_evidence(found, key, short, measured, _cosines(short, model, vectors))
    finally:
        model.close()
    for one, values in found.items():
        call.result(one, float(np.mean(values)))
    _evidence_table(call, key, f"Evidence, {folder.name}, {name}")


def _note_evidence(found: dict[str, list[float]], key: str, item: Item, measured: Measured, cosines: Float64) -> None:
    for method, weights in {**measured.weights, EMBEDDING: cosines}.items():
        found[f"{key}.{method}_top1"].append(precision_at(weights, item.evidence, 1))
        found[f"{key}.{method}_topk"].append(precision_at(weights, item.evidence, len(item.evidence)))
    for method, weights in measured.weights.items():
        found[f"{key}.lds.{method}"].append(lds(weights, measured.kept, measured.log_odds))
    found[f"{key}.nats"].append(measured.whole_nats)
    found[f"{key}.cut"].append(float(item.cut))
    found[f"{key}.chance"].append(len(item.evidence) / len(item.memories))


def _evidence_table(call: Call, key: str, title: str) -> None:
    def shown(part: str, digits: int = 3) -> str:
        return spread(call.values(f"{key}.{part}"), digits)

    rows = [
        [method, shown(f"{method}_top1"), shown(f"{method}_topk"), shown(f"lds.{method}")]
        for method in (*METHODS, EMBEDDING)
        if call.values(f"{key}.{method}_top1")
    ]
    note = (
        f"all memories give the right answer {shown('nats', 2)} nats; top-1 by chance {shown('chance', 2)}; share of "
        f"questions cut {shown('cut', 2)}"
    )
    call.table(title, ["method", "top-1", "top-k", "LDS"], rows, note)


def _cosines(item: Item, model: LocalModel, vectors: WordVectors | None) -> Float64:
    texts = [item.question, *item.memories]
    if vectors is None:
        embedded = model.embed([model.encode_text(text) for text in texts]).astype(np.float64)
    else:
        found = [vectors.embed(text) for text in texts]
        width = next(len(one) for one in found if one is not None)
        embedded = np.array([np.zeros(width) if one is None else one for one in found], dtype=np.float64)
    unit = embedded / np.maximum(np.linalg.norm(embedded, axis=1, keepdims=True), 1e-12)
    return np.asarray(unit[1:] @ unit[0], dtype=np.float64)


def _fits(row: Row) -> bool:
    return is_story(row) or is_evidence(row)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--context-cite-python",
        default=sys.executable,
        metavar="FILE",
        help="a Python whose environment has context-cite (default: this one)",
    )
    parser.add_argument(
        "--embeddings", type=Path, metavar="DIR", help="embed by the vectors.npz in it (default: by the model)"
    )
    parser.add_argument("--device", default="cpu", help="where --model runs (default: cpu)")


BENCHMARK = Benchmark(
    name="bench_attribution_quality",
    about=__doc__,
    run=run,
    data=DataNeed("story and lines, or conversation turns, or supporting_facts", _fits),
    takes_model=True,
    add_options=_add_options,
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
