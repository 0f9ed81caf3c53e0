"""Settings: defaults, ranges, TOML, and errors that help."""

import os
from pathlib import Path
from typing import Any

import pytest

from sona.config import Config, CycleConfig, LoraConfig, StoreConfig, TrainConfig, config_from, load_config, settings_of
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
        ({"candidates": {"review": "required"}}, r"candidates.'review'; did you mean 'review' at the top"),
        ({"train": {"max_kl": 1}}, r"train.'max_kl'; did you mean \[gate\] max_kl\?"),
        ({"train": 3}, "is a table"),
        ({"train": {"replay_share": 3.0}}, "replay_share"),
        ({"train": {"replay_share": 0.8, "probe_share": 0.5}}, "under 10 %"),
        ({"train": {"min_steps": 10, "max_steps": 3}}, "above max_steps"),
        ({"cycle": {"min_trajectories": 50, "max_trajectories": 3}}, "above max_trajectories"),
        ({"serve": {"device": "gpu"}}, "device"),
        ({"seed": "x"}, "seed"),
        ({"store": {"journal": "disk"}}, r"store\.journal: 'disk'; one of file, memory is allowed"),
        ({"store": {"quality": "avg"}}, r"store\.quality: 'avg'; one of last, first, mean, min, max is allowed"),
        ({"skills": {"mode": 3}}, r"skills\.mode: 3; one of auto, routed, shared is allowed"),
        ({"store": {"queue_bytes": 1}}, r"store\.queue_bytes: 1; a whole number of at least 4096 is allowed"),
        ({"gate": {"confidence": float("nan")}}, "confidence"),
        ({"lora": {"alpha": 10**400}}, "alpha|float"),
        ({3: 4}, "unknown setting 3"),
        ([], "a mapping of settings"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_it(raw: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from(raw)


def test_settings_built_in_code_are_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"store\.journal: 'disk'; one of file, memory is allowed"):
        StoreConfig(journal="disk")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"train\.batch_size"):
        TrainConfig(batch_size=0)


def test_a_missing_or_broken_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"settings file '{tmp_path}/none.toml' does not exist"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=f"settings file '{tmp_path}' can't be read: Is a directory; give"):
        load_config(tmp_path)
    (tmp_path / "bad.toml").write_text("= 3")
    with pytest.raises(ConfigError, match="no TOML"):
        load_config(tmp_path / "bad.toml")


def test_a_group_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="gate: a TrainConfig; a GateConfig is allowed"):
        Config(gate=TrainConfig())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="gate: a dict"):
        Config(gate={})  # type: ignore[arg-type]


def test_what_was_converted_is_kept() -> None:
    alpha = LoraConfig(alpha=16).alpha
    assert (alpha, type(alpha)) == (16.0, float)
    assert LoraConfig(target_modules=["q_proj"]).target_modules == ("q_proj",)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value", [10**400, -(10**5000), 1e10, float("inf")], ids=["large", "unprintable", "above", "infinite"]
)
def test_a_number_beyond_all_bounds_is_a_config_error(value: float) -> None:
    with pytest.raises(ConfigError, match=r"cycle\.interval_s"):
        CycleConfig(interval_s=value)


def test_a_file_that_can_not_be_read_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        load_config(tmp_path)
    locked = tmp_path / "locked.toml"
    locked.write_text("seed = 1")
    locked.chmod(0)
    if not os.access(locked, os.R_OK):  # root reads everything
        with pytest.raises(ConfigError, match="can't be read"):
            load_config(locked)


@pytest.mark.parametrize("content", [b"seed = '\xff'", b"seed = " + b"9" * 5000, b"seed = " + b"[" * 100_000])
def test_a_file_that_is_no_toml_is_a_config_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.toml").write_bytes(content)
    with pytest.raises(ConfigError, match="no TOML"):
        load_config(tmp_path / "bad.toml")


def test_settings_are_given_as_themselves_as_a_file_or_not_at_all(tmp_path: Path) -> None:
    own = Config(seed=3)
    assert settings_of(own) is own
    assert settings_of(None) == Config()
    assert settings_of({}) == Config()
    assert settings_of({"cycle": {"interval_s": 600}}).cycle.interval_s == 600.0
    with pytest.raises(ConfigError, match=r"did you mean cycle\.'interval_s'"):
        settings_of({"cycle": {"interval": 600}})
    (tmp_path / "sona.toml").write_text("seed = 4")
    assert settings_of(tmp_path / "sona.toml").seed == settings_of(str(tmp_path / "sona.toml")).seed == 4


@pytest.mark.parametrize("given", [[], 3, TrainConfig(), b"sona.toml", "a\x00b"])
def test_what_are_no_settings_is_a_config_error(given: Any) -> None:
    with pytest.raises(ConfigError):
        settings_of(given)
