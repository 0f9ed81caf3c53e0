"""Readers of recorded attempts, on made-up rows, and the order that they are given."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bank.attempts import NEED, Attempt, in_time_order, seen_before


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "dev").mkdir(parents=True)
    (folder / "dev" / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def tau(agent: str, task: int, reward: float) -> dict[str, Any]:
    calls = [{"name": name, "arguments": "{}"} for name in ("find_user", "get_order", "find_user")]
    return {
        "domain": "retail",
        "agent": agent,
        "task_id": task,
        "trial": 0,
        "reward": reward,
        "task": {"instruction": "what the agent is not told"},
        "messages": [
            {"role": "user", "content": f"help me with {task}"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "content": "found", "name": "find_user"},
            {"role": "assistant", "content": "done", "tool_calls": None},
            {"role": "user", "content": "thanks"},
        ],
    }


def reflexion(run: str, trial: int, question: str, reward: float) -> dict[str, Any]:
    steps = [{"thought": "", "action": f"{verb}[x]", "observation": ""} for verb in ("Search", "Search", "Finish")]
    return {"run": run, "trial": trial, "question": question, "reward": reward, "steps": steps}


def test_query_of_tau_bench_is_what_the_agent_was_asked(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", [tau("a", 3, 1.0)])
    assert NEED.fits(folder)
    routes = ("agent:a", "tool:find_user", "tool:get_order")
    assert in_time_order(folder, 0) == [Attempt("help me with 3", "done", routes, 1.0, "retail a", 0)]


def test_reflexion_and_react_are_known_by_their_fields(tmp_path: Path) -> None:
    one = write(tmp_path / "reflexion", [reflexion("base", 2, "who?", 0.0)])
    steps = [{"action": "search[red shoe]", "observation": ""}, {"action": "click[Buy Now]", "observation": ""}]
    other = write(tmp_path / "react", [{"env": "shop", "task": "a red shoe", "reward": 0.5, "steps": steps}])
    assert NEED.fits(one)
    assert NEED.fits(other)
    (asked,), (bought,) = in_time_order(one, 0), in_time_order(other, 0)
    assert asked == Attempt("who?", "Finish[x]", ("agent:base", "tool:Search", "tool:Finish"), 0.0, "base", 2)
    assert bought == Attempt(
        "a red shoe", "click[Buy Now]", ("agent:react", "tool:search", "tool:click"), 0.5, "shop", 0
    )
    assert bought.succeeded
    assert not asked.succeeded


@pytest.mark.parametrize("row", [{"text": "x", "intent": "y", "domain": "z"}, {"reward": 1.0}])
def test_other_rows_are_no_attempts(tmp_path: Path, row: dict[str, Any]) -> None:
    folder = write(tmp_path / "d", [row])
    assert not NEED.fits(folder)
    assert in_time_order(folder, 0) == []
    assert in_time_order(tmp_path, 0) == []


def test_runs_and_trials_come_one_after_the_other(tmp_path: Path) -> None:
    rows = [reflexion(run, trial, f"{run}{trial}{n}", 0.0) for trial in (2, 1) for run in "ba" for n in range(3)]
    attempts = in_time_order(write(tmp_path / "d", rows), 0)
    assert [(one.run, one.trial) for one in attempts[::3]] == [("b", 1), ("b", 2), ("a", 1), ("a", 2)]
    assert {one.query for one in attempts[:3]} == {"b10", "b11", "b12"}


def test_outcomes_do_not_follow_from_the_order_of_the_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", [reflexion("a", 1, str(n), float(n < 50)) for n in range(100)])  # successes first
    attempts = in_time_order(folder, 0)
    assert 15 <= sum(one.succeeded for one in attempts[:50]) <= 35
    assert in_time_order(folder, 0) == attempts
    assert in_time_order(folder, 1) != attempts


def test_seen_before_means_in_an_earlier_cycle() -> None:
    attempts = [Attempt(query, "", (), 1.0, "a", 1) for query in "aabbac"]
    assert seen_before(attempts, 2) == [False, False, False, False, True, False]
