"""The stream that an intent data set makes."""

import json
from pathlib import Path

import pytest

from benchmarks.dataset import read_rows
from benchmarks.intent_stream import NEED, WRONG_SHARE, IntentStream, StreamSize, intent_stream

DOMAINS = ("travel", "home", "work")
SIZE = StreamSize(domains=2, chunks=2, chunk=100, held_out=20)


def write(folder: Path, rows: list[dict[str, str]]) -> Path:
    (folder / "dev").mkdir(parents=True)
    (folder / "dev" / "queries.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def rows_of(count: int, *, field: str = "domain", split: bool = True) -> list[dict[str, str]]:
    rows = []
    for domain in DOMAINS:
        for place in range(count - 10 * (domain == "home")):  # the smallest domain
            row = {"text": f"{domain} {place}", "intent": f"{domain}_{place % 4}", field: domain}
            rows.append(row | ({"orig_split": "test" if place % 5 == 0 else "train"} if split else {}))
    return [*rows, {"text": "what", "intent": "oos", field: "oos"}]


def texts(stream: IntentStream) -> set[str]:
    return {recorded.query.text for chunk in stream.chunks for recorded in chunk}


@pytest.mark.parametrize("split", [True, False])
def test_no_held_out_query_is_recorded(tmp_path: Path, split: bool) -> None:
    rows = rows_of(300, split=split)
    stream = intent_stream(write(tmp_path / "d", [*rows, *rows]), SIZE, 0)  # each text twice
    held_out = {query.text for queries in stream.held_out.values() for query in queries}
    assert held_out
    assert not held_out & texts(stream)


def test_held_out_queries_are_of_the_datas_own_test_split(tmp_path: Path) -> None:
    stream = intent_stream(write(tmp_path / "d", rows_of(300)), SIZE, 0)
    assert all(int(query.text.split()[1]) % 5 == 0 for queries in stream.held_out.values() for query in queries)
    assert {len(queries) for queries in stream.held_out.values()} == {20}


def test_largest_domains_come_one_after_the_other(tmp_path: Path) -> None:
    stream = intent_stream(write(tmp_path / "d", rows_of(300)), SIZE, 0)
    assert stream.domains == ("travel", "work")
    assert stream.chunk_domains == ("travel", "travel", "work", "work")
    assert [len(chunk) for chunk in stream.chunks] == [100] * 4
    for chunk, domain in zip(stream.chunks, stream.chunk_domains, strict=True):
        assert {recorded.query.domain for recorded in chunk} == {domain}


def test_small_domain_makes_fewer_cycles(tmp_path: Path) -> None:
    stream = intent_stream(write(tmp_path / "d", rows_of(150)), SIZE, 0)
    assert stream.chunk_domains == ("travel", "work")


def test_group_serves_as_domain(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", rows_of(150, field="group"))
    assert NEED.fits(folder)
    assert intent_stream(folder, SIZE, 0).domains == ("travel", "work")


def test_wrong_answers_are_other_intents_of_the_domain_and_rated_0(tmp_path: Path) -> None:
    size = StreamSize(domains=3, chunks=1, chunk=2000)
    stream = intent_stream(write(tmp_path / "d", rows_of(2000)), size, 0)
    recorded = [one for chunk in stream.chunks for one in chunk]
    assert all((one.quality == 1.0) == (one.response == one.query.intent) for one in recorded)
    assert all(one.response.startswith(one.query.domain) and "_" not in one.response for one in recorded)
    wrong = sum(one.quality == 0.0 for one in recorded) / len(recorded)
    assert wrong == pytest.approx(WRONG_SHARE, abs=4 * (WRONG_SHARE * (1 - WRONG_SHARE) / len(recorded)) ** 0.5)


def test_seed_alone_decides(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", rows_of(300, split=False))
    size = StreamSize(domains=2, intents=2, chunks=1, chunk=50)
    assert intent_stream(folder, size, 1) == intent_stream(folder, size, 1)
    assert intent_stream(folder, size, 1) != intent_stream(folder, size, 2)


def test_merged_stream_holds_the_same_in_one_chunk(tmp_path: Path) -> None:
    stream = intent_stream(write(tmp_path / "d", rows_of(300)), SIZE, 0)
    merged = stream.merged()
    assert len(merged.chunks) == 1
    assert texts(merged) == texts(stream)
    assert merged.held_out == stream.held_out


def test_folder_without_rows_fits_nothing(tmp_path: Path) -> None:
    assert list(read_rows(tmp_path)) == []
    assert not NEED.fits(tmp_path)
    assert not NEED.fits(write(tmp_path / "d", [{"question": "x"}]))
