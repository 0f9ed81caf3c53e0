"""Who answers: a skill's adapter, or the base where a query is like nothing known."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sona.bank.ridge import fit
from sona.bank.router import BARS, RIDGE, SkillRouter, fit_router
from sona.bank.skills import Skill, SkillSet
from sona.checks import Float32
from sona.errors import StoreCorruptError
from sona.loops.skill_files import ROUTER, SKILLS, read_skills, write_skills

WIDTH = 192
CENTRES = np.random.default_rng(3).normal(size=(6, WIDTH)).astype(np.float32)


def rows(centre: int, count: int, seed: int, noise: float = 0.3) -> Float32:
    found = CENTRES[centre] + noise * np.random.default_rng(seed).normal(size=(count, WIDTH))
    return np.asarray(found, dtype=np.float32)


def own_adapters(*skills: str) -> dict[str, str]:
    return {skill: f"of-{skill}" for skill in skills}


def test_queries_go_to_their_skill_and_the_base_s_stay() -> None:
    skills = {"s1": rows(1, 40, 1), "s2": rows(2, 25, 2), "s3": rows(3, 60, 3)}
    found = fit_router(rows(0, 50, 0), skills, own_adapters(*skills))
    assert found.right == {"base": 1.0, "s1": 1.0, "s2": 1.0, "s3": 1.0}
    for centre, name in enumerate([None, "of-s1", "of-s2", "of-s3"]):
        assert set(found.router.route(rows(centre, 30, 100 + centre))) == {name}


def test_a_query_unlike_everything_goes_to_the_base() -> None:
    """One of several skills would be the likeliest, but none says that the query is its own."""
    skills = {f"s{centre}": rows(centre, 40, centre) for centre in (1, 2, 3)}
    found = fit_router(rows(0, 40, 0), skills, own_adapters(*skills))
    unlike = np.concatenate([rows(4, 30, 8), rows(5, 30, 9), np.zeros((1, WIDTH), np.float32)])
    assert found.router.route(unlike).count(None) >= 0.9 * len(unlike)


def test_without_skills_the_base_answers_everything() -> None:
    found = fit_router(rows(0, 8, 0), {}, {})
    assert found.router.route(rows(1, 5, 1)) == [None] * 5
    assert found.right == {"base": 1.0}


def test_skills_that_share_an_adapter_are_not_misrouted_to_each_other() -> None:
    """Two skills that hardly anything tells apart."""
    step = 0.02 * CENTRES[5]
    skills = {"s1": rows(1, 100, 1), "s2": rows(1, 100, 2) + step, "s3": rows(3, 100, 3)}
    apart = fit_router(rows(0, 100, 0), skills, own_adapters(*skills))
    assert max(apart.right["s1"], apart.right["s2"]) < 0.9
    shared = fit_router(rows(0, 100, 0), skills, {"s1": "a", "s2": "a", "s3": "b"})
    assert min(shared.right.values()) > 0.9
    assert shared.router.route(rows(1, 100, 50)).count("a") >= 90
    assert shared.router.adapters == ("a", "a", "b")


def test_the_bar_is_the_highest_at_which_fewest_are_misrouted() -> None:
    skills = {"s1": rows(1, 60, 1, noise=1.5), "s2": rows(2, 60, 2, noise=1.5)}
    base = rows(0, 60, 0, noise=4.0)
    found = fit_router(base, skills, own_adapters(*skills))

    def misrouted(bar: float) -> float:
        """The same, told from leave-one-out values by a slow reading of the rule."""
        values = fit([base, *skills.values()], RIDGE).left_out
        wrong = []
        for owner in range(3):
            mine = values[60 * owner : 60 * owner + 60]
            answering = [
                place if (place := 1 + int(row[1:].argmax())) and row[place] > max(row[0], bar) else 0 for row in mine
            ]
            wrong.append(np.mean([answer != owner for answer in answering]))
        return float(wrong[0] + (wrong[1] + wrong[2]) / 2)

    by_bar = [misrouted(bar) for bar in BARS]
    assert min(by_bar) < max(by_bar), "the bar matters here"
    assert list(BARS) == sorted(BARS, reverse=True)
    assert found.router.bar == BARS[int(np.argmin(np.round(by_bar, 9)))]
    assert 1 - found.right["base"] + 1 - (found.right["s1"] + found.right["s2"]) / 2 == pytest.approx(min(by_bar))


def test_a_higher_bar_only_sends_more_to_the_base() -> None:
    skills = {"s1": rows(1, 40, 1, noise=1.0), "s2": rows(2, 40, 2, noise=1.0)}
    router = fit_router(rows(0, 40, 0, noise=1.0), skills, own_adapters(*skills)).router
    asked = np.concatenate([rows(centre, 40, 70 + centre, noise=1.0) for centre in range(4)])
    before = router.route(asked)
    for bar in (max(BARS), 0.4, 0.9, 10.0):
        after = replace(router, bar=bar).route(asked)
        assert all(new in (old, None) for old, new in zip(before, after, strict=True))
        before = after
    assert before == [None] * len(asked)


def test_a_base_that_is_known_by_one_row_alone_is_enough() -> None:
    found = fit_router(np.zeros((1, WIDTH), np.float32), {"s1": rows(1, 30, 1)}, {"s1": "a"})
    assert set(found.router.route(rows(1, 20, 2))) == {"a"}


# ------------------------------------------------------------------------------------------------ as files


def skill_set(seed: int, count: int, routed: bool) -> SkillSet:
    rng = np.random.default_rng(seed)
    skills = SkillSet().with_rows("", rows(0, 20, seed))
    for place in range(1, count + 1):
        skill = Skill(
            id=f"s{place}",
            adapter=f"s{rng.integers(1, place + 1)}",
            born_cycle=place,
            touched_cycle=place + int(rng.integers(0, 5)),
            count=int(rng.integers(0, 1000)),
            merged=tuple(f"s{100 * place + extra}" for extra in range(int(rng.integers(0, 3)))),
            replay_after=int(rng.integers(0, 9)),
            usual=tuple(rng.normal(size=3).tolist()),
        )
        skills = skills.put(skill).with_rows(skill.id, rows(place, int(rng.integers(2, 30)), seed + place))
        skills = skills.with_rows(skill.id, rows(place, 3, seed), ["ann", "bob", "ann"])
    if routed and count:
        known = {skill.id: skills.rows[skill.id] for skill in skills.skills}
        fitted = fit_router(skills.rows[""], known, {skill.id: skill.adapter for skill in skills.skills})
        skills = replace(skills, router=fitted.router)
    return skills


def check_same(first: SkillSet, second: SkillSet) -> None:
    assert first.skills == second.skills
    assert first.rows.keys() == second.rows.keys()
    for name, features in first.rows.items():
        assert second.rows[name].dtype == np.float32
        np.testing.assert_array_equal(second.rows[name], features)
        assert second.owners(name) == first.owners(name)
    assert (first.router is None) == (second.router is None)
    if first.router is not None:
        assert second.router is not None
        asked = np.concatenate([rows(centre, 10, 40 + centre) for centre in range(6)])
        assert second.router.route(asked) == first.router.route(asked)
        assert (second.router.adapters, second.router.bar) == (first.router.adapters, first.router.bar)
        for name in ("mean", "scale", "weights", "offset"):
            np.testing.assert_array_equal(getattr(second.router, name), getattr(first.router, name))


@given(st.integers(0, 1000), st.integers(0, 5), st.booleans())
def test_skills_come_back_from_their_files_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, routed: bool
) -> None:
    folder = tmp_path_factory.mktemp("v1")
    skills = skill_set(seed, count, routed)
    write_skills(folder, skills)
    check_same(skills, read_skills(folder))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_skills(folder, read_skills(folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


def test_no_skills_are_no_files(tmp_path: Path) -> None:
    write_skills(tmp_path, SkillSet())
    assert list(tmp_path.iterdir()) == []
    check_same(SkillSet(), read_skills(tmp_path))


def overwrite(path: Path, data: bytes) -> None:
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "no json": lambda folder: overwrite(folder / SKILLS, b"{"),
    "no text": lambda folder: overwrite(folder / SKILLS, b"\xff\xfe\x00"),
    "another json": lambda folder: overwrite(folder / SKILLS, b'{"skills": 3}'),
    "no tensors": lambda folder: overwrite(folder / ROUTER, b"abc"),
    "empty tensors": lambda folder: overwrite(folder / ROUTER, b""),
    "cut tensors": lambda folder: overwrite(folder / ROUTER, (folder / ROUTER).read_bytes()[:-9]),
    "lost tensors": lambda folder: (folder / ROUTER).unlink(),
    "tensors of a version without a router": lambda folder: write_tensors_of(folder, skill_set(1, 2, routed=False)),
}


def write_tensors_of(folder: Path, skills: SkillSet) -> None:
    about = (folder / SKILLS).read_bytes()
    write_skills(folder, skills)
    (folder / SKILLS).write_bytes(about)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_a_typed_error_with_the_way_out(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "v7"
    folder.mkdir()
    write_skills(folder, skill_set(1, 3, routed=True))
    DAMAGES[damage](folder)
    with pytest.raises(StoreCorruptError, match=r"v7.*roll back"):
        read_skills(folder)


def test_a_router_routes_rows_as_they_come_back_from_a_file() -> None:
    """float16 rows are what it is fitted to, so nothing depends on whether a cycle ran in one process."""
    skills = skill_set(4, 3, routed=True)
    router = skills.router
    assert isinstance(router, SkillRouter)
    for name, features in skills.rows.items():
        np.testing.assert_array_equal(features, features.astype(np.float16).astype(np.float32), err_msg=name)


def test_with_one_skill_a_query_unlike_both_mostly_goes_to_the_base() -> None:
    skills = {"s1": rows(1, 60, 1)}
    router = fit_router(rows(0, 60, 0), skills, own_adapters("s1")).router
    assert router.bar == max(BARS), "nothing known is lost by it"
    reached = [name is not None for place in range(2, 5) for name in router.route(rows(place, 60, place))]
    assert np.mean(reached) < 0.25
    assert set(router.route(rows(1, 40, 9))) == {"of-s1"}
