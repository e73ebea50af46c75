"""CNN attention pooling [18]: bottom-up and top-down maps instead of an average.

Source: Li, Song, McLoughlin, Guo, Dai, "An Attention Pooling based Representation Learning Method
for Speech Emotion Recognition", Interspeech 2018.

Known: a CNN on spectrograms of 2 s; two groups of filters, one tall and one wide, side by side,
then further convolutions; "attention pooling" with a class-agnostic bottom-up map and
class-specific top-down maps in place of an average. The paper at hand quotes 71.75 WA, 68.06 UA.

Assumed here:

* input: MFCC, delta and delta-delta instead of a spectrogram;
* the convolutions of the code behind [10], which names [18] as its origin: see
  ``TwoShapeConvolutions``;
* the pooling is the rank-1 second-order one of Girdhar and Ramanan (2017), from which the two
  names come: with X (positions, channels), a the bottom-up and b_k a top-down weight vector, the
  logit of label k is (X a)' (X b_k). Here X a goes through a softmax over positions, as
  "attention" has it;
* the embedding is X averaged by the bottom-up map; a dropout of 0.3 on X b_k's input;
* trained with cross-entropy alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from train.baselines.parts import Standardize, TwoShapeConvolutions, over_frames
from train.can import CanOutput


class AttentionPooling(nn.Module):
    """(n, 3, num_rows, T) -> logits (n, num_labels), embedding (n, 80), attention (n, T)."""

    def __init__(self, mean: Tensor, deviation: Tensor, num_labels: int) -> None:
        super().__init__()
        self.standardize = Standardize(mean, deviation)
        self.convolutions = TwoShapeConvolutions()
        # No bias: softmax over positions would not see it.
        self.bottom_up = nn.Conv2d(TwoShapeConvolutions.num_channels, 1, 1, bias=False)
        self.top_down = nn.Sequential(
            nn.Dropout(0.3), nn.Linear(TwoShapeConvolutions.num_channels, num_labels)
        )

    def forward(self, x: Tensor) -> CanOutput:
        """Score windows of features as they come from the front end."""
        maps = self.convolutions(self.standardize(x))  # (n, c, h, t)
        n, _, height, num_steps = maps.shape
        weights = torch.softmax(self.bottom_up(maps).flatten(1), dim=1)  # (n, h * t)
        # (X a)' (X b) = (a' X' X) b: averaging the positions first is the same and less work.
        embedding = (maps.flatten(2) @ weights.unsqueeze(2)).squeeze(2)
        by_step = weights.reshape(n, height, num_steps).sum(dim=1)
        return CanOutput(self.top_down(embedding), embedding, over_frames(by_step, x.shape[3]))
