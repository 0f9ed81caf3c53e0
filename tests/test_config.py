"""Settings: defaults, ranges, TOML, and errors that help."""

from pathlib import Path
from typing import Any

import pytest

from sona.config import Config, TrainConfig, config_from, load_config
from sona.errors import ConfigError


def test_toml_maps_onto_the_tree(tmp_path: Path) -> None:
    file = tmp_path / "sona.toml"
    file.write_text("seed = 3\n[train]\nbatch_size = 16\n[lora]\ntarget_modules = ['q_proj']\n")
    made = load_config(file)
    assert (made.seed, made.train.batch_size, made.lora.target_modules) == (3, 16, ("q_proj",))
    assert made.gate == Config().gate


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"train": {"batchsize": 3}}, "did you mean train.'batch_size'"),
        ({"trian": {}}, "did you mean 'train'"),
        ({"train": 3}, "is a table"),
        ({"train": {"replay_share": 3.0}}, "replay_share"),
        ({"train": {"replay_share": 0.8, "probe_share": 0.5}}, "under 10 %"),
        ({"train": {"min_steps": 10, "max_steps": 3}}, "above max_steps"),
        ({"cycle": {"min_trajectories": 50, "max_trajectories": 3}}, "above max_trajectories"),
        ({"serve": {"device": "gpu"}}, "device"),
        ({"seed": "x"}, "seed"),
        ({"gate": {"confidence": float("nan")}}, "confidence"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_it(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from(raw)


def test_settings_built_in_code_are_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"train\.batch_size"):
        TrainConfig(batch_size=0)


def test_a_missing_or_broken_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("= 3")
    with pytest.raises(ConfigError, match="no TOML"):
        load_config(tmp_path / "bad.toml")
