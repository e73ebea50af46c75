"""CNN-LSTM [17]: convolutions with large kernels, then a bidirectional LSTM.

Source: Satt, Rozenberg, Hoory, "Efficient Emotion Recognition from Speech Using Deep Learning on
Spectrograms", Interspeech 2017.

Known: log spectrograms of segments of at most 3 s, convolutions with large kernels, pooling, then
a bidirectional LSTM and a softmax. The paper at hand quotes 67.30 WA, 62.00 UA.

Assumed here:

* input: windows of 2 s of MFCC, delta and delta-delta instead of spectrograms of 3 s;
* three convolutions of 16, 24, 32 filters of (12, 16), (8, 12), (5, 7), read as (bands, frames);
* each followed by batch normalisation, ReLU and a maximum over 2 x 2 (the original: before batch
  normalisation was usual; it has it here because the others have it);
* 64 cells a direction; the two last states are the embedding; a dropout of 0.3 before the
  softmax;
* trained with cross-entropy alone; the original's cleaning of noise by harmonics is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from train.baselines.parts import Standardize, convolution, even_weights
from train.can import CanOutput

_CELLS = 64


class CnnLstm(nn.Module):
    """(n, 3, num_rows, T) -> logits (n, num_labels), embedding (n, 128), even attention."""

    def __init__(self, mean: Tensor, deviation: Tensor, num_labels: int) -> None:
        super().__init__()
        self.standardize = Standardize(mean, deviation)
        self.convolutions = nn.Sequential(
            convolution(3, 16, (12, 16)),
            nn.MaxPool2d(2),
            convolution(16, 24, (8, 12)),
            nn.MaxPool2d(2),
            convolution(24, 32, (5, 7)),
            nn.MaxPool2d(2),
        )
        self.blstm = nn.LSTM(
            32 * (mean.shape[1] // 8), _CELLS, bidirectional=True, batch_first=True
        )
        self.classifier = nn.Sequential(nn.Dropout(0.3), nn.Linear(2 * _CELLS, num_labels))

    def forward(self, x: Tensor) -> CanOutput:
        """Score windows of features as they come from the front end."""
        maps = self.convolutions(self.standardize(x))  # (n, 32, h, t)
        _, (last, _) = self.blstm(maps.flatten(1, 2).transpose(1, 2))
        embedding = torch.cat([last[0], last[1]], dim=1)
        return CanOutput(self.classifier(embedding), embedding, even_weights(x))
