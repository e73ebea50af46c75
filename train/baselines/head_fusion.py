"""ACNN with head fusion [10]: self-attention over the map, its heads averaged.

Source: Xu, Zhang, Khan, "Improve Accuracy of Speech Emotion Recognition with Attention Head
Fusion", CCWC 2020.

Known: MFCCs of segments of 2 s (a shift of 1 s in training, an overlap of 1.6 s in the test); the
convolutions of [18]; self-attention over all positions of the map, query, key and value by 1 x 1
convolutions, 4 heads of 64; the heads are averaged ("fusion"), then the positions; one linear
layer. The paper at hand quotes 76.18 WA, 76.36 UA, and takes its own head fusion from here.

Assumed here:

* input: MFCC, delta and delta-delta; the original reads MFCCs alone, 26 of them;
* no scaling of the products by 1 / sqrt(64), as in the paper's Eq. 3;
* the map has a quarter of the frames and of the bands, and is normalised before the attention;
* utterances of 2 s or less are padded, where the original drops them;
* trained with cross-entropy alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from train.baselines.parts import Standardize, TwoShapeConvolutions, over_frames
from train.can import CanOutput

_NUM_HEADS = 4
_HEAD_WIDTH = 64


class HeadFusionCnn(nn.Module):
    """(n, 3, num_rows, T) -> logits (n, num_labels), embedding (n, 64), attention (n, T)."""

    def __init__(self, mean: Tensor, deviation: Tensor, num_labels: int) -> None:
        super().__init__()
        self.standardize = Standardize(mean, deviation)
        self.convolutions = TwoShapeConvolutions()
        width = _NUM_HEADS * _HEAD_WIDTH
        # A key's bias adds the same to all of a query's products, which softmax does not see.
        self.query = nn.Linear(TwoShapeConvolutions.num_channels, width)
        self.key = nn.Linear(TwoShapeConvolutions.num_channels, width, bias=False)
        self.value = nn.Linear(TwoShapeConvolutions.num_channels, width)
        self.classifier = nn.Linear(_HEAD_WIDTH, num_labels)

    def forward(self, x: Tensor) -> CanOutput:
        """Score windows of features as they come from the front end."""
        maps = self.convolutions(self.standardize(x))  # (n, c, h, t)
        n, _, height, num_steps = maps.shape
        positions = maps.flatten(2).transpose(1, 2)  # (n, h * t, c)
        query, key, value = (_heads(part(positions)) for part in self._parts())
        weights = torch.softmax(query @ key.transpose(2, 3), dim=3)  # (n, heads, h * t, h * t)
        # Heads and positions are both averaged: the queries' average first is the same.
        mean = weights.mean(dim=2, keepdim=True)
        embedding = (mean @ value).mean(dim=1).squeeze(1)
        by_step = mean.mean(dim=(1, 2)).reshape(n, height, num_steps).sum(dim=1)
        return CanOutput(self.classifier(embedding), embedding, over_frames(by_step, x.shape[3]))

    def _parts(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        return self.query, self.key, self.value


def _heads(x: Tensor) -> Tensor:
    """(n, positions, heads * width) -> (n, heads, positions, width)."""
    split = x.reshape(x.shape[0], x.shape[1], _NUM_HEADS, _HEAD_WIDTH)
    return split.transpose(1, 2)
