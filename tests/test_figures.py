from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="NO MATPLOTLIB, so no figure was drawn")

from matplotlib import image

from train.figures import Curve, draw_confusions, draw_embeddings, draw_maps, draw_sweeps


def size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG, from its header."""
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def pixels(path: Path) -> np.ndarray:
    """Return a picture's colours, 0 to 1, (height, width, 3)."""
    return np.asarray(image.imread(path))[:, :, :3]


def is_whole(path: Path) -> bool:
    """Tell whether a picture's edge is white all around: nothing was cut off there."""
    seen = pixels(path)
    edges = [seen[0], seen[-1], seen[:, 0], seen[:, -1]]
    return all((edge == 1.0).all() for edge in edges)


def test_confusions(tmp_path: Path) -> None:
    counts = np.arange(16).reshape(4, 4)
    draw_confusions(tmp_path / "new" / "a.png", {"one": counts, "none": 0 * counts})
    width, height = size(tmp_path / "new" / "a.png")
    assert width > 800 and height > 800
    assert is_whole(tmp_path / "new" / "a.png")


def test_long_titles_and_names_are_not_cut_off(tmp_path: Path) -> None:
    titles = [f"without delta-delta, panel {i}\nWA 100.0, UA 100.0" for i in range(4)]
    names = ["disappointed", "happy", "neutral", "sad"]
    draw_confusions(tmp_path / "a.png", dict.fromkeys(titles, np.full((4, 4), 99_999)), names)
    assert is_whole(tmp_path / "a.png")


def test_equal_shares_have_equal_colours_however_many_there_are(tmp_path: Path) -> None:
    few, many = np.diag([1, 1, 1, 1]), np.diag([900, 900, 900, 900])
    draw_confusions(tmp_path / "few.png", {"a": few, "b": few})
    draw_confusions(tmp_path / "both.png", {"a": few, "b": many})
    one, other = pixels(tmp_path / "few.png"), pixels(tmp_path / "both.png")
    # Numbers of one digit and of three cover a few dots more or less of a cell.
    full = np.array([8, 48, 107]) / 255  # the dark end of the scale
    cells = [(np.abs(seen - full).max(axis=2) < 0.01).sum() for seen in (one, other)]
    assert cells[1] == pytest.approx(cells[0], rel=0.05)
    assert cells[0] > 10_000


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
    assert is_whole(tmp_path / "a.png")
    # The paper's choice is a line of its own, and named.
    draw_sweeps(tmp_path / "b.png", [replace(curve, chosen=0.3)] * 3)
    grey = np.abs(pixels(tmp_path / "b.png") - np.array([0x8A, 0x93, 0x9C]) / 255).max(axis=2)
    assert (grey < 0.02).any(axis=0).sum() > 3
    assert is_whole(tmp_path / "b.png")


def test_maps(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    maps = [rng.standard_normal((8, 50)).astype(np.float32) for _ in range(3)]
    nothing = [np.zeros((8, 50), np.float32)] * 3
    draw_maps(tmp_path / "a.png", {"anchor": maps, "silent": nothing}, ["a", "b", "c"])
    assert size(tmp_path / "a.png")[0] > 1000
    assert is_whole(tmp_path / "a.png")


def test_embeddings_and_that_the_same_gives_the_same(tmp_path: Path) -> None:
    points = np.random.default_rng(0).standard_normal((20, 2)).astype(np.float32)
    panels = {"(a)": (points, np.arange(20) % 4), "(b)": (points, np.zeros(20, np.int64))}
    for name in ("a.png", "b.png"):
        draw_embeddings(tmp_path / name, panels)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert is_whole(tmp_path / "a.png")
