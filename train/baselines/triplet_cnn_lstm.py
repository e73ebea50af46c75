"""CNN-LSTM with the triplet framework [16]: one embedding, two losses.

Source: Liu, Wang, "A Speech Emotion Recognition Framework for Better Discrimination of
Confusions", Interspeech 2021.

Known from the paper at hand, which builds on it: a CNN-LSTM trained on triplets of segments so
that confused emotions are pushed apart; the choice of triplets matters; the figures quoted, 77.85
WA and 76.78 UA, are those without its data augmentation.

Assumed here:

* input: MFCC, delta and delta-delta of windows of 2 s;
* three convolutions of 32, 64 and 64 filters of (3, 3), batch normalisation, ReLU, a maximum over
  2 x 2 each; an LSTM of 64 cells a direction, its output averaged over time; an embedding of 64,
  scaled to length 1 for the triplets;
* triplets and cross-entropy at once, 0.5 each, instead of one after the other; margin 0.2, and
  every triplet in the batch whose hinge is open (``semi_hard_or_hard``);
* no augmentation, as in the paper's Table 5.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from train.baselines.parts import Standardize, convolution, even_weights
from train.can import CanOutput

_CELLS = 64


class TripletCnnLstm(nn.Module):
    """(n, 3, num_rows, T) -> logits (n, num_labels), embedding (n, 64) of length 1."""

    def __init__(self, mean: Tensor, deviation: Tensor, num_labels: int) -> None:
        super().__init__()
        self.standardize = Standardize(mean, deviation)
        self.convolutions = nn.Sequential(
            convolution(3, 32, (3, 3)),
            nn.MaxPool2d(2),
            convolution(32, 64, (3, 3)),
            nn.MaxPool2d(2),
            convolution(64, 64, (3, 3)),
            nn.MaxPool2d(2),
        )
        self.blstm = nn.LSTM(
            64 * (mean.shape[1] // 8), _CELLS, bidirectional=True, batch_first=True
        )
        self.embed = nn.Linear(2 * _CELLS, 64)
        self.classifier = nn.Linear(64, num_labels)

    def forward(self, x: Tensor) -> CanOutput:
        """Score windows of features as they come from the front end."""
        maps = self.convolutions(self.standardize(x))  # (n, 64, h, t)
        sequence = self.blstm(maps.flatten(1, 2).transpose(1, 2))[0]
        embedding = self.embed(sequence.mean(dim=1))
        logits = self.classifier(functional.relu(embedding))
        return CanOutput(logits, functional.normalize(embedding, dim=1), even_weights(x))
