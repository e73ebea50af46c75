"""How a learning rate rises and falls again."""

from __future__ import annotations

import torch


def one_cycle(
    optimizer: torch.optim.Optimizer, learning_rate: float, num_steps: int, rise: float = 0.3
) -> torch.optim.lr_scheduler.LRScheduler:
    """One cycle (Smith and Topin 2019) over so many steps, a share ``rise`` of them upwards.

    Where that is a single step torch divides by its length of none: then the cycle is laid out
    over one step more, which is never taken.
    """
    total_steps = num_steps + 1 if rise * num_steps == 1.0 else num_steps
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=total_steps, pct_start=rise
    )
