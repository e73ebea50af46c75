"""Self-attention [15]: a small transformer over steps of a tenth of a second.

Source: Tarantino, Garner, Lazaridis, "Self-attention for Speech Emotion Recognition", Interspeech
2019.

Known: the encoder of a transformer and its "global windowing" on frame features of a whole
utterance, no recurrence, no convolution. The paper at hand quotes 70.17 WA, 70.85 UA, reached
with soft labels from the annotators' votes.

Assumed here:

* input: windows of 2 s of MFCC, delta and delta-delta instead of utterances of hand-made
  descriptors;
* "global windowing": the features of 10 frames (0.1 s) side by side are one step, projected to
  64;
* sinusoidal positions; two layers of 4 heads, 128 hidden units, ReLU, normalisation after each
  part, dropout 0.1, as the first transformer has them;
* the steps' average is the embedding; one linear layer; cross-entropy on hard labels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from train.baselines.parts import Standardize, even_weights
from train.can import CanOutput

_FRAMES_PER_STEP = 10
_WIDTH = 64


class SelfAttention(nn.Module):
    """(n, 3, num_rows, T) -> logits (n, num_labels), embedding (n, 64), even attention."""

    def __init__(self, mean: Tensor, deviation: Tensor, num_labels: int) -> None:
        super().__init__()
        self.standardize = Standardize(mean, deviation)
        self.project = nn.Linear(3 * mean.shape[1] * _FRAMES_PER_STEP, _WIDTH)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(_WIDTH, 4, 128, dropout=0.1, batch_first=True)
            for _ in range(2)
        )
        self.classifier = nn.Linear(_WIDTH, num_labels)

    def forward(self, x: Tensor) -> CanOutput:
        """Score windows of features as they come from the front end."""
        n, num_steps = x.shape[0], x.shape[3] // _FRAMES_PER_STEP
        frames = self.standardize(x)[..., : num_steps * _FRAMES_PER_STEP].permute(0, 3, 1, 2)
        steps = self.project(frames.reshape(n, num_steps, -1))
        steps = steps + _positions(num_steps).to(steps)
        for layer in self.layers:
            steps = layer(steps)
        embedding = steps.mean(dim=1)
        return CanOutput(self.classifier(embedding), embedding, even_weights(x))


def _positions(num_steps: int) -> Tensor:
    """Sines and cosines of falling frequency, (num_steps, _WIDTH)."""
    place = torch.arange(num_steps).float().unsqueeze(1)
    angle = place * torch.exp(torch.arange(0, _WIDTH, 2) * (-math.log(10000.0) / _WIDTH))
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)
