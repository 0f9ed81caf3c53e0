"""``sona score``, as a person meets it. Mostly in this process: another would import torch each time."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

import sona
from sona import cli_score
from sona.attribution.context import Context
from sona.attribution.leave_one_out import LeaveOneOut
from sona.attribution.marked import from_messages
from sona.attribution.memories import MatrixRun
from sona.cli_score import Ablation, Pictures, score
from sona.config import ServeConfig
from sona.errors import ConfigError, InvalidInputError, ModelError, ScoringError, SonaError, UnknownIdError
from sona.memory_spans import show
from sona.scoring_model import Opened, ServerOptions, _secret
from sona.serving.local import LocalModel
from sona.storage.store import Store
from sona.terminal import err, out
from sona.types import Trajectory, to_messages
from tests.attribution.servers import SGLANG, SONA, VLLM, served
from tests.attribution.told import Told, Words
from tests.attribution_view.charts import HOSTILE
from tests.other_model import write_other_model
from tests.serving.noisy_adapter import write_noisy_adapter
from tests.storage.learned import publish
from tests.storage.records import add, rated
from tests.test_cli import command

MEMORIES = {"river": "blue river", "[red]echo": "echo means say again", "stone": "stone"}
MESSAGES = [
    {"role": "system", "content": "be kind . blue river"},
    {"role": "user", "content": "echo stone"},
    {"role": "assistant", "content": "stone"},
    {"role": "user", "content": "echo means say again ; echo river"},
    {"role": "assistant", "content": "river blue"},
]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    for console in (out, err):
        monkeypatch.setattr(console, "_width", 120)


@pytest.fixture(scope="module")
def model() -> Iterator[LocalModel]:
    opened = LocalModel("tiny", ServeConfig(device="cpu", threads=1))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def store(model: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a trajectory ``t`` in which memories are marked, one without, and a version whose adapter is noise."""
    folder = tmp_path_factory.mktemp("score")
    shown = show(to_messages(MESSAGES[:-1]), MEMORIES)
    marked = Trajectory(id="t", source="bot", messages=shown.messages, response="river blue", metadata=shown.metadata)
    adapter = write_noisy_adapter(model, folder / "adapter", 1)
    with Store.open(folder / "store") as opened:
        add(opened, [marked, *rated(["none"])])
        files = {f"adapter/{path.name}": path.read_bytes() for path in adapter.iterdir()}
        publish(opened, files)
    return folder / "store"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "talk.json", MESSAGES, MEMORIES)


def written(path: Path, messages: object, memories: object) -> Path:
    path.write_text(json.dumps({"messages": messages, "memories": memories}))
    return path


def ended(*what: Any, code: int = 0, **options: Any) -> None:
    with pytest.raises(SystemExit) as exit:
        score(*map(str, what), **{"model": "tiny", **options})
    assert exit.value.code == code


def expected(model: LocalModel, context: Context) -> list[list[float]]:
    run = MatrixRun(context, model, LeaveOneOut(model))
    list(run.rows())
    return [row.tolist() for row in run.matrix().signed]


def test_a_file_is_scored_by_the_base_model(model: LocalModel, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended(file, json=True)
    told = json.loads(capsys.readouterr().out)
    wanted = expected(model, from_messages(MESSAGES, MEMORIES))
    for memory, values in zip(told["memories"], wanted, strict=True):
        assert memory["values"] == pytest.approx(values, abs=1e-4)
    assert [memory["key"] for memory in told["memories"]] == ["river", "stone", "[red]echo"]
    assert [one["number"] for one in told["responses"]] == [1, 2]
    assert told["partial"] == ""
    assert told["all_at_once"]["failure"] == ""


def test_a_trajectory_is_scored_by_the_version_in_force_beside_a_running_agent(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sona.open_sync(store):  # it holds the lock
        ended("t", store=store)
    shown = capsys.readouterr().out
    assert shown.startswith("t, scored by tiny, version v1: each memory left out by itself")
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line}
    assert rows["river"][-2:] == ["blue", "river"]
    assert "[red]echo" in rows
    assert "all at once" in shown


def test_versions_score_otherwise_than_the_base(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "talk.json", MESSAGES, MEMORIES)
    weights = []
    for at in (None, store):
        ended(file, store=at, json=True, method="strip_all")
        weights.append(json.loads(capsys.readouterr().out)["all_at_once"]["values"])
    assert weights[0] != pytest.approx(weights[1], abs=0.1)


def test_pictures_are_written(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    page, png = tmp_path / "heat.html", tmp_path / "heat.png"
    ended(file, method="ablate", ablation=Ablation(runs=8), pictures=Pictures(html=page, png=png))
    assert "nats of log-odds" in page.read_text()
    assert png.read_bytes().startswith(b"\x89PNG")
    assert f"{page} written" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "answers"), [("sglang", SGLANG), ("vllm", VLLM), ("vllm-chat", VLLM), ("sona", SONA)])
def test_a_server_scores_as_the_model_does(
    model: LocalModel, file: Path, kind: Any, answers: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(answers) as server:
        ended(file, server=ServerOptions(url=server.url, kind=kind), json=True)
    told = json.loads(capsys.readouterr().out)
    assert server.url in told["scored"]
    wanted = expected(model, from_messages(MESSAGES, MEMORIES))
    for memory, values in zip(told["memories"], wanted, strict=True):
        assert memory["values"] == pytest.approx(values, abs=1e-3)


def test_the_stores_token_goes_to_no_other_machine(store: Path) -> None:
    token = store / "service.token"
    token.write_text("a-token-of-the-store-for-its-own-server")
    try:
        for url, known in (("http://127.0.0.1:1", True), ("http://localhost:1/x", True), ("http://10.0.0.9:1", False)):
            assert (_secret(ServerOptions(url=url), store) is not None) is known
        assert _secret(ServerOptions(url="http://127.0.0.1:1", kind="vllm"), store) is None
        named = _secret(ServerOptions(url="http://10.0.0.9:1", token_file=token), store)
        assert named is not None
        assert "a-token" not in repr(named)
    finally:
        token.unlink()


@contextmanager
def by_rule(*_: object) -> Iterator[Opened]:
    """Each memory's word is worth 2 nats; the third pass is interrupted or fails."""
    codec = Words()
    scorer = Told(codec, lambda before: -9.0 + 2.0 * len(before & {"one", "two", "three"}))

    def fails(call: int) -> SonaError | None:
        if call == 3 and mode == "stop":
            raise KeyboardInterrupt
        return ScoringError("timed\x1b out") if call == 3 else None

    scorer.fails = fails
    yield Opened(codec, scorer, "a rule")


mode = "stop"


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cli_score, "local_scorer", by_rule)
    talk = [{"role": "user", "content": "say one two three"}, {"role": "assistant", "content": f"yes {HOSTILE}"}]
    return written(tmp_path / "three.json", talk, {"a": "one", "b": "two", "c": "three"})


def test_what_was_done_is_shown_after_ctrl_c(three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "heat.html"
    ended(three, pictures=Pictures(html=page), code=130)
    told = capsys.readouterr()
    rows = {line.split()[0]: line.split() for line in told.out.splitlines() if line}
    assert rows["a"][1] == "2.00"
    assert "the heaviest\na: 2.00, of responses 1 (+2.00)\n" in told.out
    assert rows["b"][1:] == ["?", "?", "?", "no", "score:", "not", "reached"]
    assert "(partial: 2 of 3 memories were not reached)" in told.out
    assert "partial: 2 of 3 memories were not reached" in told.err
    assert "Stopped early: 2 of 3" in page.read_text()
    ended(three, json=True, code=130)
    values = [one["values"] for one in json.loads(capsys.readouterr().out)["memories"]]
    assert values == [[pytest.approx(2.0)], [None], [None]]


def test_a_row_that_failed_says_why(
    three: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "mode", "fail")
    ended(three, code=1)
    told = capsys.readouterr()
    assert "no score: timed� out" in told.out
    assert "1 row has no or not all scores" in told.err
    assert not set("\x1b\u202e") & set(told.out + told.err)


def test_memories_that_say_the_same_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def either(*_: object) -> Iterator[Opened]:
        codec = Words()
        yield Opened(codec, Told(codec, lambda before: -1.0 if before & {"red", "rot"} else -9.0), "a rule")

    monkeypatch.setattr(cli_score, "local_scorer", either)
    talk = [{"role": "user", "content": "say red rot"}, {"role": "assistant", "content": "yes"}]
    ended(written(tmp_path / "two.json", talk, {"a": "red", "b": "rot"}))
    told = capsys.readouterr()
    assert "warning: response 1: all memories together give it 8.00 nats, each by itself only 0.00 in sum" in told.err
    assert "--method ablate" in told.err


@pytest.mark.parametrize(
    ("messages", "memories", "said"),
    [
        (3, {}, "messages: a list is allowed, not a whole number"),
        (MESSAGES, {}, "memories="),
        (MESSAGES, {"a": "nowhere"}, "word for word"),
        (MESSAGES, {"a": "river blue"}, "word for word"),
        (MESSAGES[:2], {"a": "river"}, "no message of the assistant's"),
        ([{"role": "king", "content": "x"}], {"a": "x"}, "king"),
        ([{"role": "user", "content": "a " + "word " * 700}, MESSAGES[2]], {"a": "a"}, "the model takes 512"),
    ],
)
def test_what_can_not_be_scored_is_refused(tmp_path: Path, messages: object, memories: object, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        score(str(written(tmp_path / "talk.json", messages, memories)), model="tiny")


def test_stdin_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"{")))
    with pytest.raises(InvalidInputError, match="allowed"):
        score("-", model="tiny")


def test_what_is_not_there_is_told(store: Path, file: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownIdError, match="no trajectory"):
        score("t9", model="tiny", store=store)
    with pytest.raises(UnknownIdError, match="no trajectory"):
        score("\udcff", model="tiny", store=store)  # a byte on the command line that is no text
    with pytest.raises(UnknownIdError, match="no such file"):
        score("t9", model="tiny")
    with pytest.raises(InvalidInputError, match=r"no memories are marked in it.*t\.generate\(memories="):
        score("none", model="tiny", store=store)
    with pytest.raises(ModelError, match="does not exist"):
        score(str(file), model=str(tmp_path / "none"))
    with pytest.raises(InvalidInputError, match="1 or more"):
        score(str(file), model="tiny", most=0)
    with pytest.raises(InvalidInputError, match="lies in the store"):
        score("t", model="tiny", store=store, pictures=Pictures(html=store / "heat.html"))
    with pytest.raises(InvalidInputError, match="name another file"):
        score(str(file), model="tiny", pictures=Pictures(tmp_path / "x", tmp_path / "x"))


def test_another_base_model_than_the_stores_is_refused(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as opened:
        opened.write_state("model", b"another")
    file = written(tmp_path / "talk.json", MESSAGES, MEMORIES)
    with pytest.raises(ModelError, match="another base model"):
        score(str(file), model="tiny", store=tmp_path / "store")


def test_a_model_without_a_chat_template_scores_as_it_answers(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended(file, model=write_other_model(tmp_path / "plain", chat_template=False), json=True)
    assert len(json.loads(capsys.readouterr().out)["responses"]) == 2


def test_a_server_that_is_none_is_told(file: Path) -> None:
    with pytest.raises(ScoringError, match="refused"):
        score(str(file), model="tiny", server=ServerOptions(url="http://127.0.0.1:1"))
    with pytest.raises(ConfigError, match="ftp"):
        score(str(file), model="tiny", server=ServerOptions(url="ftp://x"))
    with pytest.raises(ConfigError, match="without --server"):
        score(str(file), model="tiny", server=ServerOptions(max_tokens=5))
    with pytest.raises(ConfigError, match="only a vLLM server"):
        score(str(file), model="tiny", server=ServerOptions(url="http://127.0.0.1:1", model="x"))


def test_the_command_takes_the_names_of_its_options(file: Path, tmp_path: Path) -> None:
    none = tmp_path / "none.json"
    options = ("--method", "strip_all", "--runs", 8, "--seed", 1, "--html", tmp_path / "x", "--max-tokens", 9)
    server = ("--server", "http://127.0.0.1:1", "--kind", "vllm", "--server-model", "m")
    refused = command("score", none, "--model", "tiny", *options, *server, code=2)
    assert refused.stderr == f"sona: {str(none)!r}: no such file; with --store it may be the id of a trajectory\n"
    assert "WHAT" in command("score", "--help").stdout


def test_a_narrow_terminal_gets_whole_headers_and_whole_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(out, "_width", 60)
    monkeypatch.setattr(out, "_force_terminal", True)
    file = tmp_path / "talk.json"
    file.write_text(json.dumps({"messages": MESSAGES, "memories": {"a-key-of-more-than-24-letters": "blue river"}}))
    with pytest.raises(SystemExit):
        score(str(file), model="tiny")
    shown = Text.from_ansi(capsys.readouterr().out).plain
    for header in (("memory", "weight", "a", "token"), ("response", "tokens", "from", "memories", "text")):
        assert any(tuple(line.split()[: len(header)]) == header for line in shown.splitlines())
    assert all(len(line) <= 60 for line in shown.splitlines())
