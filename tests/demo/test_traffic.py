"""The agent's queries and the exam."""

from hypothesis import given
from hypothesis import strategies as st

from sona.demo.evaluation import make_exam
from sona.demo.options import DemoSize
from sona.demo.traffic import queries
from sona.tiny import AGENT_TASKS, SKILLS, AgentWorld

SIZE = DemoSize(new=30, earlier=5, everyday=2, exam=20)


@given(st.integers(0, 2**31 - 1))
def test_no_query_of_the_traffic_is_in_the_exam(seed: int) -> None:
    world = AgentWorld(seed)
    asked = {query.prompt for examples in make_exam(world, SIZE.exam, seed).values() for query in examples}
    recorded = {query.prompt for cycle in range(3) for query in queries(world, cycle, SIZE, seed)}
    assert not asked & recorded


def test_each_cycle_brings_one_new_task_and_some_of_what_is_known() -> None:
    world = AgentWorld(0)
    for cycle, task in enumerate(AGENT_TASKS):
        kinds = [query.skill for query in queries(world, cycle, SIZE, 0)]
        assert kinds.count(task) == SIZE.new
        assert all(kinds.count(earlier) == SIZE.earlier for earlier in AGENT_TASKS[:cycle])
        assert all(kinds.count(skill) == SIZE.everyday for skill in SKILLS)
        assert len(kinds) == SIZE.new + cycle * SIZE.earlier + len(SKILLS) * SIZE.everyday


def test_exam_asks_no_query_twice_within_a_task() -> None:
    for part, examples in make_exam(AgentWorld(0), 40, 0).items():
        assert len({example.prompt for example in examples}) == len(examples) > 0, part


def test_traffic_follows_from_the_seed() -> None:
    assert queries(AgentWorld(5), 1, SIZE, 5) == queries(AgentWorld(5), 1, SIZE, 5)
    assert queries(AgentWorld(5), 1, SIZE, 5) != queries(AgentWorld(6), 1, SIZE, 6)
