"""An agent asks the engine which route to take, and how well it is likely to go."""

from pathlib import Path

import numpy as np
import pytest

import sona
from sona.errors import DimensionMismatchError, InvalidInputError, ModelError
from tests.engine.small import open_small

RNG = np.random.default_rng(0)


def asked(place: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    return np.asarray(3 * np.eye(16)[place] + 0.2 * RNG.normal(size=16), dtype=np.float32)


def test_the_best_route_follows_what_was_recorded(tmp_path: Path) -> None:
    """On one kind of query the large model is right, on the other the small one is as good."""
    with open_small(tmp_path / "store", model=None) as engine:
        assert engine.best_route(asked(0), "model") is None
        assert engine.expected_quality(asked(0)) == 0.5
        for place in range(120):
            kind, model = place % 2, ("large", "small")[place // 2 % 2]
            right = model == "large" or kind == 1
            engine.record(
                sona.Trajectory(
                    embedding=asked(kind),
                    response="r",
                    metadata={"model": model},
                    steps=[sona.Step(name="tool:search")],
                ),
                quality=float(right),
            )
        assert engine.learn().status == "published"
        found = engine.best_route(asked(0), "model")
        assert found is not None
        assert found.route == "model:large"
        assert found.chosen.count > 20
        assert found.chosen.best > 0.99
        assert found.others[0].route == "model:small"
        assert found.others[0].high < found.chosen.low
        tools = engine.best_route(asked(0), "tool")
        assert tools is not None
        assert (tools.route, tools.others) == ("tool:search", ())
        hard, easy = engine.expected_quality(asked(0)), engine.expected_quality(asked(1))
        assert hard < 0.7
        assert easy > 0.9
        drawn = [engine.best_route(asked(1), "model", explore=np.random.default_rng(seed)) for seed in range(30)]
        routes = {one.route for one in drawn if one is not None}
        assert routes == {"model:large", "model:small"}  # as good as each other there
        with pytest.raises(DimensionMismatchError, match="width 3"):
            engine.best_route(np.ones(3, dtype=np.float32))
        with pytest.raises(InvalidInputError):
            engine.expected_quality(np.full(16, np.nan, dtype=np.float32))
        with pytest.raises(ModelError, match="no model"):
            engine.best_route("a text")
