"""What a store knows of its versions."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from sona.config import Config
from sona.errors import UnknownIdError
from sona.history import VersionEntry, find_version, read_history, settings_changed
from sona.storage.retention import Limits
from sona.storage.store import Store
from sona.storage.version_retention import prune_versions
from sona.storage.versions import Versions
from sona.types import GateCheck, GateDecision, Version
from tests.storage.records import add, rated
from tests.versions import layers, publish_version

GATE = GateDecision(passed=True, checks=(GateCheck(name="gain", value=0.5, bound=0.0, passed=True, detail="mean"),))


def with_(settings: dict[str, Any], group: str, name: str, value: object) -> dict[str, Any]:
    return {**settings, group: {**settings[group], name: value}}


DEFAULTS: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(Config()))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """v1 from v0, v2 from v1, and v3 from v1 too; v3 is in force, v1 pinned."""
    with Store.open(tmp_path / "store") as store:
        add(store, rated("abc"))
        publish_version(
            store, adapters={"s1": layers(1)}, settings=with_(DEFAULTS, "train", "batch_size", 32), gate=GATE
        )
        add(store, rated("de"))
        publish_version(store, adapters={"s2": layers(2)}, settings=DEFAULTS, metrics={"loss_last": 0.5})
        store.set_current("v1")
        publish_version(store, settings=DEFAULTS)
        store.pin("v1")
        yield store


def entries(store: Store) -> dict[str, VersionEntry]:
    return {one.id: one for one in read_history(store)}


def test_each_version_says_what_it_comes_from_and_what_it_was_made_of(store: Store) -> None:
    found = entries(store)
    assert list(found) == ["v0", "v1", "v2", "v3"]
    assert [one.id for one in found.values() if one.in_force] == ["v3"]
    assert {name: one.parents for name, one in found.items()} == {
        "v0": (),
        "v1": ("v0",),
        "v2": ("v1", "v0"),
        "v3": ("v1", "v0"),
    }
    assert (found["v0"].children, found["v1"].children, found["v2"].children) == (("v1",), ("v2", "v3"), ())
    assert found["v1"].pinned_ns == store.pinned()["v1"]
    assert found["v2"].pinned_ns is None
    assert (found["v1"].gate, found["v2"].gate) == (GATE, None)
    funnel = found["v1"].funnel
    assert funnel is not None
    assert (funnel.trained, funnel.held_out, found["v1"].trajectories) == (2, 1, 2)
    assert found["v2"].metrics == {"loss_last": 0.5}
    assert (found["v0"].funnel, found["v0"].reason, found["v1"].reason) == (None, "", "a test")
    assert store.trained_on(1) == {"b": "s1", "c": "s1"}
    assert Counter(store.trained_on(2).values()) == {"s1": 1}
    assert store.trained_on(3) == {}


def test_what_retention_deleted_is_not_among_what_is_stored_of_it(store: Store) -> None:
    store.prune(Limits(0, 2, 0, True))
    assert store.trained_on(1) == {}
    assert entries(store)["v1"].trajectories == 2, "the version keeps its number"


def test_settings_are_compared_with_the_parent_s_and_the_first_one_s_with_the_defaults(store: Store) -> None:
    found = entries(store)
    (first,) = found["v1"].settings_changed
    assert (first.name, first.before, first.now) == ("train.batch_size", 16, 32)
    (second,) = found["v2"].settings_changed
    assert (second.before, second.now) == (32, 16)
    assert found["v0"].settings_changed == ()


def test_a_setting_that_an_older_sona_had_not_is_absent_rather_than_none() -> None:
    old = Version(id="v1", parent="v0", cycle=1, created_ns=1, digest="", settings={"seed": 0, "a": {"gone": None}})
    new = msgspec.structs.replace(old, settings={"seed": 0, "a": {"new": None}})
    fresh, gone = settings_changed(old, new)
    assert (fresh.name, fresh.before, fresh.now) == ("a.new", UNSET, None)
    assert (gone.name, gone.before, gone.now) == ("a.gone", None, UNSET)
    assert msgspec.to_builtins([fresh, gone]) == [{"name": "a.new", "now": None}, {"name": "a.gone", "before": None}]


def test_a_file_that_versions_share_is_its_own_of_none(store: Store) -> None:
    found = entries(store)
    weights = Versions(store.path).path("v1") / "skills" / "s1" / "adapter" / "adapter_model.safetensors"
    assert weights.stat().st_nlink == 3
    assert found["v1"].size_bytes - found["v1"].own_bytes >= weights.stat().st_size
    assert 0 < found["v2"].own_bytes < found["v2"].size_bytes
    assert (found["v0"].size_bytes, found["v0"].has_files) == (0, True)


def test_rows_stay_when_files_go(store: Store) -> None:
    store.unpin("v1")
    store.set_current("v2")
    prune_versions(store, 1)  # v1 is the parent, so only v3 goes
    shutil.rmtree(Versions(store.path).path("v1"))
    found = entries(store)
    assert {name: one.has_files for name, one in found.items()} == {"v0": True, "v1": False, "v2": True, "v3": False}
    assert (found["v1"].size_bytes, found["v1"].own_bytes) == (0, 0)
    assert found["v1"].gate == GATE


def test_a_store_without_versions_has_the_base(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        (base,) = read_history(store)
        assert (base.id, base.in_force, base.has_files, base.digest) == ("v0", True, True, "")
        with pytest.raises(UnknownIdError, match=r"'v1' is not in .*versions list"):
            find_version(store, "v1")


def test_it_is_read_beside_a_writer(store: Store) -> None:
    with Store.open(store.path, read_only=True) as reader:
        assert [one.id for one in read_history(reader)] == ["v0", "v1", "v2", "v3"]
        store.unpin("v1")
        assert entries(reader)["v1"].pinned_ns is None
