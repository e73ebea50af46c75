"""Contours of a window's spectrum: what its bands do in time, and where its energy lies.

All of it comes from the cepstra that the front end computes, turned back into a smooth spectrum:
nothing is heard twice. Centroid, spread, entropy, flux and roll-off are the spectral descriptors of
Peeters, "A large set of audio features for sound description" (IRCAM, 2004), section 6.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from streamer.features import FeatureConfig

_EVERY = 2
"""Of the front end's mel bands every second one: 26 coefficients know no finer a spectrum."""
_FEW = 2
"""Of those every second one, where many statistics of each are taken."""
_ROLL_OFFS = (0.5, 0.85)
_MIDDLE, _HIGH = 6, 12
"""First bands of the middle, some 900 to 2,300 Hz, and of what is above it."""
_NUM_SHAPES = 10 + len(_ROLL_OFFS)
_LEAST_SHARE = 1e-30
"""Of the power: where bands have less, their logarithm is this one's."""
_LEVEL = 6
"""Place among the shapes of the bands' energy together, its natural logarithm."""


class Contours(nn.Module):
    """Cepstra with deltas (n, 3, num_ceps, T) -> contours with deltas (n, 3, num_bands + 12, T)."""

    basis: Tensor

    def __init__(self, num_ceps: int) -> None:
        super().__init__()
        basis = cepstral_basis(num_ceps)[:, _EVERY // 2 :: _EVERY]
        self.register_buffer("basis", basis, persistent=False)
        self.num_bands = basis.shape[1]
        self.num_few = len(range(0, self.num_bands, _FEW)) + _NUM_SHAPES
        self.level_row = self.num_bands + _LEVEL

    def forward(self, x: Tensor) -> Tensor:
        """Return the bands' log energies, then the spectrum's shape."""
        bands = self.basis.T @ x
        shape = self._shape(bands[:, 0], bands[:, 1], x[:, 1])
        delta = regression_deltas(shape)
        shapes = torch.stack([shape, delta, regression_deltas(delta)], dim=1)
        return torch.cat([bands, shapes], dim=2)

    def few(self, contours: Tensor) -> Tensor:
        """Leave out every second band, which the next ones tell nearly as well."""
        bands, shapes = contours[:, :, : self.num_bands : _FEW], contours[:, :, self.num_bands :]
        return torch.cat([bands, shapes], dim=2)

    def _shape(self, bands: Tensor, rises: Tensor, delta_ceps: Tensor) -> Tensor:
        """(n, num_bands, T) twice and (n, num_ceps, T) -> (n, 12, T)."""
        top = bands.amax(1, keepdim=True)
        power = (bands - top).exp()  # by hand: the parts' logarithms share it
        total = power.sum(1, keepdim=True)
        share = power / total
        place = torch.arange(self.num_bands, dtype=bands.dtype, device=bands.device)[:, None]
        centroid = (share * place).sum(1, keepdim=True)
        variance = (share * place.square()).sum(1, keepdim=True) - centroid.square()
        step = bands[:, :, 1:] - bands[:, :, :-1]
        flux = (step.square().mean(1, keepdim=True) + 1e-6).sqrt()
        ordered = torch.topk(bands.transpose(1, 2), self.num_bands // 2 + 1, dim=2).values
        below = torch.cumsum(share, dim=1)
        parts = [
            centroid,
            variance.clamp(min=1e-6).sqrt(),
            -(share * (share + 1e-9).log()).sum(1, keepdim=True),
            torch.cat([flux[:, :, :1], flux], dim=2),
            (delta_ceps.square().sum(1, keepdim=True) + 1e-6).sqrt(),
            rises.clamp(min=0.0).sum(1, keepdim=True),
            top + total.log(),
            (share[:, _MIDDLE:_HIGH].sum(1, keepdim=True) + _LEAST_SHARE).log(),
            (share[:, _HIGH:].sum(1, keepdim=True) + _LEAST_SHARE).log(),
            top - ordered[:, :, -1:].transpose(1, 2),
            *((below < part).to(bands.dtype).sum(1, keepdim=True) for part in _ROLL_OFFS),
        ]
        return torch.cat(parts, dim=1)


def cepstral_basis(num_ceps: int) -> Tensor:
    """Return an orthonormal DCT-II's first rows, (num_ceps, num_mel): log energies to cepstra."""
    num_mel = max(FeatureConfig().num_mel, num_ceps)
    place = torch.arange(0.5, num_mel)
    order = torch.arange(num_ceps, dtype=torch.float32)[:, None]
    scale = torch.full((num_ceps, 1), math.sqrt(2.0 / num_mel))
    scale[0] = math.sqrt(1.0 / num_mel)
    return scale * torch.cos(torch.pi * order * place / num_mel)


def regression_deltas(rows: Tensor) -> Tensor:
    """Regression deltas over two frames either side, as the front end's; (n, rows, T)."""
    first, last = rows[:, :, :1], rows[:, :, -1:]
    padded = torch.cat([first, first, rows, last, last], dim=2)
    near = padded[:, :, 3:-1] - padded[:, :, 1:-3]
    far = padded[:, :, 4:] - padded[:, :, :-4]
    return (near + 2.0 * far) / 10.0
