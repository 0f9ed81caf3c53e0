"""What an engine does for its store by itself, and what it is asked to."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

import sona
from sona.config import StoreConfig
from tests.engine.small import SMALL, open_small, record_task


def test_a_cycle_ends_with_what_is_beyond_the_limits_deleted(tmp_path: Path) -> None:
    config = msgspec.structs.replace(SMALL, store=StoreConfig(keep_trajectories=30))
    with open_small(tmp_path / "store", None, config) as engine:  # without a model the bank alone learns
        ids = record_task(engine, 60, seed=1)
        engine.flush()
        assert engine.status().store.trajectories == 60, "nothing goes before a cycle has taken it"
        assert engine.learn().status == "published"
        left = engine.status().store
        assert (left.trajectories, left.left_out) == (30, 30)
        assert engine.get(ids[-1]).quality == 1.0
        with pytest.raises(sona.SonaError, match="not in this store"):
            engine.get(ids[0])
