"""Which skills are founded, who belongs to them, and which become one."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from msgspec.structs import replace as changed

from sona.bank.skills import Skill, SkillSet
from sona.checks import Float32
from sona.config import SkillsConfig
from sona.loops.sorting import BASE, BaseRight, Sorting, base_rows, merge_alike, sort_queries, with_router

WIDTH = 96
CENTRES = np.random.default_rng(3).normal(size=(7, WIDTH)).astype(np.float32)
SETTINGS = SkillsConfig(min_queries=16, max_adapters=3, retire_cycles=10)


def rows(centre: int, count: int, seed: int) -> Float32:
    noise = np.random.default_rng([seed, centre]).normal(size=(count, WIDTH))
    return np.asarray(CENTRES[centre] + 0.7 * noise, dtype=np.float32)


PROBES = rows(0, 60, 99)


def known(*centres: int, touched: int = 1) -> SkillSet:
    """A skill s1, s2, ... for each of these kinds of query, in which ``count`` grows."""
    skills = SkillSet()
    for centre in centres:
        name = f"s{centre}"
        skill = Skill(id=name, adapter=name, born_cycle=centre, touched_cycle=touched, count=10 * centre)
        skills = skills.put(skill).with_rows(name, rows(centre, 80, 50))
    return skills


class Base:
    """The base model: right on the places that it is told to be right on. Those ``turned_down`` have no answer."""

    def __init__(self, right: Sequence[int] = (), turned_down: Sequence[int] = ()) -> None:
        self.right, self.turned_down, self.asked = set(right), set(turned_down), set[int]()

    def __call__(self, places: Sequence[int]) -> npt.NDArray[np.bool_]:
        self.asked.update(places)
        return np.asarray([place in self.right for place in places if place not in self.turned_down], dtype=np.bool_)


def sort(
    features: Float32,
    skills: SkillSet = SkillSet(),  # noqa: B008 - immutable
    base_right: BaseRight | None = None,
    settings: SkillsConfig = SETTINGS,
    cycle: int = 5,
    probes: Float32 = PROBES,
) -> Sorting:
    rng = np.random.default_rng(cycle)
    return sort_queries(features, skills, probes, base_right or Base(), settings, cycle=cycle, rng=rng)


def test_queries_that_the_base_can_t_answer_found_a_skill() -> None:
    found = sort(np.concatenate([rows(1, 40, 1), rows(0, 10, 1)]))
    assert found.born == ["s5"]
    assert found.owners == ["s5"] * 40 + [BASE] * 10
    (skill,) = found.skills.skills
    assert (skill.id, skill.adapter, skill.born_cycle, skill.touched_cycle) == ("s5", "s5", 5, 5)


def test_what_the_base_answers_already_needs_no_skill() -> None:
    """19 of 20 new queries right is as good as all of them."""
    found = sort(rows(1, 40, 1), base_right=Base(range(38)))
    assert (found.born, found.owners, found.skills.skills) == ([], [BASE] * 40, ())
    assert sort(rows(1, 40, 1), base_right=Base(range(30))).born == ["s5"]


def test_queries_like_the_base_s_that_it_fails_at_found_a_skill_of_their_own() -> None:
    """The same words, other right answers: nothing but the answers tells."""
    asked = rows(0, 40, 1)
    assert sort(asked, base_right=Base(range(30))).owners == [BASE] * 40
    found = sort(asked, base_right=Base(range(10)))
    assert found.born == ["s5"]
    assert found.owners == ["s5"] * 40
    assert sort(asked[:15], base_right=Base()).born == [], "too few to say so"


def test_queries_without_a_single_accepted_answer_found_nothing_yet() -> None:
    """There would be nothing to imitate, and so no adapter that could answer for the skill."""
    for asked in (rows(1, 40, 1), rows(0, 40, 1)):
        found = sort(asked, base_right=Base(turned_down=range(40)))
        assert (found.born, found.owners) == ([], [BASE] * 40)
    assert sort(rows(1, 40, 1), base_right=Base(turned_down=range(39))).born == ["s5"]


def test_more_of_a_known_skill_founds_nothing_and_asks_the_base_nothing() -> None:
    base = Base()
    found = sort(np.concatenate([rows(1, 30, 1), rows(2, 30, 1)]), known(1, 2), base)
    assert found.born == []
    assert found.owners == ["s1"] * 30 + ["s2"] * 30
    assert base.asked == set()


def test_new_queries_among_known_ones_found_a_skill_for_themselves_alone() -> None:
    kinds = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3], 40))
    noise = np.random.default_rng(1).normal(size=(160, WIDTH))
    found = sort((CENTRES[kinds] + 0.7 * noise).astype(np.float32), known(1, 2))
    wanted = [[BASE, "s1", "s2", "s5"][kind] for kind in kinds]
    assert np.mean([one == other for one, other in zip(found.owners, wanted, strict=True)]) > 0.95
    assert [skill.id for skill in found.skills.skills] == ["s1", "s2", "s5"]


def crowd(start: int, least: float, most: float, count: int, seed: int) -> Float32:
    """Queries between a kind and another, from a share to another of the way, without a gap."""
    rng = np.random.default_rng(seed)
    way = rng.uniform(least, most, (count, 1))
    found = CENTRES[start] * (1 - way) + CENTRES[4] * way + 0.7 * rng.normal(size=(count, WIDTH))
    return np.asarray(found, dtype=np.float32)


def test_what_a_router_could_not_tell_apart_joins_the_skill_that_it_is_like() -> None:
    crowds = [crowd(1, 0.0, 1.0, 160, seed) for seed in range(3)]
    routed = [sort(asked, known(1, 2), settings=changed(SETTINGS, mode="routed")) for asked in crowds]
    assert any(found.born for found in routed), "told to have an adapter for each, it cuts the crowd in two"
    for asked in crowds:
        found = sort(asked, known(1, 2))
        assert found.born == []
        assert np.mean([owner == "s1" for owner in found.owners]) > 0.8, "the others are like s2"


@pytest.mark.parametrize("seed", range(3))
def test_what_looks_more_like_the_base_s_than_a_skill_s_and_is_neither_joins_a_skill(seed: int) -> None:
    asked = crowd(0, 0.2, 0.6, 60, seed)
    assert sort(asked, known(1, 2), settings=changed(SETTINGS, mode="routed")).born == ["s5"]
    found = sort(asked, known(1, 2))
    assert found.born == []
    assert np.mean([owner == BASE for owner in found.owners]) < 0.1


def test_beyond_the_cap_a_new_skill_shares_the_least_burdened_adapter() -> None:
    skills = known(1, 2, 3)
    extra = Skill(id="s9", adapter="s1", born_cycle=4, touched_cycle=4)
    skills = skills.put(extra).with_rows("s9", rows(4, 40, 1))
    found = sort(rows(5, 40, 1), skills)
    assert found.born == ["s5"]
    born = found.skills.get("s5")
    assert born is not None
    assert born.adapter == "s2", "s1 has two skills, s3 has more trajectories"
    assert len(found.skills.adapters) == 3
    assert sort(rows(5, 40, 1), skills, settings=changed(SETTINGS, max_adapters=4)).skills.adapters[-1] == "s5"


def test_a_skill_that_nobody_asks_for_is_retired() -> None:
    skills = known(1, touched=1).put(changed(known(2).skills[0], touched_cycle=8)).with_rows("s2", rows(2, 80, 50))
    assert [skill.id for skill in sort(rows(2, 30, 1), skills, cycle=11).skills.skills] == ["s1", "s2"]
    after = sort(rows(2, 30, 1), skills, cycle=12)
    assert [skill.id for skill in after.skills.skills] == ["s2"]
    assert set(after.skills.rows) == {"s2"}
    again = sort(rows(1, 30, 1), skills, cycle=12)
    assert again.born == ["s12"], "what comes back after that is new again, under a new id"


def test_without_probes_the_first_queries_are_new() -> None:
    none = np.zeros((0, 0), np.float32)
    assert sort(rows(1, 16, 1), probes=none).owners == ["s5"] * 16
    assert sort(rows(1, 15, 1), probes=none).owners == [BASE] * 15
    assert sort(rows(1, 30, 1), known(1), probes=none).owners == ["s1"] * 30
    assert set(sort(rows(2, 30, 1), known(1), probes=none).owners) == {"s5"}


def test_traffic_that_the_base_answered_is_known_as_the_base_s() -> None:
    skills = known(1).with_rows(BASE, rows(2, 60, 1))
    assert len(base_rows(skills, PROBES)) == 120
    assert sort(rows(2, 30, 2), skills, Base(range(30))).owners == [BASE] * 30
    np.testing.assert_array_equal(base_rows(known(1), PROBES), PROBES)
    np.testing.assert_array_equal(base_rows(skills, np.zeros((0, 0), np.float32)), skills.rows[BASE])


def test_the_same_queries_are_sorted_the_same() -> None:
    asked = np.concatenate([rows(1, 30, 1), rows(3, 30, 1)])
    assert sort(asked, known(1, 2)).owners == sort(asked, known(1, 2)).owners


# ------------------------------------------------------------------------------------------------ merging


def twins(first: int, second: int) -> SkillSet:
    """s1 and s2 of the same kind of query, with so many trajectories, and s3 of another."""
    skills = known(1, 2, 3).with_rows("s2", np.zeros((0, WIDTH), np.float32))
    skills = replace(skills, rows={**skills.rows, "s2": rows(1, 70, 7)})
    for place, count in ((0, first), (1, second)):
        skills = skills.put(changed(skills.skills[place], count=count))
    return skills


@pytest.mark.parametrize(("first", "second", "kept"), [(40, 30, "s1"), (30, 40, "s2"), (30, 30, "s1")])
def test_skills_that_can_t_be_told_apart_become_the_larger_or_the_older(first: int, second: int, kept: str) -> None:
    gone = "s2" if kept == "s1" else "s1"
    for touched in (["s1"], ["s2"], ["s1", "s2", "s3"]):
        skills, merged = merge_alike(twins(first, second), touched)
        assert merged == [gone]
        assert {skill.id for skill in skills.skills} == {kept, "s3"}
        whole = skills.get(gone)
        assert whole is not None
        assert (whole.id, whole.count) == (kept, first + second)
        assert set(whole.claims) == {"s1", "s2"}
        assert set(skills.adapters) == {kept, "s3"}


def test_skills_that_nothing_was_said_for_are_left_alone() -> None:
    skills, merged = merge_alike(twins(1, 2), ["s3"])
    assert (merged, len(skills.skills)) == ([], 3)
    assert merge_alike(twins(1, 2), [])[1] == []


def test_different_skills_stay_apart() -> None:
    _, merged = merge_alike(known(1, 2, 3, 4), ["s1", "s2", "s3", "s4"])
    assert merged == []


def test_a_skill_of_one_row_is_never_alike() -> None:
    skills = known(1, 2)
    skills = replace(skills, rows={**skills.rows, "s2": skills.rows["s1"][:1]})
    assert merge_alike(skills, ["s1", "s2"])[1] == []


# ------------------------------------------------------------------------------------------------ the router


def test_the_router_sends_each_skill_s_queries_to_its_adapter() -> None:
    skills, fitted = with_router(known(1, 2).put(changed(known(3).skills[0], adapter="s1")), PROBES)
    assert fitted is not None
    assert skills.router is fitted.router
    assert set(fitted.right) == {"base", "s1", "s2"}, "a skill of no rows can't be routed to yet"
    assert set(skills.router.route(rows(1, 20, 8))) == {"s1"}
    assert set(skills.router.route(rows(0, 20, 8))) == {None}


def test_without_skills_there_is_no_router() -> None:
    skills, fitted = with_router(SkillSet().with_rows(BASE, rows(0, 5, 1)), PROBES)
    assert (skills.router, fitted) == (None, None)
    routed, _ = with_router(known(1), PROBES)
    assert with_router(routed.without("s1"), PROBES)[0].router is None, "the one that it had is of no use"


def test_without_a_query_of_the_base_s_the_skill_gets_its_own_all_the_same() -> None:
    skills, fitted = with_router(known(1), np.zeros((0, 0), np.float32))
    assert fitted is not None
    assert skills.router is not None
    assert set(skills.router.route(rows(1, 30, 3))) == {"s1"}
