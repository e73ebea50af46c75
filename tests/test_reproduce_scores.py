"""What a study's figures are made of: answers pooled and paired, and maps of attention."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.made_up_corpus import TINY
from train.reproduce_maps import attended_map, quiet_share
from train.reproduce_scores import Answers, summarize
from train.systems import build_network

pytestmark = pytest.mark.one_thread


def answers(guesses: list[list[int]], truth: list[int], units: list[int]) -> Answers:
    return Answers(
        truth=np.array(truth),
        guesses=np.array(guesses),
        folds=np.zeros_like(np.array(guesses)),
        units=np.array(units),
    )


def test_a_summary_by_hand() -> None:
    truth, units = [0, 0, 0, 1], [0, 0, 1, 1]
    one = answers([[0, 0, 0, 0], [0, 0, 0, 1]], truth, units)
    summary = summarize(one)
    assert summary["wa"] == pytest.approx(100 * (3 / 4 + 1) / 2)
    assert summary["ua"] == pytest.approx(100 * (1 / 2 + 1) / 2)
    assert summary["ua_by_seed"] == [50.0, 100.0]
    assert (summary["n"], summary["units"]) == (4, 2)
    assert np.sum(summary["confusion"]) == 8
    assert summary["ua_interval"][0] <= summary["ua"] <= summary["ua_interval"][1]


def test_pairing_takes_out_what_is_common() -> None:
    truth = [0, 1, 2, 3] * 10
    units = list(range(40))
    base = answers([[t if i % 3 else 0 for i, t in enumerate(truth)]], truth, units)
    alike = summarize(base, base)["delta"]
    assert alike["ua"] == 0 and alike["ua_interval"] == [0, 0] and alike["ua_folds_worse"] == 0
    worse = answers([[3] * 40], truth, units)
    delta = summarize(worse, base)["delta"]
    assert delta["ua"] < 0 and delta["ua_interval"][1] < 0
    assert (delta["ua_folds_worse"], delta["num_folds"]) == (1, 1)


def test_a_map_that_is_as_large_as_the_speech_is_loud() -> None:
    windows = torch.zeros(2, 3, 26, 40)
    windows[:, 0, 0] = torch.arange(40.0)
    even = np.ones((2, 8, 40), np.float32)
    assert quiet_share(even, windows) == pytest.approx(1.0)
    rising = even * np.arange(40, dtype=np.float32)
    assert quiet_share(rising, windows) == pytest.approx(4.5 / 34.5)


def test_attended_maps_are_what_the_network_goes_on_with() -> None:
    config = replace(TINY.network, skip_connection=False)
    network = build_network("can", config).eval()
    windows = torch.randn(2, *config.input_shape, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []
    network.attention.register_forward_hook(lambda *given: seen.append(given[2]))
    with torch.inference_mode():
        network(windows)
    maps = torch.from_numpy(attended_map(network, windows)).transpose(1, 2)
    # Without the skip connection F3 = ReLU(F2), and the map is |F2|.
    assert torch.equal(seen[0][seen[0] > 0], maps[seen[0] > 0])
