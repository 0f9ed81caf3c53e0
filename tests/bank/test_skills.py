"""What is known of skills, as it grows, merges and leaves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sona.bank.skills import HELD_OUT, KEPT, Skill, SkillSet, least_burdened, owner_of


def skill(name: str, adapter: str = "", born: int = 1, count: int = 0, replay_after: int = 0) -> Skill:
    return Skill(
        id=name,
        adapter=adapter or name,
        born_cycle=born,
        touched_cycle=born,
        count=count,
        replay_after=replay_after,
    )


def three() -> SkillSet:
    skills = SkillSet()
    for place, one in enumerate([skill("s1", count=5), skill("s2", "s1", count=3), skill("s3", count=9)]):
        skills = skills.put(one).with_rows(one.id, np.full((2, 4), place + 1, np.float32))
    return skills


def test_a_skill_takes_the_place_of_the_one_with_its_id() -> None:
    skills = three().put(skill("s2", "s3", count=4))
    assert [one.id for one in skills.skills] == ["s1", "s2", "s3"]
    assert skills.get("s2") == skill("s2", "s3", count=4)
    assert [one.id for one in skills.put(skill("s4")).skills] == ["s1", "s2", "s3", "s4"]
    assert skills.put(skill("s2", "s3", count=4)) == skills
    assert three().get("s9") is None


def test_what_is_known_never_changes_in_place() -> None:
    skills = three()
    rows = skills.rows["s1"].copy()
    skills.put(skill("s1", count=100)).with_rows("s1", np.zeros((3, 4), np.float32)).without("s2").merged("s1", "s3")
    assert [(one.id, one.count) for one in skills.skills] == [("s1", 5), ("s2", 3), ("s3", 9)]
    np.testing.assert_array_equal(skills.rows["s1"], rows)


def test_adapters_are_named_once_in_the_order_of_birth() -> None:
    skills = three()
    assert skills.adapters == ("s1", "s3")
    assert [one.id for one in skills.of_adapter("s1")] == ["s1", "s2"]
    assert skills.without("s3").adapters == ("s1",)
    assert skills.without("s1").adapters == ("s1", "s3"), "another skill still needs it"


def test_a_skill_that_leaves_takes_its_rows_along() -> None:
    skills = three().with_rows("", np.ones((1, 4), np.float32)).without("s2")
    assert set(skills.rows) == {"", "s1", "s3"}
    assert skills.without("s9") == skills


def test_merged_skills_answer_to_both_ids_and_have_all_claims() -> None:
    skills = three().put(skill("s3", count=9, replay_after=4)).merged("s1", "s2").merged("s3", "s1")
    (whole,) = skills.skills
    assert (whole.id, whole.adapter, whole.count) == ("s3", "s3", 17)
    assert set(whole.claims) == {"s1", "s2", "s3"}
    assert whole.replay_after == 4
    assert all(skills.get(name) is whole for name in ("s1", "s2", "s3"))
    assert skills.adapters == ("s3",)
    assert set(skills.rows) == {"s3"}
    assert sorted(skills.rows["s3"][:, 0].tolist()) == [1, 1, 2, 2, 3, 3]


def test_a_merged_skill_was_touched_when_either_was() -> None:
    skills = three().put(skill("s2", born=7)).merged("s1", "s2")
    assert (skills.skills[0].born_cycle, skills.skills[0].touched_cycle) == (1, 7)


@pytest.mark.parametrize(("sizes", "shares"), [((KEPT, KEPT), (0.5, 0.5)), ((10, KEPT - 20), (1.0, 1.0))])
def test_merged_rows_are_cut_at_the_cap(sizes: tuple[int, int], shares: tuple[float, float]) -> None:
    """What is kept of each part: half and half, or all of both."""
    gone, kept = sizes
    skills = SkillSet().put(skill("s1")).put(skill("s2"))
    skills = skills.with_rows("s1", np.ones((kept, 1), np.float32)).with_rows("s2", np.full((gone, 1), 2, np.float32))
    rows = skills.merged("s1", "s2").rows["s1"]
    assert len(rows) <= KEPT
    assert ((rows == 2).sum() / gone, (rows == 1).sum() / kept) == shares


def test_each_row_keeps_its_owner_through_caps_and_merges() -> None:
    skills = three()
    for name, source, count in (
        ("s1", "ann", 200),
        ("s1", "bob", 150),
        ("s2", "bob", 200),
        (f"{HELD_OUT}s2", "ann", 3),
    ):
        value = 1.0 if source == "ann" else 2.0
        skills = skills.with_rows(name, np.full((count, 4), value, np.float32), [source] * count)
    skills = skills.put(skill("s1", count=500)).merged("s1", "s2")
    for name, rows in skills.rows.items():
        owners = skills.owners(name)
        assert len(owners) == len(rows)
        assert all(
            owner in ("", owner_of("ann" if row[0] == 1 else "bob")) for owner, row in zip(owners, rows, strict=True)
        )
    assert (skills.rows[f"{HELD_OUT}s1"] == 1).all()
    left = skills.without_source("bob").without_source("ann")
    assert not any(any(left.owners(name)) for name in left.rows)
    assert left.without_source("carl") is left


@given(st.lists(st.integers(0, 150), min_size=1, max_size=6))
def test_the_newest_rows_are_kept(sizes: list[int]) -> None:
    skills, everything = SkillSet(), np.arange(sum(sizes), dtype=np.float32)[:, None]
    for part in np.split(everything, np.cumsum(sizes)[:-1]):
        skills = skills.with_rows("s1", part)
    np.testing.assert_array_equal(skills.rows["s1"], everything[-KEPT:])


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=20))
def test_rows_are_what_they_will_be_when_they_come_back_from_a_file(values: list[float]) -> None:
    rows = SkillSet().with_rows("s1", np.asarray(values, np.float32)[:, None]).rows["s1"]
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, rows.astype(np.float16).astype(np.float32))
    np.testing.assert_allclose(rows[:, 0], values, atol=1e-3)
    again = SkillSet().with_rows("s1", rows).rows["s1"]
    np.testing.assert_array_equal(again, rows)


def test_the_least_burdened_adapter_has_the_fewest_skills_then_trajectories() -> None:
    skills = three()
    assert least_burdened(skills, skills.adapters) == "s3"
    skills = skills.put(skill("s4", "s3", count=0))
    assert least_burdened(skills, skills.adapters) == "s1", "8 trajectories are fewer than 9"
    assert least_burdened(skills, ["s1", "fresh"]) == "fresh"
