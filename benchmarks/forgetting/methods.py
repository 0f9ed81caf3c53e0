"""The methods that are compared, by name, and how they are run."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.forgetting.course import Course, travel, travel_at_once
from benchmarks.forgetting.peers import PEERS, Joint
from benchmarks.forgetting.sona_run import SETTINGS, SonaRun, settings
from benchmarks.forgetting.stream import Stream, StreamSize, make_stream
from sona.types import CycleReport

JOINT = "joint"
METHODS = (*SETTINGS, JOINT, *PEERS)


class Job(NamedTuple):
    """One method on one stream of one seed."""

    stream: str
    size: StreamSize | None
    """None is the stream's own."""
    seed: int
    method: str
    base: Path
    """The base model's folder."""


class Outcome(NamedTuple):
    """What a method came to on a stream."""

    course: Course
    reports: tuple[CycleReport, ...]
    """Of each hour's cycle; empty for the peers."""


def run_jobs(jobs: Sequence[Job], processes: int) -> list[Outcome]:
    """The outcomes in the order of the jobs. CPU time is each process's own, so several at once don't stretch it."""
    if processes == 1:
        return [run_job(job) for job in jobs]
    spawned = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads in an unknown state
    with ProcessPoolExecutor(processes, spawned) as pool:
        return list(pool.map(run_job, jobs))


def run_job(job: Job) -> Outcome:
    """Make the stream and go through it, with a line on stderr after each segment."""

    def progress(line: str) -> None:
        print(f"{job.stream}, seed {job.seed}, {job.method}: {line}", file=sys.stderr, flush=True)

    return go(job.method, make_stream(job.stream, job.seed, job.size), job.base, progress)


def go(method: str, stream: Stream, base: Path, progress: Callable[[str], None] = lambda line: None) -> Outcome:
    """Take ``method`` through the stream, on one thread, from the base model in the folder ``base``."""
    torch.set_num_threads(1)
    if method == JOINT:
        return Outcome(travel_at_once(stream, Joint(base, stream.seed)), ())
    if method in PEERS:
        return Outcome(travel(stream, PEERS[method](base, stream.seed), progress), ())
    with SonaRun(base, settings(method, stream.seed)) as ours:
        course = travel(stream, ours, progress)
        return Outcome(course, tuple(ours.reports))
