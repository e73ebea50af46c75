from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="NO MATPLOTLIB, so no figure was drawn")

from train.figures import Curve, draw_confusions, draw_embeddings, draw_maps, draw_sweeps


def size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG, from its header."""
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def test_confusions(tmp_path: Path) -> None:
    counts = np.arange(16).reshape(4, 4)
    draw_confusions(tmp_path / "new" / "a.png", {"one": counts, "none": 0 * counts})
    width, height = size(tmp_path / "new" / "a.png")
    assert width > 800 and height > 800


def test_sweeps(tmp_path: Path) -> None:
    curve = Curve(
        title="t",
        axis="alpha",
        values=[0.1, 0.3],
        wa=[50.0, 60.0],
        ua=[40.0, 50.0],
        ua_interval=[[30.0, 50.0], [45.0, 55.0]],
    )
    draw_sweeps(tmp_path / "a.png", [curve, curve, curve])
    width, height = size(tmp_path / "a.png")
    assert width > 2 * height


def test_maps(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    maps = [rng.standard_normal((8, 50)).astype(np.float32) for _ in range(3)]
    nothing = [np.zeros((8, 50), np.float32)] * 3
    draw_maps(tmp_path / "a.png", {"anchor": maps, "silent": nothing}, ["a", "b", "c"])
    assert size(tmp_path / "a.png")[0] > 1000


def test_embeddings_and_that_the_same_gives_the_same(tmp_path: Path) -> None:
    points = np.random.default_rng(0).standard_normal((20, 2)).astype(np.float32)
    panels = {"(a)": (points, np.arange(20) % 4), "(b)": (points, np.zeros(20, np.int64))}
    for name in ("a.png", "b.png"):
        draw_embeddings(tmp_path / name, panels)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
