"""eGeMAPS and ComParE functionals of whole utterances under a linear SVM: the usual yardstick.

openSMILE is licensed for research only and is nobody's dependency here: where the ``opensmile``
package is not installed, nothing of this runs, and the report says so.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.errors import ConfigError
from train.corpora import LABELS, SAMPLE_RATE, Utterance, read_samples
from train.splits import Split

FEATURE_SETS = {"egemaps": "eGeMAPSv02", "compare": "ComParE_2016"}
_NEEDED = ("opensmile", "sklearn")
_C = 1e-3


def missing_packages() -> list[str]:
    """Names of the packages that are needed and not installed."""
    return [name for name in _NEEDED if importlib.util.find_spec(name) is None]


def extract_functionals(
    utterances: Sequence[Utterance],
    feature_set: str,
    cache: Path,
    advance: Callable[[], None] = lambda: None,
) -> NDArray[np.float32]:
    """Return one row an utterance, kept in ``cache``: 88 values (``egemaps``), 6373 (``compare``).

    Each utterance is kept by itself as soon as it is computed: an interruption costs nothing.

    Raises:
        ConfigError: an unknown feature set, or ``opensmile`` is not installed.
        CorpusError: audio that cannot be read.
    """
    if feature_set not in FEATURE_SETS:
        raise ConfigError(f"{feature_set!r}: expected one of {', '.join(FEATURE_SETS)}")
    smile = None
    rows = []
    for utterance in utterances:
        path = cache / feature_set / f"{_digest(utterance)}.npy"
        if not path.is_file():
            smile = smile or _smile(feature_set)
            row = smile.process_signal(read_samples(utterance), SAMPLE_RATE).to_numpy()[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}.part.npy")
            np.save(part, row.astype(np.float32))
            part.replace(path)
        rows.append(np.load(path))
        advance()
    return np.stack(rows)


def classify(features: dict[str, NDArray[np.float32]], split: Split) -> NDArray[np.float64]:
    """Train on all but ``split.test``, answer to it: (n, num_labels), 1 at the answer, else 0.

    Features, by utterance id, are standardised by the training utterances; the SVM is linear, one
    label against the rest, C 1e-3, its classes balanced. As nothing is chosen, the validation
    speakers train as well.
    """
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    known = split.train + split.validation
    scaler = StandardScaler()
    rows = scaler.fit_transform(np.stack([features[item.utterance_id] for item in known]))
    machine = LinearSVC(C=_C, class_weight="balanced", max_iter=3000, random_state=0)
    machine.fit(rows, [LABELS.index(item.label or "") for item in known])
    new = scaler.transform(np.stack([features[item.utterance_id] for item in split.test]))
    answers: NDArray[np.float64] = np.eye(len(LABELS))[machine.predict(new)]
    return answers


def _smile(feature_set: str) -> Any:
    missing = missing_packages()
    if missing:
        raise ConfigError(f"{', '.join(missing)}: not installed, expected for {feature_set}")
    import opensmile

    return opensmile.Smile(
        feature_set=opensmile.FeatureSet[FEATURE_SETS[feature_set]],
        feature_level=opensmile.FeatureLevel.Functionals,
    )


def _digest(utterance: Utterance) -> str:
    found = utterance.path.stat()
    key = [utterance.utterance_id, utterance.start_s, utterance.end_s]
    text = json.dumps([*key, found.st_size, found.st_mtime_ns])
    return hashlib.sha256(text.encode()).hexdigest()[:20]
