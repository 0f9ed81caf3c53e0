"""What differs between two versions."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sona.bank.shelf import MOST_CHANGES
from sona.bank.skills import Skill, SkillSet
from sona.comparison import Comparison, compare
from sona.errors import StoreCorruptError, UnknownIdError
from sona.patterns import PatternChange
from sona.storage.store import Store
from sona.storage.versions import Versions
from tests.bank_view.patterns import pattern
from tests.storage.learned import spoil
from tests.storage.records import add, rated
from tests.versions import bank, layers, publish_version


def skill(name: str, *, adapter: str | None = None, count: int = 10, merged: tuple[str, ...] = ()) -> Skill:
    return Skill(id=name, adapter=adapter or name, born_cycle=1, touched_cycle=1, count=count, merged=merged)


BORN = PatternChange(cycle=1, change="born", pattern="p1-0", count=20)
MERGED = PatternChange(cycle=2, change="merged", pattern="p1-1", other="p1-0", count=3)
NEXT = PatternChange(cycle=2, change="born", pattern="p2-0", count=7)
ASIDE = PatternChange(cycle=3, change="split", pattern="p3-0", other="p1-0", count=2)
ONE, TWO, THREE = (pattern(name, at=place) for place, name in enumerate(("p1-0", "p1-1", "p2-0")))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """v1, then v2 from it, and v3 from v1 too; v3 is in force."""
    with Store.open(tmp_path / "store") as store:
        add(store, rated("ab"))
        publish_version(
            store,
            adapters={"s1": layers(1), "s2": layers(2)},
            held=bank([ONE, TWO], [BORN]),
            skills=SkillSet((skill("s1"), skill("s2"), skill("s3", adapter="s1"))),
            metrics={"loss_last": 2.0, "steps": 10.0},
            settings={"train": {"batch_size": 16}},
        )
        publish_version(
            store,
            adapters={"s2": layers(3), "s4": layers(4)},
            held=bank([ONE, THREE], [BORN, NEXT, MERGED], forgotten=5),
            skills=SkillSet((skill("s1", count=12, merged=("s3",)), skill("s2", adapter="s1"), skill("s4"))),
            metrics={"loss_last": 1.5, "new_exact_after": 1.0},
            settings={"train": {"batch_size": 32}},
        )
        store.set_current("v1")
        publish_version(store, without=["s2"], held=bank([ONE, TWO], [BORN, ASIDE]))
        yield store


def differences(found: Comparison) -> dict[str, tuple[str, bool]]:
    assert found.adapters is not None
    return {one.name: (one.state, one.one_file) for one in found.adapters}


def test_adapters_are_the_same_file_or_moved_by_so_much(store: Store) -> None:
    found = compare(store, "v1", "v2")
    assert differences(found) == {"s1": ("same", True), "s2": ("changed", False), "s4": ("new", False)}
    assert found.adapters is not None
    same, changed, new = found.adapters
    assert (same.norm_change, same.layers) == (0.0, ())
    assert same.norm_before == same.norm_now > 0
    scale, held = 16 / 4, (layers(2), layers(3))
    moved = [np.linalg.norm(scale * (held[1][name][0] @ held[1][name][1] - B @ A)) for name, (B, A) in held[0].items()]
    assert [one.norm_change for one in changed.layers] == pytest.approx(moved, rel=1e-5)
    assert changed.norm_change == pytest.approx(np.linalg.norm(moved), rel=1e-5)
    assert (new.norm_before, new.norm_now) == (0.0, new.norm_change)
    back = compare(store, "v2", "v1")
    assert differences(back) == {"s1": ("same", True), "s2": ("changed", False), "s4": ("gone", False)}


def test_equal_files_on_a_disk_without_links_are_the_same(store: Store) -> None:
    weights = Versions(store.path).path("v2") / "skills" / "s1" / "adapter" / "adapter_model.safetensors"
    data = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(data)
    assert differences(compare(store, "v1", "v2"))["s1"] == ("same", False)


def test_skills_are_born_merged_and_moved_to_other_adapters(store: Store) -> None:
    found = compare(store, "v1", "v2").skills
    assert found is not None
    states = {one.id: (one.state, one.into, one.adapter_before, one.adapter_now) for one in found}
    assert states == {
        "s1": ("changed", "", "s1", "s1"),
        "s2": ("changed", "", "s2", "s1"),
        "s3": ("merged", "s1", "s1", "s1"),
        "s4": ("new", "", "", "s4"),
    }
    assert {one.id: (one.count_before, one.count_now) for one in found}["s1"] == (10, 12)
    aside = compare(store, "v2", "v3").skills
    assert aside is not None
    assert {one.id: one.state for one in aside} == {"s1": "changed", "s2": "changed", "s3": "new", "s4": "gone"}


def test_the_bank_tells_what_happened_on_the_way(store: Store) -> None:
    found = compare(store, "v1", "v2").bank
    assert found is not None
    assert (found.changes, found.undone, found.is_whole) == ((NEXT, MERGED), (), True)
    assert (found.appeared, found.disappeared) == (("p2-0",), ("p1-1",))
    assert (found.before.patterns, found.now.patterns) == (2, 2)
    assert (found.before.learned, found.now.learned) == (40, 45)


def test_of_two_branches_one_is_undone(store: Store) -> None:
    found = compare(store, "v2", "v3")
    assert (found.common, found.steps_before, found.steps_now) == ("v1", 1, 1)
    assert found.bank is not None
    assert (found.bank.changes, found.bank.undone) == ((ASIDE,), (NEXT, MERGED))
    back = compare(store, "v2", "v1")
    assert (back.common, back.steps_before, back.steps_now) == ("v1", 1, 0)
    assert back.bank is not None
    assert (back.bank.changes, back.bank.undone) == ((), (NEXT, MERGED))


def test_a_history_that_was_cut_off_says_so(tmp_path: Path) -> None:
    lines = [PatternChange(cycle=2, change="born", pattern=f"p2-{place}", count=1) for place in range(MOST_CHANGES)]
    with Store.open(tmp_path) as store:
        add(store, rated("a"))
        publish_version(store, held=bank([ONE], [BORN]))
        publish_version(store, held=bank([ONE], lines))
        publish_version(store, held=bank([ONE], [*lines[1:], ASIDE]))
        whole = {pair: compare(store, *pair).bank for pair in (("v1", "v2"), ("v2", "v3"))}
    assert {pair: found.is_whole for pair, found in whole.items() if found is not None} == {
        ("v1", "v2"): False,  # the first of them came in the second cycle too
        ("v2", "v3"): True,
    }


def test_figures_and_settings_stand_side_by_side(store: Store) -> None:
    found = compare(store, "v1", "v2")
    assert {one.name: (one.before, one.now) for one in found.metrics} == {
        "loss_last": (2.0, 1.5),
        "new_exact_after": (None, 1.0),
        "steps": (10.0, None),
    }
    (setting,) = found.settings
    assert (setting.name, setting.before, setting.now) == ("train.batch_size", 16, 32)


def test_the_base_has_nothing_and_is_compared_all_the_same(store: Store) -> None:
    found = compare(store, "v0", "v1")
    assert differences(found) == {"s1": ("new", False), "s2": ("new", False)}
    assert found.bank is not None
    assert (found.bank.before.patterns, found.bank.changes) == (0, (BORN,))
    back = compare(store, "v1", "v0")
    assert {state for state, _ in differences(back).values()} == {"gone"}
    assert back.settings == found.settings == (), "16 is the default of train.batch_size"
    same = compare(store, "v0", "v0")
    assert (same.adapters, same.skills, same.settings, same.common) == ((), (), (), "v0")


def test_without_its_files_the_rest_of_a_version_is_compared(store: Store) -> None:
    shutil.rmtree(Versions(store.path).path("v2"))
    found = compare(store, "v1", "v2")
    assert (found.without_files, found.adapters, found.skills, found.bank) == (("v2",), None, None, None)
    assert len(found.metrics) == 3
    assert len(found.settings) == 1


def test_a_damaged_or_unknown_version_is_a_typed_error(store: Store) -> None:
    with pytest.raises(UnknownIdError, match="'v9'"):
        compare(store, "v1", "v9")
    file = Versions(store.path).path("v2") / "bank.msgpack"
    data = file.read_bytes()
    os.unlink(file)
    file.write_bytes(data)
    compare(store, "v1", "v2")
    spoil(file)
    with pytest.raises(StoreCorruptError, match=r"'v2'.*damaged"):
        compare(store, "v1", "v2")
