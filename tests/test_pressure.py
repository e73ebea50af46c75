"""The level of a process: up while windows wait, down when they have not for a while."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from streamer.errors import ConfigError
from streamer.pressure import Lateness, Pressure, PressureConfig

TICK_S = 0.25


def run(pressure: Pressure, now_s: float, seconds: float, wait_s: float) -> tuple[float, list[int]]:
    """Have windows come back after ``wait_s`` for a while; return the time and the levels."""
    levels = []
    for tick in range(round(seconds / TICK_S)):
        pressure.submitted(tick, now_s - wait_s)
        pressure.answered(tick, now_s)
        levels.append(pressure.update(now_s))
        now_s += TICK_S
    return now_s, levels


def test_short_waits_are_no_pressure() -> None:
    _, levels = run(Pressure(), 0.0, 60.0, 0.2)
    assert set(levels) == {0}


def test_one_late_answer_is_no_pressure() -> None:
    pressure = Pressure()
    now_s, _ = run(pressure, 0.0, 10.0, 0.01)
    now_s, late = run(pressure, now_s, TICK_S, 1.5)
    _, levels = run(pressure, now_s, 10.0, 0.01)
    assert {*late, *levels} == {0}


def test_it_goes_up_by_one_and_down_by_one_after_calm() -> None:
    pressure = Pressure()
    now_s, up = run(pressure, 0.0, 12.0, 3.0)
    assert [level for level, before in zip(up[1:], up, strict=False) if level != before] == [
        1,
        2,
        3,
    ]
    now_s, down = run(pressure, now_s, 15.0, 0.01)
    changes = [
        place for place, (before, level) in enumerate(pairwise([3, *down])) if before != level
    ]
    assert [down[place] for place in changes] == [2, 1, 0]
    calm_ticks = pressure.config.calm_s / TICK_S
    assert all(later - earlier >= calm_ticks for earlier, later in pairwise([0, *changes]))


def test_between_the_thresholds_it_stays_where_it_is() -> None:
    pressure = Pressure()
    now_s, _ = run(pressure, 0.0, 2.0, 0.6)
    assert pressure.level == 1
    now_s, levels = run(pressure, now_s, 30.0, 0.3)
    assert set(levels) == {1}, "below what raised it, above half of that"
    _, levels = run(pressure, now_s, 10.0, 0.1)
    assert levels[-1] == 0


def test_leaving_windows_out_for_long_is_being_full() -> None:
    pressure = Pressure()
    now_s, _ = run(pressure, 0.0, 4.0, 1.0)
    assert pressure.level == 2
    _, levels = run(pressure, now_s, 10.0, 0.5)
    assert levels[-1] == 3, "each call has one window out, and still they wait for half a second"


def test_a_scorer_that_says_nothing_is_pressure() -> None:
    pressure = Pressure()
    pressure.submitted("window", 0.0)
    levels = [pressure.update(tick * TICK_S) for tick in range(60)]
    assert levels[-1] == 3
    pressure.withdrawn("window")
    pressure.answered("window", 15.0)
    assert pressure.num_out == 0
    _, levels = run(pressure, 15.0, 20.0, 0.01)
    assert levels[-1] == 0


def test_a_late_event_loop_is_pressure() -> None:
    pressure = Pressure()
    for tick in range(20):
        pressure.loop_lagged(0.1)
        pressure.loop_lagged(1.0)
        pressure.update(tick * TICK_S)
    assert pressure.level >= 1


@pytest.mark.parametrize(
    "settings", [{"raise_s": (0.4, 0.4, 1.0)}, {"raise_s": (0.0, 0.4, 1.0)}, {"calm_s": 0.0}]
)
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        PressureConfig(**settings)


def test_audio_that_waits_shuts_the_door_until_it_waits_no_more() -> None:
    pressure = Pressure()
    doors = []
    for behind_s in (0.0, 0.5, 0.1, 0.5, 0.6, 0.3, 0.21, 0.19, 0.5, 0.0):
        pressure.audio_waits([*6 * [behind_s], None, 9.0, 0.0])
        doors.append(pressure.is_behind)
        assert bool(pressure.complaint) is pressure.is_behind
    # Once is an accident; and it stays shut until half of what shut it.
    assert doors == [False, False, False, False, True, True, True, False, False, False]


def test_a_few_calls_that_are_late_shut_no_door() -> None:
    pressure = Pressure()
    for tick in range(20):
        pressure.audio_waits(7 * [5.0])
        assert pressure.update(tick * TICK_S) == 0 and not pressure.complaint


def test_audio_that_waits_raises_the_level_too() -> None:
    pressure = Pressure()
    for tick in range(40):
        pressure.audio_waits(8 * [2.0])
        pressure.update(tick * TICK_S)
    assert pressure.level == 3
    for tick in range(40, 120):
        pressure.audio_waits([])
        pressure.update(tick * TICK_S)
    assert pressure.level == 0


def test_lateness_is_beyond_the_streams_own_delay() -> None:
    lateness = Lateness()
    for number in range(100):  # a network that takes 3 s
        lateness.taken(0.02, 103.0 + 0.02 * number)
    assert lateness.behind_s == pytest.approx(0.0, abs=1e-6)
    for number in range(50):  # heard at half the speed at which it comes
        lateness.taken(0.02, 105.0 + 0.04 * number)
    assert lateness.behind_s == pytest.approx(1.0, abs=0.06)
    lateness.taken(1.0, 107.0)  # and it catches up
    assert lateness.behind_s < 0.05


def test_a_file_is_never_late_and_a_pause_is_none() -> None:
    lateness = Lateness()
    for number in range(100):
        lateness.taken(1.0, 0.01 * number)
        assert lateness.behind_s < 0.01
    lateness.taken(0.02, 60.0)
    assert lateness.behind_s > 50.0
    lateness.restart()
    assert lateness.behind_s == 0.0
    lateness.taken(0.02, 60.02)
    assert lateness.behind_s == 0.0


def test_a_clock_that_is_slow_is_not_late() -> None:
    lateness = Lateness()
    for second in range(3600):
        lateness.taken(1.0, 1.0005 * second)
    assert lateness.behind_s < 0.01
