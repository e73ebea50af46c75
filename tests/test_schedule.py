"""One cycle: up, and down again, over as many steps as there are, be they few."""

from __future__ import annotations

import pytest
import torch

from train.schedule import one_cycle


def rates(num_steps: int, rise: float) -> list[float]:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], 1.0)
    schedule = one_cycle(optimizer, 1e-3, num_steps, rise)
    found = []
    for _ in range(num_steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("rise", [0.2, 0.25, 0.3])
@pytest.mark.parametrize("num_steps", [2, 3, 4, 5, 6, 100])
def test_any_number_of_steps_can_be_taken(num_steps: int, rise: float) -> None:
    found = rates(num_steps, rise)
    assert len(found) == num_steps and max(found) <= 1e-3 and min(found) > 0.0
    if num_steps == 100:
        peak = found.index(max(found))
        assert abs(peak - 100 * rise) <= 1 and max(found) == pytest.approx(1e-3)
        assert found[0] == pytest.approx(4e-5) and found[-1] < 1e-6
