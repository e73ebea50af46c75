"""The CPU is left as it is; a GPU has to be there, and is made to repeat itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from streamer.errors import ConfigError
from train.devices import device_name, repeatable, require_device


def flags() -> tuple[bool, ...]:
    memory: Any = torch.utils.deterministic
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        memory.fill_uninitialized_memory,
        cudnn.deterministic,
        cudnn.allow_tf32,
    )


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    require_device("cpu")
    with pytest.raises(ConfigError, match="--device cuda: found no GPU"):
        require_device("cuda")


def test_a_gpu_repeats_itself_and_all_is_as_before_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = flags()
    with repeatable("cpu"):
        assert flags() == before
    with pytest.raises(KeyError), repeatable("cuda"):
        assert flags() == (True, True, False, True, False)
        raise KeyError
    assert flags() == before


def test_a_gpu_is_named_with_its_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A")
    assert device_name("cpu") == "CPU"
    assert device_name("cuda") == f"NVIDIA A (torch {torch.__version__})"
