from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.made_up_results import make_heard
from tests.scorers import fake_logits, make_card, one_turn
from train.corpora import LABELS, Utterance
from train.listening import NO_ANSWER, UNSURE, heard, listen

UTTERANCE = Utterance(path=Path("x.wav"), corpus="c", speaker="s", label="sad", duration_s=2.0)


def test_turns_count_by_their_windows() -> None:
    angry, sad = [0.6, 0.2, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]
    assert make_heard(UTTERANCE, [angry, sad], [1, 1]).answer == LABELS.index("sad")
    assert make_heard(UTTERANCE, [angry, sad], [3, 1]).answer == LABELS.index("angry")
    assert make_heard(UTTERANCE, [], []).answer == NO_ANSWER
    for windows in ([1, 1], [3, 1], [1, 3]):
        item = make_heard(UTTERANCE, [angry, sad], windows)
        assert item.answer_after(9.0) == item.answer
        assert item.answer_after(1.0) == LABELS.index("angry")
        assert item.answer_after(0.9) == NO_ANSWER


def test_a_turn_that_has_filled_no_window_yet_is_told_by_its_last() -> None:
    angry, sad, happy = [0.6, 0.2, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7], [0.2, 0.6, 0.1, 0.1]
    item = make_heard(UTTERANCE, [angry, sad, happy], [1, 1, 1])
    item = replace(item, in_turn=np.zeros(3, np.intp), is_full=np.array([False, False, True]))
    answers = [LABELS[item.answer_after(seconds)] for seconds in (1.0, 1.25, 1.5)]
    assert answers == ["angry", "sad", "happy"]


def fake_scores(windows: np.ndarray) -> np.ndarray:
    return np.stack([fake_logits(window) for window in windows])


def test_what_calibration_did_is_undone() -> None:
    """The same call at temperatures of 1 and at others: what is compared is the same."""
    cards = make_card(window=1.0, smoothed=1.0, turn=1.0), make_card()
    audio = np.concatenate([one_turn(2.6, 1), one_turn(1.5, 2)])
    plain, tempered = (
        heard(UTTERANCE, listen(fake_scores, card, [audio])[0], card) for card in cards
    )
    for name in ("window", "smoothed", "turn"):
        # Events hold six decimals, which a temperature of 0.8 or 1.5 stretches somewhat.
        np.testing.assert_allclose(getattr(plain, name), getattr(tempered, name), atol=1e-4)
    assert plain.turn_windows.tolist() == tempered.turn_windows.tolist()
    assert plain.answer == plain.answer_after(9.0)


def test_seconds_count_from_the_first_onset() -> None:
    card = make_card()
    item = heard(UTTERANCE, listen(fake_scores, card, [one_turn(3.0, 1)])[0], card)
    regular = item.heard_s[:-1]
    np.testing.assert_allclose(regular, 1.0 + 0.25 * np.arange(len(regular)), atol=1e-9)
    assert not item.is_full[0] and item.is_full[-1]
    assert (item.said < UNSURE).all() and (item.shown < UNSURE).all()
