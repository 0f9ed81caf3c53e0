"""What Prometheus reads: https://prometheus.io/docs/instrumenting/exposition_formats/."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

import sona
from sona.engine import Engine
from sona.errors import SonaError
from sona.service.responses import Usage
from sona.serving.remote.state import RemoteStatus
from sona.status import EngineStatus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

COUNTED = {
    "rejected": "Records turned away because the queue was full.",
    "conflicts": "Records left out because their id is taken by other content.",
    "unknown": "Feedback left out because what it rates is not in the store.",
    "invalid": "Records left out for another reason of their own.",
    "failed_attempts": "Commits that failed and were tried again.",
    "abandoned": "Trajectories recorded as abandoned because they were open for too long or too many.",
    "late": "Abandoned trajectories that ended after all.",
    "missed_events": "Events that readers were too slow for.",
    "hook_errors": "What went wrong behind open trajectories.",
    "recovered": "Records of an earlier process that were found in the journal.",
}
"""Counters of the engine's status, since it was opened."""


class Metrics:
    """Of one server; each has a registry of its own."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self.requests = Histogram(
            "sona_http_request_duration_seconds",
            "From a request's first byte to the last of its response.",
            ("route", "method", "status"),
            buckets=SECONDS,
            registry=registry,
        )
        self.in_progress = Gauge("sona_http_requests_in_progress", "Requests under way.", registry=registry)
        self._first = Histogram(
            "sona_answer_first_token_seconds", "From a question to the first token.", buckets=SECONDS, registry=registry
        )
        self._answers = Histogram(
            "sona_answer_duration_seconds", "From a question to the whole answer.", buckets=SECONDS, registry=registry
        )
        self._asked = Counter("sona_prompt_tokens", "Tokens of prompts that were answered.", registry=registry)
        self._answered = Counter("sona_completion_tokens", "Tokens of answers.", registry=registry)
        registry.register(EngineCollector(engine))

    def first_token(self, seconds: float) -> None:
        """An answer has begun."""
        self._first.observe(seconds)

    def answered(self, usage: Usage, seconds: float) -> None:
        """... and ended."""
        self._answers.observe(seconds)
        self._asked.inc(usage.prompt_tokens)
        self._answered.inc(usage.completion_tokens)

    def text(self) -> bytes:
        """All of them, read now. Blocks on the store."""
        return generate_latest(self._registry)


class EngineCollector(Collector):
    """The engine's own counts, read when they are asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing, so that registering it does not read the store."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """One family after the other."""
        status = self._engine.status()
        store = status.store
        info = GaugeMetricFamily("sona_build_info", "Of the software: always 1.", labels=("sona",))
        info.add_metric((sona.__version__,), 1)
        yield info
        serving = GaugeMetricFamily("sona_version_info", "The version in force: always 1.", labels=("version",))
        serving.add_metric((status.version,), 1)
        yield serving
        by_state = GaugeMetricFamily(
            "sona_store_trajectories", "Trajectories in the store, by what became of them.", labels=("state",)
        )
        for state in ("waiting_for_feedback", "uncollected", "trained", "held_out", "left_out"):
            by_state.add_metric((state,), getattr(store, state))
        yield by_state
        yield GaugeMetricFamily("sona_store_feedback", "Feedbacks in the store.", store.feedback)
        yield GaugeMetricFamily("sona_store_cycles", "Cycles that were run on the store.", store.cycles)
        yield GaugeMetricFamily("sona_store_size_bytes", "The store on disk.", store.bytes_on_disk)
        yield GaugeMetricFamily("sona_store_writable", "Whether records can be stored now.", status.degraded is None)
        yield GaugeMetricFamily("sona_bank_patterns", "Patterns of the version in force.", status.patterns)
        yield GaugeMetricFamily("sona_pending_records", "Records that are not yet durable.", status.pending)
        yield GaugeMetricFamily("sona_open_trajectories", "Trajectories whose answers are under way.", status.open)
        learning = status.learner
        yield GaugeMetricFamily("sona_cycle_in_progress", "Whether a cycle is under way.", learning.cycle is not None)
        yield CounterMetricFamily("sona_cycles_failed", "Cycles that failed or were stopped.", learning.failed)
        yield from _of_review(status)
        if status.remote is not None:
            yield from _of_remote(status.remote)
        yield from _of_training(self._engine)
        for name, about in COUNTED.items():
            yield CounterMetricFamily(f"sona_{name}", about, getattr(status, name))


def _of_review(status: EngineStatus) -> Iterator[GaugeMetricFamily]:
    """Of what was sent; no counts where they can't be read."""
    readable = status.review_trouble is None
    yield GaugeMetricFamily("sona_review_readable", "Whether what was sent for training can be read.", readable)
    for name, about, count in (
        ("unconfirmed", "Sent to a training service that may not have them.", status.unconfirmed),
        ("set_aside", "Of these the ones that a person has to say what came of.", status.set_aside),
    ):
        if count is not None:
            yield GaugeMetricFamily(f"sona_{name}_answers", about, count)


def _of_remote(remote: RemoteStatus) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
    """Of the model server elsewhere."""
    good = remote.version == remote.wanted and remote.trouble is None
    yield GaugeMetricFamily("sona_remote_in_force", "Whether the version in force is so on the server elsewhere.", good)
    yield CounterMetricFamily("sona_remote_publications", "Versions put in force there.", remote.published)
    yield CounterMetricFamily(
        "sona_remote_failures", "Attempts at that, and looks at the server, that failed.", remote.failed
    )


def _of_training(engine: Engine) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
    try:
        found = engine.training.status()
    except SonaError:  # what it has on the disk is damaged; the other figures are true all the same
        return
    jobs = CounterMetricFamily(
        "sona_training_jobs", "Trainings of all weights since the start, by what became of them.", labels=("status",)
    )
    for status in ("accepted", "done", "failed"):
        jobs.add_metric((status,), getattr(found, status))
    yield jobs
    yield GaugeMetricFamily("sona_training_queued_jobs", "Trainings that wait or run.", found.queued)
    unsaved = sum(job.state == "done" and not job.in_checkpoint for job in found.jobs)
    yield GaugeMetricFamily("sona_training_unsaved_jobs", "Trainings that are done and in no checkpoint.", unsaved)
    yield GaugeMetricFamily("sona_training_process_up", "Whether the process that trains lives.", found.pid is not None)
    last = found.last_checkpoint
    yield GaugeMetricFamily(
        "sona_training_checkpoint", "Number of the last checkpoint.", 0 if last is None else last.number
    )
