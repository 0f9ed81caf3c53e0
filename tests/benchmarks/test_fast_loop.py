"""bench_fast_loop: its comparisons are with the same bytes, and its figures what their names say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import bench_fast_loop
from benchmarks.benchmark import Benchmark
from benchmarks.fast_loop import durable, peer
from benchmarks.fast_loop.caller import Latency
from benchmarks.fast_loop.traffic import Traffic


def test_both_bare_logs_hold_the_same_bytes(tmp_path: Path) -> None:
    traffic = Traffic.of(4, 16, 8, seed=0)
    records = [traffic.trajectory(place, f"{place:032x}") for place in range(4)]
    logs = []
    for name in ("bare log", "bare log, one write"):
        folder = tmp_path / name
        folder.mkdir()
        with durable.WAYS[name](folder) as put:
            put(records[:3])
            put(records[3:])
        logs.append((folder / "bare.log").read_bytes())
    assert logs[0] == logs[1] == b"".join(map(durable.encode, records))


def results(part: str, tmp_path: Path) -> dict[str, float]:
    benchmark: Benchmark = bench_fast_loop.BENCHMARK
    out = tmp_path / "out.json"
    assert benchmark.main(["--quick", "--only", part, "--disk", str(tmp_path), "--out", str(out)]) == 0
    found: dict[str, float] = json.loads(out.read_text())["results"]
    return found


def test_the_peer_is_compared_with_and_without_activations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ours(width: int, tokens: int, *_: object) -> dict[str, Latency]:
        kinds = ("record, burst", "record, paced", "record, cold", "whole, burst", "whole, paced")
        return {kind: Latency(10.0 if tokens == 0 else 99.0, 0.0, 0.0) for kind in kinds}

    def theirs(width: int, calls: int, activations: int, attention: int) -> Latency:
        assert activations in (0, width)
        return Latency(20.0 + (40.0 if activations else 0.0) + (40.0 if attention else 0.0), 0.0, 0.0)

    monkeypatch.setattr(bench_fast_loop, "_ours", ours)
    monkeypatch.setattr(peer, "trouble", lambda: "")
    monkeypatch.setattr(peer, "latency", theirs)
    found = results("caller", tmp_path)
    assert (found["record.peer_over_ours"], found["record.peer_bare_over_ours"]) == (6.0, 2.0)


def test_the_store_is_compared_with_both_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rates(_: Traffic, records: int, batch: int, where: Path | None) -> dict[str, float]:
        return dict(zip(durable.WAYS, (60.0, 1.0, 2.0, 100.0, 150.0), strict=True))

    monkeypatch.setattr(durable, "rates", rates)
    found = results("durable", tmp_path)
    for batch in bench_fast_loop.BATCHES:
        assert found[f"durable.over_bare_log.{batch}"] == pytest.approx(0.6)
        assert found[f"durable.over_bare_log_one_write.{batch}"] == pytest.approx(0.4)


@pytest.mark.skipif(bool(peer.trouble()), reason="the peer is not installed")
def test_the_peer_records_with_and_without_activations() -> None:
    assert peer.latency(32, 50, 32).median > 0
    assert peer.latency(32, 50).median > 0
