"""Ours, and what it is compared with: labels and seconds of each."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import faiss
import numpy as np

from benchmarks.bank.agreement import Labels
from benchmarks.fast_loop.peer import FOLDER, trouble
from sona.bank.clustering import spherical_kmeans
from sona.checks import Float32

SCRIPT = Path(__file__).with_name("peer.mjs")

Method = Callable[[Float32, int, int], tuple[Labels, float]]
"""Unit rows (n, width), how many clusters, and a seed make a label for each row, and took so many seconds."""


def ours(rows: Float32, k: int, seed: int) -> tuple[Labels, float]:
    """As it is by default."""
    began = time.perf_counter()
    found = spherical_kmeans(rows, k, seed)
    return found.labels.astype(np.intp), time.perf_counter() - began


def by_faiss(rows: Float32, k: int, seed: int) -> tuple[Labels, float]:
    """faiss.Kmeans, spherical, as it is by default, with the search that its labels take."""
    began = time.perf_counter()
    # min_points_per_centroid governs a warning on stdout alone.
    kmeans = faiss.Kmeans(rows.shape[1], k, spherical=True, seed=seed + 1, min_points_per_centroid=1)
    kmeans.train(rows)
    labels = kmeans.index.search(rows, 1)[1][:, 0]
    return labels.astype(np.intp), time.perf_counter() - began


def by_sklearn(rows: Float32, k: int, seed: int) -> tuple[Labels, float]:
    """scikit-learn's KMeans as it is by default, on one thread."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        began = time.perf_counter()
        labels = KMeans(k, random_state=seed).fit_predict(rows)
        return labels.astype(np.intp), time.perf_counter() - began


def by_peer(rows: Float32, k: int, seed: int) -> tuple[Labels, float]:
    """@ruvector/sona: a cycle over the rows; its time is taken in its own process, and it knows no seed."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "rows.bin"
        rows.astype("<f4").tofile(file)
        command = ["node", str(SCRIPT), str(FOLDER), str(file), *map(str, (*rows.shape, k))]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return np.asarray(told["labels"], dtype=np.intp), told["ms"] / 1000


def available() -> tuple[dict[str, Method], list[str]]:
    """The methods that can run here by name, ours first, and what there is to say of the others."""
    methods: dict[str, Method] = {"ours": ours, "peer": by_peer, "faiss": by_faiss, "sklearn": by_sklearn}
    notes = []
    if absent := trouble():
        del methods["peer"]
        notes.append(f"peer: not measured, {absent}")
    if importlib.util.find_spec("sklearn") is None:
        del methods["sklearn"]
        notes.append("sklearn: not measured, scikit-learn is not installed (pip install scikit-learn)")
    return methods, notes
