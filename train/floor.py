"""A floor under a window's spectrum: what is far below its loudest moment sounds like nothing.

How deep a pause is, or a valley between formants, tells of the room, the microphone and the line,
and of a voice's feeling little. Members of a committee that hear it and members that do not err in
other ways.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from train.can_config import CanConfig
from train.contours import cepstral_basis, regression_deltas


class SpectralFloor(nn.Module):
    """Windows (n, 3, num_rows, T) as they come from the front end -> the same, over a floor.

    The floor is ``floor_db`` under the mean power of the mel bands in the window's loudest frame,
    and adds to each band's power, as a noise would. Deltas are those of the new cepstra within the
    window; rows below the cepstra stay as they are.
    """

    basis: Tensor

    def __init__(self, floor_db: float, num_ceps: int) -> None:
        super().__init__()
        self.num_ceps = num_ceps
        basis = cepstral_basis(num_ceps)
        # orthonormal: its transpose turns cepstra back into bands. float16's numbers, as which the
        # model file keeps them
        self.register_buffer("basis", basis.half().float(), persistent=False)
        self.below = floor_db * math.log(10.0) / 10.0 + math.log(basis.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """Return windows in which nothing is quieter than the floor."""
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 holds a cepstrum too coarsely
            bands = self.basis.T @ x[:, 0, : self.num_ceps]
            top = bands.amax(1, keepdim=True)
            level = top + (bands - top).exp().sum(1, keepdim=True).log()
            floor = level.amax(2, keepdim=True) - self.below
            # log(e^bands + e^floor), of exp and log alone, which ONNX Runtime does many at once
            height = bands - floor
            over = floor + height.clamp(min=0.0) + (1.0 + (-height.abs()).exp()).log()
            ceps = self.basis @ over
            delta = regression_deltas(ceps)
            floored = torch.stack([ceps, delta, regression_deltas(delta)], dim=1)
            return torch.cat([floored, x[:, :, self.num_ceps :]], dim=2)


def floor_of(config: CanConfig) -> nn.Module:
    """Return a network's own floor, the first of its configuration, or what adds none."""
    floor_db = config.floors_db[0]
    return SpectralFloor(floor_db, config.num_ceps) if floor_db else nn.Identity()
