"""Contours of a window's spectrum: what its bands do in time, and where its energy lies.

All of it comes from the cepstra that the front end computes, turned back into a smooth spectrum:
nothing is heard twice. Centroid, spread, entropy, flux and roll-off are the spectral descriptors of
Peeters, "A large set of audio features for sound description" (IRCAM, 2004), section 6.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamer.features import FeatureConfig

_EVERY = 2
"""Of the front end's mel bands every second one: 26 coefficients know no finer a spectrum."""
_ROLL_OFFS = (0.5, 0.85)
_MIDDLE, _HIGH = 6, 12
"""First bands of the middle, some 900 to 2,300 Hz, and of what is above it."""
_NUM_SHAPES = 10 + len(_ROLL_OFFS)
_LEVEL = 6
"""Place among the shapes of the bands' energy together, its natural logarithm."""


class Contours(nn.Module):
    """Cepstra with deltas (n, 3, num_ceps, T) -> contours with deltas (n, 3, num_contours, T)."""

    basis: Tensor

    def __init__(self, num_ceps: int) -> None:
        super().__init__()
        num_mel = max(FeatureConfig().num_mel, num_ceps)
        place = torch.arange(0.5 + _EVERY // 2, num_mel, _EVERY)
        order = torch.arange(num_ceps, dtype=torch.float32)[:, None]
        basis = (2.0 / num_mel) ** 0.5 * torch.cos(torch.pi * order * place / num_mel)
        basis[0] /= 2.0**0.5  # the inverse of an orthonormal DCT-II
        self.register_buffer("basis", basis, persistent=False)
        self.num_bands = len(place)
        self.num_contours = self.num_bands + _NUM_SHAPES
        self.level_row = self.num_bands + _LEVEL

    def forward(self, x: Tensor) -> Tensor:
        """Return the bands' log energies, then the spectrum's shape."""
        bands = self.basis.T @ x
        shape = self._shape(bands[:, 0], bands[:, 1], x[:, 1])
        delta = _delta(shape)
        shapes = torch.stack([shape, delta, _delta(delta)], dim=1)
        return torch.cat([bands, shapes], dim=2)

    def _shape(self, bands: Tensor, rises: Tensor, delta_ceps: Tensor) -> Tensor:
        """(n, num_bands, T) twice and (n, num_ceps, T) -> (n, 12, T)."""
        share = torch.softmax(bands, dim=1)
        place = torch.arange(self.num_bands, dtype=bands.dtype, device=bands.device)[:, None]
        centroid = (share * place).sum(1)
        variance = (share * place.square()).sum(1) - centroid.square()
        level = torch.logsumexp(bands, dim=1)
        step = bands[:, :, 1:] - bands[:, :, :-1]
        flux = (step.square().mean(1) + 1e-6).sqrt()
        ordered = torch.topk(bands, self.num_bands // 2 + 1, dim=1).values
        below = torch.cumsum(share, dim=1)
        return torch.stack(
            [
                centroid,
                variance.clamp(min=1e-6).sqrt(),
                -(share * (share + 1e-9).log()).sum(1),
                torch.cat([flux[:, :1], flux], dim=1),
                (delta_ceps.square().sum(1) + 1e-6).sqrt(),
                rises.clamp(min=0.0).sum(1),
                level,
                torch.logsumexp(bands[:, _MIDDLE:_HIGH], dim=1) - level,
                torch.logsumexp(bands[:, _HIGH:], dim=1) - level,
                ordered[:, 0] - ordered[:, -1],
                *((below < part).to(bands.dtype).sum(1) for part in _ROLL_OFFS),
            ],
            dim=1,
        )


def _delta(rows: Tensor) -> Tensor:
    """Regression deltas over two frames either side, as the front end's; (n, rows, T)."""
    first, last = rows[:, :, :1], rows[:, :, -1:]
    padded = torch.cat([first, first, rows, last, last], dim=2)
    near = padded[:, :, 3:-1] - padded[:, :, 1:-3]
    far = padded[:, :, 4:] - padded[:, :, :-4]
    return (near + 2.0 * far) / 10.0
