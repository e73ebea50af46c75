from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import train.functionals
from streamer.errors import ConfigError
from tests.made_up_corpus import make_corpus
from train.corpora import LABELS
from train.functionals import classify, extract_functionals, missing_packages
from train.splits import speaker_folds


def test_an_unknown_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'gemaps': expected one of egemaps, compare"):
        extract_functionals([], "gemaps", tmp_path)


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.functionals, "_NEEDED", ("opensmile_of_nobody",))
    assert missing_packages() == ["opensmile_of_nobody"]
    utterances = make_corpus(tmp_path / "corpus")[:1]
    with pytest.raises(ConfigError, match="opensmile_of_nobody: not installed"):
        extract_functionals(utterances, "egemaps", tmp_path / "cache")


def test_functionals_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opensmile", reason="NO OPENSMILE, so its functionals were not tested")
    utterances = make_corpus(tmp_path / "corpus", seconds=(0.6,))[:3]
    rows = extract_functionals(utterances, "egemaps", tmp_path / "cache")
    assert rows.shape == (3, 88) and np.isfinite(rows).all()
    monkeypatch.setattr(train.functionals, "_smile", lambda name: pytest.fail("computed again"))
    assert np.array_equal(extract_functionals(utterances, "egemaps", tmp_path / "cache"), rows)


def test_the_machine_learns_what_can_be_told_apart(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="NO SCIKIT-LEARN, so its SVM was not tested")
    utterances = make_corpus(tmp_path / "corpus")
    rng = np.random.default_rng(0)
    features = {
        item.utterance_id: (
            10 * np.eye(4)[LABELS.index(item.label or "")] + rng.standard_normal(4)
        ).astype(np.float32)
        for item in utterances
    }
    split = speaker_folds(utterances)[0]
    answers = classify(features, split)
    assert answers.shape == (len(split.test), 4) and (answers.sum(axis=1) == 1).all()
    truth = [LABELS.index(item.label or "") for item in split.test]
    assert answers.argmax(axis=1).tolist() == truth
