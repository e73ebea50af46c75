"""The array types that travel from the door to the event."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Samples: TypeAlias = NDArray[np.float32]
"""Mono audio, shape (num_samples,), full scale 1.0."""

Frames: TypeAlias = NDArray[np.float32]
"""Feature vectors, shape (num_frames, 3, num_rows): MFCC, delta, delta-delta."""

WindowFeatures: TypeAlias = NDArray[np.float32]
"""One model input, shape (3, num_rows, num_frames)."""

Scores: TypeAlias = NDArray[np.float64]
"""One number a label, shape (num_labels,); probabilities unless a name says logits."""
