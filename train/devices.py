"""Where trainings run: on the CPU, or on a GPU that is made to give the same numbers again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from streamer.errors import ConfigError

DEVICES = ("cpu", "cuda")
CPU = "CPU"
"""The name of the CPU, whichever; that of a GPU is its maker's, with the torch that ran on it."""


def require_device(device: str) -> None:
    """Refuse a GPU where there is none.

    Raises:
        ConfigError: no GPU that this torch can use.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: found no GPU that this torch can use, expected one")


def device_name(device: str) -> str:
    """Name what a result was computed on, such as ``NVIDIA H100 80GB HBM3 (torch 2.11.0)``."""
    if device == "cpu":
        return CPU
    return f"{torch.cuda.get_device_name()} (torch {torch.__version__})"


@contextmanager
def repeatable(device: str) -> Iterator[None]:
    """Let a GPU sum in one order, so that equal trainings end equal, and keep float32 whole.

    Only a warning comes of an operation for which torch has no fixed order. A CPU is left as it is.
    """
    if device == "cpu":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it begins
    memory: Any = torch.utils.deterministic  # the types know nothing of its one setting
    is_strict = torch.are_deterministic_algorithms_enabled()
    is_warning = torch.is_deterministic_algorithms_warn_only_enabled()
    fills = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False  # a kernel for each new tensor
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.use_deterministic_algorithms(is_strict, warn_only=is_warning)
        memory.fill_uninitialized_memory = fills
