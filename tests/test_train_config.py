from __future__ import annotations

import json
from pathlib import Path

import pytest

from streamer.errors import ConfigError
from train.config import CONFIGS, FitConfig, config_from_dict, config_to_dict, load_config


def test_paper_is_the_paper() -> None:
    config = load_config("paper")
    assert (config.loss.alpha, config.loss.margin, config.loss.mining) == (0.3, 0.2, "eq11")
    assert (config.batch_size, config.weight_decay) == (32, 1e-6)
    assert config.network == FitConfig(name="paper").network
    assert load_config("paper-1e-4").learning_rate == 1e-4


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_configuration_loads_and_trains_at_most_60_epochs(path: Path) -> None:
    config = load_config(path.stem)
    assert config.name == path.stem
    assert config.epochs <= 60


def test_a_configuration_survives_json() -> None:
    config = load_config("paper", ["network.conv_channels=[4, 8, 8, 16]"])
    plain = json.loads(json.dumps(config_to_dict(config)))
    assert config_from_dict(plain, "json") == config


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("epochs = 3\n[window]\nnum_frames = 100\n", encoding="utf-8")
    config = load_config(str(path))
    assert (config.name, config.epochs, config.window.num_frames) == ("mine", 3, 100)


def test_changes() -> None:
    config = load_config(
        "paper",
        [
            "epochs=3",
            "network.num_heads=2",
            "network.spatial_kernel=[1, 7]",
            "features.mel_low_hz=60",
            "precision=float32",
            'schedule = "constant"',
            "normalize=false",
        ],
    )
    assert (config.epochs, config.network.num_heads) == (3, 2)
    assert config.network.spatial_kernel == (1, 7)
    assert config.features.mel_low_hz == 60.0
    assert (config.precision, config.schedule, config.normalize) == ("float32", "constant", False)
    assert config.learning_rate == load_config("paper").learning_rate


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("epochs", "expected key=value"),
        ("epoch=3", "unknown key 'epoch'"),
        ("network.heads=3", "unknown key network.'heads'"),
        ("epochs=many", "int"),
        ("epochs=2.5", "int"),
        ("precision=float8", "float8"),
        ("schedule=cosine", "cosine"),
        ("network.conv_channels=3", "array"),
        ("loss.alpha=2", "expected 0 to 1"),
        ("statistics.anywhere=1.5", "expected a share, 0 to 1"),
        ("statistics.anywhere=-0.1", "expected a share, 0 to 1"),
        ("augment.warp=0.7", "less than 0.5"),
        ("window.first_frames=500", "expected 1 to 200"),
    ],
)
def test_a_wrong_change_is_refused(change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("paper", [change])


@pytest.mark.parametrize("change", ["network=3", "epochs.more=3"])
def test_a_table_for_a_value_and_a_value_for_a_table_are_refused(change: str) -> None:
    with pytest.raises(ConfigError):
        load_config("paper", [change])


def test_a_file_that_is_none_or_no_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a path or one of .*paper"):
        load_config("papre")
    with pytest.raises(ConfigError, match="expected a path or one of"):
        load_config(str(tmp_path / "none.toml"))
    broken = tmp_path / "broken.toml"
    broken.write_text("epochs = ", encoding="utf-8")
    with pytest.raises(ConfigError, match="not TOML"):
        load_config(str(broken))
