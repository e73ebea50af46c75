from __future__ import annotations

import contextlib
import itertools
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.alerts import AlertRule, AlertWatch, check_labels, check_rules, parse_rule
from streamer.audio import AudioFormat
from streamer.call import Call, CallConfig
from streamer.errors import ConfigError
from streamer.events import Alert, Emotion, Event, Gap, Speech, TalkOver, decode_event
from streamer.session import Window
from tests.golden.synthetic import silence
from tests.laws import chunk_sizes, cut_in_turn
from tests.scorers import assert_same_events, encode_audio, hear, make_card, of_type, tone_speech

DOCS = Path(__file__).resolve().parent.parent / "docs" / "alerts.md"
RULE = AlertRule(name="angry2", label="angry", probability=0.7, duration_s=2.0, cooldown_s=0.0)
ANGRY_LOGITS = (6.0, 0.0, 0.0, 0.0)
CALM_LOGITS = (0.0, 0.0, 6.0, 0.0)


def emotion(
    end_s: float, score: float, *, start_s: float | None = None, warming_up: bool = False
) -> Emotion:
    return Emotion(
        channel=0,
        role="customer",
        lag_ms=3.0,
        dropped=2,
        start_s=max(0.0, end_s - 2.0) if start_s is None else start_s,
        end_s=end_s,
        label="angry",
        scores={"angry": score, "neutral": 1 - score},
        raw={},
        speech=1.0,
        warming_up=warming_up,
    )


def steps(start_s: float, end_s: float, score: float = 0.9) -> list[Emotion]:
    """One emotion every quarter of a second, all of one turn."""
    count = round((end_s - start_s) * 4)
    return [emotion(start_s + number / 4, score) for number in range(count + 1)]


def fired(rule: AlertRule, *events: Emotion | Gap) -> list[tuple[float, float]]:
    watch = AlertWatch([rule])
    return [(alert.start_s, alert.end_s) for event in events for alert in watch.receive(event)]


def rule(**changes: Any) -> AlertRule:
    fields = {name: getattr(RULE, name) for name in RULE.__dataclass_fields__}
    return AlertRule(**{**fields, **changes})


# When a rule is met


def test_an_alert_is_fired_once_when_the_condition_has_held() -> None:
    watch = AlertWatch([RULE])
    alerts = [alert for event in steps(1.0, 20.0) for alert in watch.receive(event)]
    assert alerts == [
        Alert(
            channel=0,
            role="customer",
            lag_ms=3.0,
            dropped=2,
            rule="angry2",
            label="angry",
            probability=0.9,
            start_s=1.0,
            end_s=3.0,
        )
    ]


def test_the_probability_is_the_mean_over_the_stretch() -> None:
    watch = AlertWatch([rule(duration_s=0.5)])
    events = [emotion(1.0, 0.1), emotion(1.25, 0.7), emotion(1.5, 0.8), emotion(1.75, 0.9)]
    (alert,) = [alert for event in events for alert in watch.receive(event)]
    assert alert.probability == pytest.approx(0.8)
    assert (alert.start_s, alert.end_s) == (1.25, 1.75)


def test_a_low_score_breaks_the_stretch_and_re_arms() -> None:
    events = [*steps(1.0, 2.75), emotion(3.0, 0.69), *steps(3.25, 6.0), emotion(6.25, 0.1)]
    assert fired(RULE, *events, *steps(6.5, 9.0)) == [(3.25, 5.25), (6.5, 8.5)]


@pytest.mark.parametrize(("pause_s", "expected"), [(5.0, [(1.0, 7.0)]), (5.1, [])])
def test_a_pause_between_turns_breaks_it_only_if_it_is_long(
    pause_s: float, expected: list[Any]
) -> None:
    """A turn's first windows begin with the turn, so what is between two windows is the pause."""
    first_s = 1.5 + pause_s
    after = emotion(first_s + 0.5, 0.9, start_s=first_s, warming_up=True)
    assert fired(RULE, *steps(1.0, 1.5), after) == expected


def test_a_gap_breaks_it() -> None:
    gap = Gap(channel=0, start_s=2.0, end_s=2.1, reason="lost")
    assert fired(RULE, *steps(1.0, 2.75), gap, *steps(3.0, 4.75)) == []
    assert fired(RULE, *steps(1.0, 2.75), gap, *steps(3.0, 5.0)) == [(3.0, 5.0)]


def test_windows_that_warm_up_count() -> None:
    events = [emotion(1.0 + n, 0.9, start_s=0.5 + n, warming_up=True) for n in range(4)]
    assert fired(RULE, *events) == [(1.0, 3.0)]


def test_a_cool_down_holds_an_alert_back() -> None:
    slow = rule(cooldown_s=4.0)
    low = emotion(3.25, 0.1)
    # Told at 3 s; met again at 5.5 s, so told at 7 s if it still holds.
    assert fired(slow, *steps(1.0, 3.0), low, *steps(3.5, 9.0)) == [(1.0, 3.0), (3.5, 7.0)]
    assert fired(slow, *steps(1.0, 3.0), low, *steps(3.5, 6.0)) == [(1.0, 3.0)]


def test_a_duration_of_none_fires_at_once() -> None:
    assert fired(rule(duration_s=0.0), emotion(1.0, 0.2), emotion(1.25, 0.7)) == [(1.25, 1.25)]


def test_rules_of_one_channel_do_not_touch_each_other() -> None:
    watch = AlertWatch([RULE, rule(name="calm", label="neutral"), rule(name="at1", duration_s=1.0)])
    alerts = [alert for event in steps(1.0, 9.0) for alert in watch.receive(event)]
    assert [(alert.rule, alert.end_s) for alert in alerts] == [("at1", 2.0), ("angry2", 3.0)]


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0.5, 1.0)), max_size=60))
def test_against_the_definition(told: list[tuple[int, float]]) -> None:
    """Every alert's stretch lasts the duration, is above the probability, has no long pause."""
    events, time_s = [], 0.0
    for quarters, score in told:
        time_s += quarters / 4
        events.append(emotion(time_s, score, start_s=time_s - 0.25))
    for start_s, end_s in fired(RULE, *events):
        stretch = [event for event in events if start_s <= event.end_s <= end_s]
        assert end_s - start_s >= RULE.duration_s
        assert all(event.scores["angry"] >= RULE.probability for event in stretch)
        pairs = itertools.pairwise(stretch)
        assert all(late.start_s - early.end_s <= RULE.pause_s for early, late in pairs)


# Rules that are refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "two words"}, "an alert named 'two words': expected 1 to 64"),
        ({"name": ""}, "expected 1 to 64"),
        ({"label": ""}, "no label"),
        ({"probability": 0.0}, "a probability of 0: expected more than 0, at most 1"),
        ({"probability": 1.01}, "a probability of 1.01"),
        ({"probability": float("nan")}, "a probability of nan"),
        ({"duration_s": -1.0}, "a duration of -1 s: expected 0 to 3600 s"),
        ({"duration_s": float("inf")}, "a duration of inf s"),
        ({"pause_s": 4000.0}, "a pause of 4000 s"),
        ({"cooldown_s": float("nan")}, "a cool-down of nan s"),
        ({"role": "boss"}, "role 'boss': expected one of customer, agent, any"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rule(**changes)


def test_a_rule_for_agents_is_refused_where_they_are_not_analysed() -> None:
    for_agents = rule(role="agent")
    with pytest.raises(ConfigError, match="is for the role agent, whose emotion is not inferred"):
        CallConfig(alerts=(for_agents,))
    check_rules([for_agents], analyse_agents=True)
    check_rules([rule(role=None)], analyse_agents=False)


def test_two_rules_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two alerts named angry2"):
        CallConfig(alerts=(RULE, RULE))


def test_a_label_that_the_model_has_not_is_refused() -> None:
    fearful = rule(label="fearful")
    with pytest.raises(ConfigError, match="'fearful': expected one of angry, happy, neutral, sad"):
        Call(make_card(), CallConfig(alerts=(fearful,)))
    check_labels([RULE], make_card().labels)


# Rules in words


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("name=angry2 label=angry probability=0.7 duration=2 cooldown=0 role=customer", RULE),
        (" duration=2.0  probability=7e-1 name=angry2 label=angry cooldown=0 ", RULE),
        (
            {"name": "angry2", "label": "angry", "probability": 0.7, "duration": 2, "cooldown": 0},
            RULE,
        ),
        (
            "name=n label=sad probability=1 duration=0 role=any pause=1.5",
            AlertRule(
                name="n", label="sad", probability=1.0, duration_s=0.0, role=None, pause_s=1.5
            ),
        ),
    ],
)
def test_rules_are_parsed(source: str | Mapping[str, object], expected: AlertRule) -> None:
    assert parse_rule(source) == expected


WORDS = "name=a label=angry probability=0.7 duration=2"
TABLE: dict[str, object] = {"name": "a", "label": "angry", "probability": 0.7, "duration": 2}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "an alert without duration, label, name, probability: expected, for example"),
        ("name=a label=angry probability=1", "alert a without duration"),
        (WORDS + " angry", "an alert with 'angry': expected words such as label=angry"),
        (WORDS + " name=b", "two of 'name'"),
        (WORDS + " for=ever", "alert a: key 'for': expected name, label, role, probability"),
        (WORDS + " pause=long", "alert a: pause is 'long': expected a number"),
        (WORDS + " pause=nan", "alert a: pause is 'nan': expected a number"),
        (WORDS + " role=", "alert a: role ''"),
        ({**TABLE, "duration": True}, "alert a: duration is True: expected a number"),
        ({**TABLE, "duration": [2]}, r"alert a: duration is \[2\]: expected a number"),
        ({**TABLE, "duration": 10**400}, "expected a number"),
        ({**TABLE, "label": 3}, "alert a: label is 3: expected text"),
        ({**TABLE, "name": 3}, "an alert: name is 3: expected text"),
        ({**TABLE, "probability": 70}, "a probability of 70"),
    ],
)
def test_words_that_are_no_rule_are_refused(
    source: str | Mapping[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_rule(source)


@given(st.text(alphabet=" =namelbprotyduic0.5-", max_size=60))
def test_only_a_config_error_comes_out(text: str) -> None:
    with contextlib.suppress(ConfigError):
        parse_rule(text)


def test_the_documentations_examples_are_what_they_say() -> None:
    expected = AlertRule(name="angry10", label="angry", probability=0.7, duration_s=10.0)
    blocks = re.findall(r"```(\w*)\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (words,) = [text for _, text in blocks if text.startswith("name=")]
    (tables,) = [tomllib.loads(text) for language, text in blocks if language == "toml"]
    assert parse_rule(words) == parse_rule(tables["alert"][0]) == expected
    alert, talk_over, message = [text for language, text in blocks if language == "json"]
    assert isinstance(decode_event(alert), Alert)
    assert isinstance(decode_event(talk_over), TalkOver)
    assert json.loads(message)["event"] == json.loads(alert)


# In a call


STEREO = AudioFormat(channels=2)
SPEECH = np.concatenate([silence(0.3), tone_speech(5.0, 1), silence(0.9)])


def hear_angry(config: CallConfig, chunks: list[bytes] | None = None) -> list[Event]:
    """Return the events of a call in which all are angry up to 5 s, and calm after it."""

    def answer(call: Call, window: Window) -> None:
        call.receive_scores(window, ANGRY_LOGITS if window.end_s <= 5.0 else CALM_LOGITS)

    data = encode_audio([SPEECH] * config.audio.channels, config.audio)
    return hear(Call(make_card(), config), chunks or [data], answer=answer)


def test_an_alert_follows_the_emotion_that_fired_it() -> None:
    events = hear_angry(CallConfig(alerts=(RULE,), source="call.wav"))
    (alert,) = of_type(events, Alert)
    before = events[events.index(alert) - 1]
    assert isinstance(before, Emotion)
    assert (alert.end_s, alert.lag_ms, alert.dropped) == (before.end_s, before.lag_ms, 0)
    assert alert.start_s == of_type(events, Emotion)[0].end_s
    assert alert.probability > 0.9
    assert (alert.channel, alert.role, alert.source) == (0, "customer", "call.wav")
    assert [event.seq for event in events] == list(range(len(events)))


@pytest.mark.parametrize(
    ("role", "analyse_agents", "expected"),
    [
        ("customer", True, ["customer"]),
        ("agent", True, ["agent"]),
        (None, True, ["customer", "agent"]),
        (None, False, ["customer"]),
    ],
)
def test_a_rule_is_for_its_role(
    role: str | None, analyse_agents: bool, expected: list[str]
) -> None:
    config = CallConfig(
        audio=STEREO,
        roles=("customer", "agent"),
        analyse_agents=analyse_agents,
        alerts=(rule(role=role),),
    )
    assert [alert.role for alert in of_type(hear_angry(config), Alert)] == expected


@settings(max_examples=15, deadline=None)
@given(sizes=chunk_sizes())
def test_chunking_does_not_show(sizes: list[int]) -> None:
    config = CallConfig(audio=STEREO, alerts=(RULE, rule(name="calm", label="neutral")))
    expected = hear_angry(config)
    assert len(of_type(expected, Alert)) == 2
    data = encode_audio([SPEECH, SPEECH], STEREO)
    assert_same_events(hear_angry(config, cut_in_turn(data, sizes)), expected)


def test_a_call_without_rules_alerts_nobody() -> None:
    events = hear_angry(CallConfig())
    assert of_type(events, Speech) and not of_type(events, Alert)
