"""The measures of bench_bank, its mixtures, and its methods at a size that takes no time."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks import bench_bank
from benchmarks.bank import methods, recalling
from benchmarks.bank.agreement import nmi, objective, purity
from benchmarks.bank.embedding import embeddings
from benchmarks.bank.mixture import CASES, GROUPS, Case, draw
from benchmarks.bank.need import NEED
from benchmarks.bank.queries import read
from benchmarks.benchmark import Benchmark


def test_purity_is_the_share_of_each_clusters_largest_group() -> None:
    labels, truth = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 1, 1, -1])
    assert purity(labels, truth) == pytest.approx(4 / 5)


def test_nmi_is_1_for_the_same_partition_and_0_for_an_independent_one() -> None:
    truth = np.arange(12) % 3
    assert nmi((truth + 1) % 3, truth) == pytest.approx(1.0)
    assert nmi(np.arange(12) // 6, np.arange(12) % 2) == pytest.approx(0.0, abs=1e-12)
    # Entropies of 2 groups and 4 clusters that halve them: ln 2 and ln 4; all of the first is known.
    assert nmi(np.arange(8) // 2, np.arange(8) // 4) == pytest.approx(np.log(2) / ((np.log(2) + np.log(4)) / 2))
    assert nmi(np.zeros(4, dtype=np.intp), np.zeros(4, dtype=np.intp)) == 1.0


def test_objective_is_the_mean_cosine_to_the_clusters_direction() -> None:
    rows = np.array([[1, 0], [0, 1], [1, 0], [1, 0]], dtype=np.float32)
    assert objective(rows, np.array([0, 0, 1, 1])) == pytest.approx((2 * 0.5**0.5 + 2) / 4)


@pytest.mark.parametrize("name", CASES)
def test_a_mixture_is_what_its_case_says(name: str) -> None:
    case = CASES[name]
    x, truth = draw(case, 0)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1.0, atol=1e-5)
    assert len(x) == len(truth) == case.rows
    assert (truth < 0).sum() == case.outliers * case.rows
    sizes = np.bincount(truth[truth >= 0], minlength=GROUPS)
    assert (sizes.max() > 10 * sizes.min()) == case.skewed
    one = x[truth == truth[truth >= 0][0]]
    cosines = (one @ one.T)[np.triu_indices(len(one), 1)]
    assert cosines.mean() == pytest.approx(1 / (1 + case.noise**2), abs=0.05)


@pytest.mark.parametrize("method", methods.available()[0])
def test_each_method_labels_every_row(method: str) -> None:
    x, truth = draw(Case(300, 0.3), 0)
    labels, seconds = methods.available()[0][method](x, GROUPS, 0)
    assert labels.shape == (300,)
    assert seconds > 0
    assert purity(labels, truth) > 0.7


@pytest.mark.parametrize("clustered", [False, True])
def test_recall_is_measured_against_exact_search(clustered: bool) -> None:
    found = recalling.measure(60, 16, clustered)
    assert found.at10 == 1.0
    assert 0 < found.median_us <= found.p99_us


@pytest.fixture
def data(tmp_path: Path) -> list[Path]:
    queries, words = tmp_path / "queries", tmp_path / "words"
    (queries / "dev").mkdir(parents=True)
    words.mkdir()
    rows = [
        {"text": f"{verb} {noun}", "intent": verb, "domain": "all"}
        for verb in ("pay", "owe")
        for noun in ("a", "b", "c")
    ]
    (queries / "dev" / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    vectors = np.eye(5, dtype=np.float16) * np.array([4, 4, 1, 1, 1], dtype=np.float16)
    np.savez(words / "vectors.npz", words=np.array(["pay", "owe", "a", "b", "c"]), vectors=vectors)
    return [queries, words]


def test_real_queries_are_embedded_and_their_intents_numbered(data: list[Path], tmp_path: Path) -> None:
    assert all(NEED.fits(folder) for folder in data)
    assert not NEED.fits(tmp_path)
    named = embeddings(data)
    assert list(named) == ["words", "shipped"]
    for name, width in (("words", 5), ("shipped", 128)):
        found = read(data[0], named[name], None)
        assert found.embeddings.shape == found.rows.shape == (6, width)
        assert sorted(found.intents.tolist()) == [0, 0, 0, 1, 1, 1]
        assert found.domains.tolist() == [0] * 6
        np.testing.assert_allclose(np.linalg.norm(found.rows, axis=1), 1.0, atol=1e-5)
    assert len(read(data[0], named["words"], 3).rows) == 3


def test_it_runs_without_data_and_says_what_it_left_out(
    data: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark: Benchmark = bench_bank.BENCHMARK
    assert benchmark.trouble([]) == ""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    parts = ["--quick", "--only", "real", "stability", "predict"]
    assert benchmark.main([*parts, "--out", str(tmp_path / "a.json")]) == 0
    said = capsys.readouterr().out
    for part in ("real queries", "stability of ids", "predictions"):
        assert f"{part}: not measured, give --data DIR" in said
    assert "peer: not measured" in said
    assert json.loads((tmp_path / "a.json").read_text())["results"] == {}
    folders = [word for folder in data for word in ("--data", str(folder))]
    assert benchmark.main([*parts, "--out", str(tmp_path / "b.json"), *folders]) == 0
    results = json.loads((tmp_path / "b.json").read_text())["results"]
    assert results["real.queries.nmi"] == results["real.queries.words.nmi.ours"] == pytest.approx(1.0)
    assert {"real.queries.id_stability", "real.queries.bank_nmi", "real.queries.shipped.anew_nmi"} <= results.keys()
    assert not any(key.startswith("predict") for key in results)
