"""Does the bank find the groups that there are, keep them for life, foretell what will work, and answer in time?

Method. *Mixtures*: 50 Gaussian groups of width 256 around random centres on the sphere. A row is its centre (length 1)
plus noise of length .5 (easy), 1 (mid, skewed, outliers) or 2 (hard, where two rows of one group have a cosine of .2),
put back on the sphere. Skewed groups have sizes as 1, 1/2, 1/3, ...; outliers lie in any direction, and count neither
for purity nor for the normalised mutual information. All methods are told that there are 50. They take turns on the
same rows, on one thread: ``sona.bank.clustering.spherical_kmeans``, the npm package @ruvector/sona (peer; timed around
its cycle alone, in its own process), faiss.Kmeans and scikit-learn's KMeans, each with its defaults. The time is the
median of five runs on the same rows; the peer takes long enough to be even, and runs once. ``peer_over_ours`` is
the ratio of the times of a seed, and ``k.<case>`` the number of groups that ``choose_k`` finds, told nothing.
``kmeans.10k_s``: 10,000 rows of the mid and the hard case, 50 clusters.

*Real queries* (``--data``): clusters of clinc150, banking77 and the like, as many as there are intents, against the
intents; embedded by the shipped model, and by the word vectors of a ``--data`` folder that has a vectors.npz.
``real.<data>.nmi`` is ours by word vectors where there are any.

*Recall*: ``Bank.recall(query, 5)`` through the public class, query by query, on banks of patterns that lie in any
direction or a hundred around each centre, and how many of the ten nearest by exact search ``recall(query, 10)`` gives.
``recall.*.<n>`` is of width 256 and any direction, the hardest case for an index that does not look at everything.

*Life*: 100 cycles of 100 trajectories from 20 groups (mid noise), and the same with another group every ten cycles.
``cycle.last_over_second`` is the median CPU time of the last five cycles over that of the second to fourth, since a
single one is noise; these also group a sample of what has come (:mod:`sona.bank.sample`), which flatters the last, so
``cycle.last_over_tenth`` compares with the tenth to twentieth. ``cycle.duplicates`` are the pairs of patterns of a
cosine above .98 in the end; purity and NMI are those of the nearest pattern of 2,000 fresh rows. ``cycle.growing.*`` is
with new groups, ``cycle.peer.*`` the peer's: it is told the number of groups, which ours is not, and runs with the
first seed alone, because it takes long.

*Stability* (``--data``): domains (or topic groups) of real queries arrive one after the other, 250 queries a cycle.
After each domain all earlier queries are looked up again: ``real.<data>.id_stability`` is the share whose nearest
pattern has the id that it had before the domain, the mean over all domains but the first; ``real.<data>.bank_nmi`` that
of the last ids and the intents. The baseline clusters everything anew after each domain (faiss.Kmeans, into as many
clusters as the bank has patterns then) and hands ids on to the nearest centroids. A seed draws the order of arrival.

*Predict* (``--data``): tau_bench, reflexion_hotpotqa, react_trajectories, replayed in cycles of 20 attempts. The
quality of each is foretold from the attempts before its cycle, by the bank (``Bank.predict``), by their mean (base),
and by that of the ten nearest (k-NN, cosine). ``predict.<data>.auroc``, ``.base`` and ``.knn`` are the areas under the
ROC curve of success, a quality of .5 or more; ``predict.<data>.brier.*`` the Brier scores. The first cycle, which no
one can foretell, does not count. ``predict.<data>.seen_before`` is the share of queries that were in an earlier cycle
word for word. The data have no clock: run comes after run and trial after trial, the tasks of a trial in an order that
the seed draws, because some logs list successes first. tau_bench's query is the user's first message: the brief of the
simulated user, which the agent never sees, would give the task away.

Of real queries and of predictions there are figures by each embedding, ``real.<data>.<embedding>.*``; those without one
are by the word vectors where there are any.

What would make the figures misleading. A busy machine: medians and ratios suffer less than milliseconds. Purity and NMI
rise with the number of clusters, so they compare methods at one number only. Isotropic Gaussians are what k-means is
made for: real queries are the test of that. One pattern for everything has perfectly stable ids and no duplicates: read
both beside the NMI and the number of patterns. A few hundred attempts give an AUROC to about .04; the base rate's is
not .5, because it drifts: in data without a trend it lies below, since each success raises the rate and leaves one less
to come. In reflexion_hotpotqa a question comes again in the same run only if it failed, so whoever remembers questions
foretells well, and success becomes rarer from trial to trial, which the base rate sees too; k-NN's ten neighbours
dilute a question's few repeats. A quality between 0 and 1, as react_trajectories has, is less than the chance of
success that the Brier score takes it for, with all methods alike. Where a method is not installed its figures are
missing, not 0.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # found when run as a program, too

import faiss
import numpy as np

from benchmarks import intent_stream
from benchmarks.bank import attempts, life, predicting, queries, recalling, stability
from benchmarks.bank.agreement import nmi, objective, purity
from benchmarks.bank.given import given_data
from benchmarks.bank.methods import Method, available, ours
from benchmarks.bank.mixture import CASES, GROUPS, Case, draw
from benchmarks.bank.need import NEED
from benchmarks.benchmark import Benchmark
from benchmarks.call import Call
from benchmarks.table import Cell, spread
from sona.bank.pieces import choose_k

PARTS = ("mixtures", "recall", "life", "real", "stability", "predict")
SIZES = (50, 1000, 10_000, 100_000, 1_000_000)
WIDTHS = (256, 384)
WIDEST_AT = 100_000  # patterns; more of the larger width would take more memory than many machines have
RUNS = 5
REAL_METHODS = ("ours", "faiss", "sklearn")
QUICK_QUERIES = 2000
QUICK_CYCLES = 20


def run(call: Call) -> None:
    """The parts that were asked for."""
    faiss.omp_set_num_threads(1)
    methods, notes = available()
    for note in notes:
        call.note(note)
    if "mixtures" in call.options.only:
        _mixtures(call, methods)
    if "recall" in call.options.only:
        _recall(call)
    if "life" in call.options.only:
        _life(call, peer="peer" in methods)
    if "real" in call.options.only:
        _real(call, methods)
    if "stability" in call.options.only:
        _stability(call)
    if "predict" in call.options.only:
        _predict(call)


def _mixtures(call: Call, methods: dict[str, Method]) -> None:
    rows: list[list[Cell]] = []
    for name, case in CASES.items():
        for seed in call.seeds:
            call.progress(f"{name}, seed {seed}")
            _compare(call, name, case, seed, methods)
            call.result(f"k.{name}", choose_k(draw(case, seed)[0], seed))
        for method in methods:
            figures = [call.values(f"{figure}.{name}.{method}") for figure in ("purity", "nmi", "objective", "ms")]
            rows.append([f"{name}, {method}", *(spread(one) for one in figures[:3]), spread(figures[3], 0)])
    columns = ["", "purity", "NMI", "mean cosine", "ms"]
    call.table(f"{GROUPS} groups of width 256", columns, rows, "told the number of groups; one thread")
    for noise in (1.0, 2.0):
        x, _ = draw(Case(10_000, noise), 0)
        seconds = statistics.median(ours(x, GROUPS, seed)[1] for seed in range(3))
        call.result(f"kmeans.10k_s.{'mid' if noise == 1.0 else 'hard'}", seconds)


def _compare(call: Call, name: str, case: Case, seed: int, methods: dict[str, Method]) -> None:
    x, truth = draw(case, seed)
    took = {}
    for method, cluster in methods.items():
        runs = [cluster(x, GROUPS, seed) for _ in range(1 if method == "peer" else RUNS)]
        labels, took[method] = runs[0][0], statistics.median(seconds for _, seconds in runs)
        call.result(f"purity.{name}.{method}", purity(labels, truth))
        call.result(f"nmi.{name}.{method}", nmi(labels, truth))
        call.result(f"objective.{name}.{method}", objective(x, labels))
        call.result(f"ms.{name}.{method}", 1000 * took[method])
    if "peer" in took:
        call.result(f"time.{name}.peer_over_ours", took["peer"] / took["ours"])


def _real(call: Call, methods: dict[str, Method]) -> None:
    rows: list[list[Cell]] = []
    for one in given_data(call, intent_stream.NEED, "real queries"):
        read = queries.read(one.folder, one.embed, QUICK_QUERIES if call.quick else None)
        x, intents = read.rows, read.intents
        cells: list[Cell] = [one.name, len(x), int(intents.max()) + 1]
        for method in (name for name in REAL_METHODS if name in methods):
            key = f"real.{one.key}.{{}}.{method}"
            for seed in call.seeds:
                labels, seconds = methods[method](x, int(intents.max()) + 1, seed)
                call.result(key.format("nmi"), nmi(labels, intents))
                call.result(key.format("objective"), objective(x, labels))
                call.result(key.format("ms"), 1000 * seconds)
                if method == "ours" and one.is_first:
                    call.result(f"real.{one.data}.nmi", nmi(labels, intents))
            cells += [spread(call.values(key.format("nmi")))]
            cells += [spread(call.values(key.format("objective")), 4), spread(call.values(key.format("ms")), 0)]
        rows.append(cells)
    if rows:
        names = [name for name in REAL_METHODS if name in methods]
        pairs = [column for name in names for column in (f"NMI, {name}", "cosine", "ms")]
        call.table("Real queries, as many clusters as intents", ["", "queries", "intents", *pairs], rows)


def _life(call: Call, peer: bool) -> None:
    rows: list[list[Cell]] = []
    for grows in (False, True):
        for seed in call.seeds:
            call.progress(f"life, {'growing' if grows else 'stable'}, seed {seed}")
            given = life.traffic(QUICK_CYCLES if call.quick else life.CYCLES, grows, seed)
            _tell_life(call, "cycle.growing" if grows else "cycle", given, life.by_bank(given, seed))
            if peer and seed == call.seeds[0]:
                _tell_life(call, "cycle.peer.growing" if grows else "cycle.peer", given, life.by_peer(given))
        name = f"{life.GROUPS} groups" + (", growing" if grows else "")
        for who in ("", ".peer")[: 1 + peer]:
            key = f"cycle{who}.growing" if grows else f"cycle{who}"
            times = [spread(call.values(f"{key}.{figure}"), 1) for figure in ("second_ms", "tenth_ms", "last_ms")]
            ratio = spread(call.values(f"{key}.last_over_second"), 2)
            later = spread(call.values(f"{key}.last_over_tenth"), 2)
            counts = [spread(call.values(f"{key}.{figure}"), 0) for figure in ("patterns", "duplicates")]
            agree = [spread(call.values(f"{key}.{figure}")) for figure in ("purity", "nmi")]
            rows.append([f"{name}, {'peer' if who else 'bank'}", *times, ratio, later, *counts, *agree])
    columns = [
        "",
        "2nd to 4th, ms",
        "10th to 20th, ms",
        "last five, ms",
        "last over 2nd",
        "over 10th",
        "patterns",
        "duplicates",
        "purity",
        "NMI",
    ]
    note = f"CPU time of a cycle of {life.EACH}; duplicates: pairs of a cosine above {life.SAME}; the peer: one seed"
    call.table(f"{QUICK_CYCLES if call.quick else life.CYCLES} cycles", columns, rows, note)


def _tell_life(call: Call, key: str, given: life.Traffic, lived: life.Lived) -> None:
    call.result(f"{key}.second_ms", 1000 * lived.second_s)
    call.result(f"{key}.last_ms", 1000 * lived.last_s)
    call.result(f"{key}.tenth_ms", 1000 * lived.tenth_s)
    call.result(f"{key}.last_over_second", lived.last_s / lived.second_s)
    call.result(f"{key}.last_over_tenth", lived.last_s / lived.tenth_s)
    call.result(f"{key}.patterns", len(lived.centroids))
    call.result(f"{key}.duplicates", lived.duplicates)
    call.result(f"{key}.purity", purity(lived.labels, given.truth))
    call.result(f"{key}.nmi", nmi(lived.labels, given.truth))


def _stability(call: Call) -> None:
    rows: list[list[Cell]] = []
    for one in given_data(call, intent_stream.NEED, "stability of ids"):
        read = queries.read(one.folder, one.embed, QUICK_QUERIES if call.quick else None)
        for seed in call.seeds:
            arrived = stability.arrivals(read.domains, seed)
            ours_named = stability.by_bank(read.embeddings, arrived, seed)
            anew = stability.by_reclustering(read.embeddings, arrived, seed, ours_named.patterns)
            intents = read.intents[np.concatenate(arrived)]
            for who, named in (("bank", ours_named), ("anew", anew)):
                call.result(f"real.{one.key}.id_stability.{who}", named.id_stability)
                call.result(f"real.{one.key}.{who}_nmi", nmi(named.labels, intents))
            call.result(f"real.{one.key}.patterns", ours_named.patterns[-1])
            if one.is_first:
                call.result(f"real.{one.data}.id_stability", ours_named.id_stability)
                call.result(f"real.{one.data}.bank_nmi", nmi(ours_named.labels, intents))
        for who, name in (("bank", "bank"), ("anew", "k-means anew")):
            figures = [spread(call.values(f"real.{one.key}.{key}")) for key in (f"id_stability.{who}", f"{who}_nmi")]
            patterns = spread(call.values(f"real.{one.key}.patterns"), 0)
            rows.append([f"{one.name}, {name}", len(intents), len(arrived), patterns, *figures])
    if rows:
        columns = ["", "queries", "domains", "patterns", "ids unchanged", "NMI"]
        call.table(
            "Domains arrive one after the other", columns, rows, "k-means: as many clusters as there are patterns"
        )


def _predict(call: Call) -> None:
    rows: list[list[Cell]] = []
    for one in given_data(call, attempts.NEED, "predictions"):
        for seed in call.seeds:
            for figure, value in predicting.figures(attempts.in_time_order(one.folder, seed), one.embed, seed).items():
                call.result(f"predict.{one.key}.{figure}", value)
                if one.is_first:
                    call.result(f"predict.{one.data}.{figure}", value)
        key = f"predict.{one.key}"
        known: list[Cell] = [round(call.values(f"{key}.attempts")[0])]
        known += [spread(call.values(f"{key}.{figure}"), 2) for figure in ("successes", "seen_before")]
        for method, name in (("bank", "bank"), ("base", "base rate"), ("knn", "k-NN")):
            scores = ("auroc" if method == "bank" else method, f"brier.{method}")
            rows.append([f"{one.name}, {name}", *known, *(spread(call.values(f"{key}.{score}")) for score in scores)])
    if rows:
        columns = ["", "attempts", "succeed", "seen before", "AUROC", "Brier score"]
        call.table("Will it succeed?", columns, rows, "a smaller Brier score is a better one")


def _recall(call: Call) -> None:
    rows: list[list[Cell]] = []
    for size in SIZES[:3] if call.quick else SIZES:
        for width in WIDTHS:
            for clustered in (False, True) if size <= WIDEST_AT or width == WIDTHS[0] else ():
                call.progress(f"recall from {size} patterns of width {width}")
                found = recalling.measure(size, width, clustered)
                kind = "clustered" if clustered else "any direction"
                times: list[Cell] = [round(found.median_us), round(found.p99_us), round(found.exact_us)]
                rows.append([f"{size}, {width}, {kind}", *times, found.at10, found.build_s])
                if width == WIDTHS[0]:
                    key = "recall.clustered" if clustered else "recall"
                    call.result(f"{key}.us.{size}", found.median_us)
                    call.result(f"{key}.at10.{size}", found.at10)
    columns = ["patterns, width", "median µs", "p99 µs", "exact search alone, µs", "recall@10", "built in s"]
    call.table("Bank.recall(query, 5)", columns, rows, "recall@10: of recall(query, 10), against exact search")


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")


BENCHMARK = Benchmark(
    name="bench_bank", about=__doc__, run=run, data=NEED, data_is_optional=True, add_options=_add_options
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
