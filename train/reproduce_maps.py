"""What Fig. 7 and 8 look at, each with a number: feature maps under attention, and embeddings."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.can import CascadedAttentionNetwork
from train.can_config import NUM_FEATURES
from train.corpora import LABELS
from train.reproduce_fit import Segments, Training, load_network, segments_of_split

_BATCH = 64
_NUM_NEIGHBOURS = 5


def can_project() -> bool:
    """Tell whether Fig. 8's projection and numbers can be computed: they are scikit-learn's."""
    return importlib.util.find_spec("sklearn") is not None


@torch.inference_mode()
def attended_map(network: torch.nn.Module, windows: Tensor) -> NDArray[np.float32]:
    """F2 of CAN, its size: what the two attentions leave of F0, (n, channels, num_frames)."""
    assert isinstance(network, CascadedAttentionNetwork)
    x = (windows.float() - network.mean) / network.deviation
    if len(network.config.kept_features) < NUM_FEATURES:
        x = x.index_select(1, network.kept)
    f0 = network.conv(x)
    channel, spatial = network.attention.channel, network.attention.spatial
    f1 = f0 if channel is None else f0 * channel(f0)
    f2 = f1 if spatial is None else f1 * spatial(f1)
    size: NDArray[np.float32] = f2.abs().transpose(1, 2).numpy()
    return size


def quiet_share(maps: NDArray[np.float32], windows: Tensor) -> float:
    """How large a map is in the quietest quarter of each window's frames, against the loudest.

    Loudness is c0 of the MFCCs. 1: the map takes no notice; 0: nothing is left of quiet frames.
    """
    loudness = windows[:, 0, 0].float().numpy()
    size = maps.mean(axis=1)
    order = np.argsort(loudness, axis=1)
    quarter = max(1, order.shape[1] // 4)
    quiet = np.take_along_axis(size, order[:, :quarter], axis=1).mean(axis=1)
    loud = np.take_along_axis(size, order[:, -quarter:], axis=1).mean(axis=1)
    return float(np.mean(quiet / np.maximum(loud, 1e-9)))


def three_samples(segments: Segments) -> list[int]:
    """First segments of a triplet: an anchor, another of its label, one of another label.

    Of utterances with more segments than one, if there are some: these have no padding.
    """
    firsts, counts = np.unique(segments.owners, return_index=True, return_counts=True)[1:]
    firsts = firsts[counts > 1] if (counts > 1).sum() >= 8 else firsts
    labels = segments.labels.numpy()[firsts]
    for label in range(len(LABELS)):
        same, other = firsts[labels == label], firsts[labels != label]
        if len(same) >= 2 and len(other):
            return [int(same[0]), int(same[1]), int(other[len(other) // 2])]
    return [int(firsts[i % len(firsts)]) for i in range(3)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedded:
    """Test utterances of one training: embeddings projected to (n, 2), labels, and two numbers.

    ``silhouette`` (-1 to 1) of the labels in the embedding space; ``neighbours``: the share of test
    utterances whose label is that of most of their five nearest training utterances.
    """

    points: NDArray[np.float32]
    labels: NDArray[np.int64]
    silhouette: float
    neighbours: float


def embed(training: Training, *, project: bool) -> Embedded:
    """Embed a finished training's test utterances; ``project`` draws them by t-SNE, seed 0."""
    from sklearn.manifold import TSNE
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import KNeighborsClassifier

    network = load_network(training)
    train, _, test = segments_of_split(training)
    (known, known_labels), (new, labels) = (_embeddings(network, part) for part in (train, test))
    machine = KNeighborsClassifier(min(_NUM_NEIGHBOURS, len(known))).fit(known, known_labels)
    points = np.zeros((len(new), 2), np.float32)
    if project:
        perplexity = min(30.0, (len(new) - 1) / 3)
        options: dict[str, Any] = {"perplexity": perplexity, "init": "pca", "random_state": 0}
        points = TSNE(n_components=2, **options).fit_transform(new).astype(np.float32)
    return Embedded(
        points=points,
        labels=labels,
        silhouette=float(silhouette_score(new, labels)) if len(set(labels)) > 1 else float("nan"),
        neighbours=float(machine.score(new, labels)),
    )


@torch.inference_mode()
def _embeddings(
    network: torch.nn.Module, segments: Segments
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Mean embedding of each utterance's segments, and its label."""
    parts = [network(part.float())[1] for part in torch.split(segments.windows, _BATCH)]
    rows = torch.cat(parts).double().numpy()
    totals = np.zeros((segments.num_utterances, rows.shape[1]))
    np.add.at(totals, segments.owners, rows)
    firsts, counts = np.unique(segments.owners, return_index=True, return_counts=True)[1:]
    return totals / counts[:, None], segments.labels.numpy()[firsts]
