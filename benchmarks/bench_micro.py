"""Does one feedback move the answer that it is about, the right way, and leave the others alone?

Method. An episode has contexts whose right answers are opposite: u in every other context and −u in the rest. Queries
come from the contexts in turn, an answer is given, right every second time, and rated; after each feedback queries that
none is about are looked at again in all contexts. A feedback went the right way (``right_way``) where its answer became
likelier on its own context if it was right (``rose``), less likely if it was wrong (``fell``), and every other context
moved by less than a tenth of that (``still``).

* ``vector8``, ``vector2``: plain vectors of 256 numbers, 8 contexts or 2, 40 feedbacks. Ours learns by the pattern that
  a reasoning bank, without labels, finds nearest (``pattern``), and for comparison with one pair for everything
  (``one_pair``). ``peer`` is @ruvector/sona's micro-LoRA on the same numbers, at its own learning rate and at a large
  one; it is told in each feedback the answer with its reward and the opposite answer with the opposite reward, since it
  subtracts the mean.
* ``language8``: the shipped model, eight kinds of questions, and the answers "red" and "blue"; each feedback goes its
  whole way through queue, thread, bank and one forward pass. ``same_question`` is the share that moved the right way on
  the very question. Likelier means: in the log-probability of the whole answer, on average over the other questions.

``micro.right_way`` is the least of the three shares of ours by pattern. ``apply_over_token`` is a generated token's
time with fast weights over that without, turn by turn, the median; ``served_over_plain`` the same of a whole request to
``engine.generate``, with a prompt that was embedded before (``known_prompt``) or one that nothing has embedded yet
(``new_prompt``), which costs one more pass of the prompt. ``stream`` is what fast weights do to an agent's
answers: three tasks that cycles have learned, then questions with feedback, with fast weights off and on.

What would make the figures misleading. Contexts here are far apart and the bank tells them apart; where a pattern holds
questions with different answers, what moves one moves the others, which is why ``stream`` gains nothing. A context that
the bank has cut in two learns in each half apart; such feedbacks count as failed. The answers of ``language8`` are one
word, unlikely before; a feedback makes an answer likelier long before it becomes the one that is given (``chosen``: the
share of questions where the right one of the two is the likelier, before and after). A token's time is that of the
shipped model on one thread, the smallest there is: a larger model's share is less. The pass that a new prompt costs is
not in a token's time; its share of a request is the larger, the shorter the answer: here it has five to eight tokens.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # found when run as a program, too

from benchmarks.benchmark import Benchmark
from benchmarks.call import Call
from benchmarks.micro.cost import lookup_us, served_over_plain, step_us, token_cost
from benchmarks.micro.episode import Episode, Shares, draw, shares
from benchmarks.micro.language import Desk, talk
from benchmarks.micro.stream import Marks, handle, prepare
from benchmarks.micro.vectors import PEER_RATES, Played, by_pattern, one_for_all, peer_is_missing, play, play_peer
from benchmarks.table import Cell, spread

CONTEXTS = (8, 2)
FEEDBACKS, QUICK_FEEDBACKS = 160, 40  # of the language model
VECTOR_FEEDBACKS = 40
PROBES = 3
REPEATS, QUICK_REPEATS = 300, 40
QUESTIONS = 60  # of each task in the stream
FIGURES = ("right_way", "rose", "fell", "still")


def run(call: Call) -> None:
    """Vectors with the peer, the language model, the costs, the stream."""
    missing = peer_is_missing()
    for seed in call.seeds:
        for contexts in CONTEXTS:
            _vectors(call, draw(seed, contexts, VECTOR_FEEDBACKS), f"vector{contexts}", with_peer=not missing)
        _language(call, seed)
    _show_ways(call, missing)
    _costs(call, missing)
    if not call.quick:
        _streams(call)


def _vectors(call: Call, episode: Episode, name: str, *, with_peer: bool) -> None:
    call.progress(name)
    played = {"pattern": play(episode, by_pattern(episode)), "one_pair": play(episode, one_for_all)}
    if with_peer:
        played |= {f"peer_rate_{rate:g}": play_peer(episode, rate) for rate in PEER_RATES}
    steps = [(step.context, step.way, step.quality > 0.5) for step in episode.steps]
    for learner, one in played.items():
        _tell(call, f"micro.{name}.{learner}", shares(steps, np.diff(one.scores, axis=0)))
        _tell_times(call, "peer" if learner.startswith("peer") else learner, one)


def _tell(call: Call, label: str, found: Shares) -> None:
    for figure in FIGURES:
        call.result(f"{label}.{figure}", getattr(found, figure))


def _tell_times(call: Call, learner: str, played: Played) -> None:
    call.result(f"micro.{learner}.update_us", played.update_us)
    call.result(f"micro.{learner}.apply_us", played.apply_us)


def _language(call: Call, seed: int) -> None:
    call.progress(f"language8, seed {seed}")
    found = talk(seed, QUICK_FEEDBACKS if call.quick else FEEDBACKS, PROBES)
    _tell(call, "micro.language8.pattern", shares(found.steps, found.moves))
    call.result("micro.language8.same_question", float(np.mean(np.array(found.same) > 0)))
    for when, share in zip(("before", "after"), found.chosen, strict=True):
        call.result(f"micro.language8.chosen_{when}", share)
    call.result("micro.language8.errors", found.errors)


def _show_ways(call: Call, missing: str) -> None:
    """The table of all learners, and the least of ours."""
    learners = {"vector8": ["pattern", "one_pair"], "vector2": ["pattern", "one_pair"], "language8": ["pattern"]}
    peers = [] if missing else [f"peer_rate_{rate:g}" for rate in PEER_RATES]
    rows: list[list[Cell]] = []
    for episode, ours in learners.items():
        for learner in [*ours, *(peers if episode != "language8" else [])]:
            figures = [spread(call.values(f"micro.{episode}.{learner}.{figure}")) for figure in FIGURES]
            rows.append([f"{episode}, {learner}", *figures])
        if missing and episode != "language8":
            rows.append([f"{episode}, peer: {missing}", *[None] * len(FIGURES)])
    right = [float(np.mean(call.values(f"micro.{name}.pattern.right_way"))) for name in learners]
    call.result("micro.right_way", min(right))
    same = spread(call.values("micro.language8.same_question"))
    chosen = [spread(call.values(f"micro.language8.chosen_{when}")) for when in ("before", "after")]
    note = f"language8: on the very question {same} the right way; right answer chosen {chosen[0]} -> {chosen[1]}"
    call.table("Feedbacks that went the right way", ["episode, learner", *FIGURES], rows, note)


def _costs(call: Call, missing: str) -> None:
    repeats = QUICK_REPEATS if call.quick else REPEATS
    call.progress("costs")
    desk = Desk(call.seeds[0], PROBES)
    token, over = token_cost(desk, repeats)
    call.result("micro.token_us", token)
    call.result("micro.apply_over_token", over)
    served = {"known": served_over_plain(repeats, known=True), "new": served_over_plain(repeats, known=False)}
    for which, ratio in served.items():
        call.result(f"micro.served_over_plain.{which}_prompt", ratio)
    call.result("micro.language8.feedback_us", step_us(desk, repeats))
    call.result("micro.lookup_us", lookup_us(desk, repeats))
    desk.loop.close()
    rows: list[list[Cell]] = [
        ["a token of the shipped model (µs)", token],
        ["... with fast weights, over without", over],
        ["a request of a known prompt, over without", served["known"]],
        ["... of a prompt that nothing has embedded", served["new"]],
        ["a request's pattern and weights, once embedded (µs)", *call.values("micro.lookup_us")],
        ["a feedback on a response, in its thread (µs)", *call.values("micro.language8.feedback_us")],
    ]
    for learner in ("pattern", "peer"):
        for what in ("update", "apply"):
            values = call.values(f"micro.{learner}.{what}_us")
            rows.append([f"vector of 256, {learner}: {what} (µs)", float(np.mean(values)) if values else missing])
    call.table("What fast weights cost", ["", "median"], rows, "the peer's times are taken in its own process, in node")


def _streams(call: Call) -> None:
    rows: dict[str, list[Marks]] = {"off": [], "on": []}
    for seed in call.seeds:
        with tempfile.TemporaryDirectory() as folder:
            call.progress(f"stream, seed {seed}")
            prepared = Path(folder) / "store"
            world = prepare(prepared, seed)
            for name, marks in rows.items():
                marks.append(handle(prepared, world, seed, QUESTIONS, fast=name == "on"))
                for figure in Marks.__dataclass_fields__:
                    call.result(f"micro.stream.{name}.{figure}", getattr(marks[-1], figure))
    columns = ["fast weights", *(name.replace("_", " ") for name in Marks.__dataclass_fields__)]
    call.table(
        "Answers exactly right, after and in a stream of feedback",
        columns,
        [
            [name, *(spread([getattr(one, figure) for one in marks]) for figure in Marks.__dataclass_fields__)]
            for name, marks in rows.items()
        ],
        "touched: share of the questions whose answer fast weights took part in",
    )


BENCHMARK = Benchmark(name="bench_micro", about=__doc__, run=run)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
