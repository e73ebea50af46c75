"""3-D ACRNN [5]: six convolutions, a bidirectional LSTM and attention over time.

Source: Chen, He, Yang, Zhang, "3-D Convolutional Recurrent Neural Networks With Attention Model
for Speech Emotion Recognition", IEEE Signal Processing Letters 25(10), 2018.

Known: log mel spectrograms with deltas and delta-deltas as three channels; six convolutions of
(5, 3) over (frames, bands), 128 filters in the first and 256 in the others, a maximum over 2 x 4
after the first; a linear layer of 768; a BLSTM of 128 cells a direction; attention, softmax of W
h over time; a fully connected layer of 64; leaky ReLU and batch normalisation. The paper at hand
quotes 64.74 UA.

Assumed here:

* input: windows of 2 s of 26 MFCCs, with deltas and delta-deltas, instead of 40 log mel bands of
  3 s;
* ``width`` 1/4: 32 and 64 filters, a linear layer of 192. At full width a step takes eleven times
  as long, which no CPU has for a grid; ``acrnn-full`` is the letter;
* the slope of the leaky ReLU is 0.01; a dropout of 0.3 before the softmax; biases where no batch
  normalisation follows;
* trained with cross-entropy alone, classes as frequent as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from train.baselines.parts import Standardize, over_frames
from train.can import CanOutput

_CELLS = 128
_NUM_INNER = 5


class Acrnn(nn.Module):
    """(n, 3, num_rows, T) -> logits (n, num_labels), embedding (n, 64), attention (n, T)."""

    def __init__(
        self, mean: Tensor, deviation: Tensor, num_labels: int, *, width: float = 0.25
    ) -> None:
        super().__init__()
        self.standardize = Standardize(mean, deviation)
        first, inner, linear = (round(width * channels) for channels in (128, 256, 768))
        layers = [*_convolution(3, first), nn.MaxPool2d((4, 2))]
        for channels in [first] + [inner] * (_NUM_INNER - 1):
            layers += _convolution(channels, inner)
        self.convolutions = nn.Sequential(*layers)
        self.linear = nn.Sequential(
            nn.Linear(inner * (mean.shape[1] // 4), linear), nn.LeakyReLU(0.01)
        )
        self.blstm = nn.LSTM(linear, _CELLS, bidirectional=True, batch_first=True)
        self.attention = nn.Linear(2 * _CELLS, 1, bias=False)
        self.connected = nn.Sequential(nn.Linear(2 * _CELLS, 64), nn.LeakyReLU(0.01))
        self.classifier = nn.Sequential(nn.Dropout(0.3), nn.Linear(64, num_labels))

    def forward(self, x: Tensor) -> CanOutput:
        """Score windows of features as they come from the front end."""
        maps = self.convolutions(self.standardize(x))  # (n, inner, h, t)
        sequence = self.blstm(self.linear(maps.flatten(1, 2).transpose(1, 2)))[0]
        weights = torch.softmax(self.attention(sequence), dim=1)  # (n, t, 1)
        embedding = self.connected((weights * sequence).sum(dim=1))
        attention = over_frames(weights.squeeze(2), x.shape[3])
        return CanOutput(self.classifier(embedding), embedding, attention)


def _convolution(channels_in: int, channels_out: int) -> list[nn.Module]:
    """(5, 3) over (frames, bands): here bands come first."""
    return [
        nn.Conv2d(channels_in, channels_out, (3, 5), padding="same", bias=False),
        nn.BatchNorm2d(channels_out),
        nn.LeakyReLU(0.01, inplace=True),
    ]
