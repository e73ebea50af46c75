"""What several of Table 5's systems are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Standardize(nn.Module):
    """The training frames' mean and deviation, each (3, num_rows, 1), taken out of (n, 3, h, T)."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float().clone())
        self.register_buffer("deviation", deviation.float().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return features of mean 0 and deviation 1."""
        return (x - self.mean) / self.deviation


def convolution(channels_in: int, channels_out: int, kernel: tuple[int, int]) -> nn.Sequential:
    """A convolution that keeps the map's size, batch-normalised, with a ReLU."""
    height, width = kernel
    return nn.Sequential(
        nn.ZeroPad2d(((width - 1) // 2, width // 2, (height - 1) // 2, height // 2)),
        nn.Conv2d(channels_in, channels_out, kernel, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


class TwoShapeConvolutions(nn.Module):
    """The convolutions of [18], which [10] took over: (n, 3, h, T) -> (n, 80, h // 4, T // 4).

    Two groups of 8 filters, tall (10, 2) and wide (2, 8), side by side; then 32, 48, 64 and 80
    filters of (3, 3), the first two followed by a maximum over 2 x 2.
    """

    num_channels = 80

    def __init__(self) -> None:
        super().__init__()
        self.tall = nn.Conv2d(3, 8, (10, 2), padding=(4, 0), bias=False)
        self.wide = nn.Conv2d(3, 8, (2, 8), padding=(0, 3), bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.rest = nn.Sequential(
            convolution(16, 32, (3, 3)),
            nn.MaxPool2d(2),
            convolution(32, 48, (3, 3)),
            nn.MaxPool2d(2),
            convolution(48, 64, (3, 3)),
            convolution(64, self.num_channels, (3, 3)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve a batch of standardised features."""
        both = torch.cat([self.tall(x), self.wide(x)], dim=1)
        maps: Tensor = self.rest(functional.relu(self.norm(both)))
        return maps


def over_frames(weights: Tensor, num_frames: int) -> Tensor:
    """Spread weights of pooled steps, (n, t), over the frames: (n, num_frames), summing to 1."""
    spread = functional.interpolate(weights.float().unsqueeze(1), size=num_frames, mode="nearest")
    return functional.normalize(spread.squeeze(1), p=1.0, dim=1)


def even_weights(x: Tensor) -> Tensor:
    """The attention of a system that has none: 1 / T for each frame of (n, 3, h, T)."""
    n, num_frames = x.shape[0], x.shape[3]
    return torch.full((n, num_frames), 1.0 / num_frames, device=x.device)
