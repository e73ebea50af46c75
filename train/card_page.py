"""A model's card for people: what it is, and the page of Markdown beside the model file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from streamer.card import UNCERTAIN, Card
from streamer.errors import ConfigError
from train.config import config_to_dict, load_config
from train.corpora import LABELS
from train.results import Results, results_of
from train.teacher import TEACHER

LIMITS = (
    "Meant for the customer's side of a call, with the customer's knowledge: a score says how a "
    "voice sounds, not what a person feels, and is no ground for a decision about anybody. "
    "Inferring emotions is regulated: in the EU, of customers it is high-risk, of employees "
    "forbidden (AI Act, Article 5(1)(f))."
)


def describe(*, data: str, licence: str, fold: int | None, num_folds: int) -> str:
    """Say in few words what a model is, whose its results are (of no folds: none) and its limits.

    ``fold`` is the one whose speakers it has not heard, None where it has heard them all.
    """
    figures = ""
    if num_folds:
        whose = "this one has heard all speakers" if fold is None else f"this one is fold {fold}'s"
        figures = (
            f"Its results are those of the same recipe's {num_folds} speaker-independent folds; "
            f"{whose}. "
        )
    return (
        "Cascaded Attention Network after Liu et al. 2023: whether a voice sounds "
        f"{', '.join(LABELS[:-1])} or {LABELS[-1]}. Trained on {data}; weights under {licence}. "
        f"{figures}{LIMITS}"
    )


def card_page(card: Card) -> str:
    """Return a card as Markdown.

    Raises:
        ModelError: its results are not those of an evaluation.
    """
    results = results_of(card.results)
    parts = [
        f"# {card.name}",
        card.description,
        _facts(card),
        "## Data",
        _data(card),
        "## Results",
        _results(results, card) if results else "None: exported without an evaluation.",
        "## Calibration",
        _calibration(card, results),
        "## Training",
        _training(card),
        "## Made by",
        "```\n" + "\n".join(_commands(card, results)) + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _facts(card: Card) -> str:
    features, window, normalization = card.features, card.window, card.normalization
    ms = 1000 / features.sample_rate
    shift_s = features.frame_shift / features.sample_rate
    return _table(
        ("", ""),
        [
            ("labels", ", ".join(card.labels)),
            (
                "window",
                f"{window.num_frames * shift_s:g} s, the first answer of a turn after "
                f"{window.first_frames * shift_s:g} s",
            ),
            (
                "features",
                f"{features.num_ceps} MFCC, delta and delta-delta; {features.num_mel} mel bands, "
                f"{features.mel_low_hz:g} to {features.mel_high_hz:g} Hz; frames of "
                f"{features.frame_length * ms:g} ms every {features.frame_shift * ms:g} ms; "
                f"{features.sample_rate} Hz",
            ),
            (
                "normalisation",
                "none"
                if normalization is None
                else f"causal mean of the channel's speech: prior {normalization.prior_frames}, "
                f"memory {normalization.memory_frames} frames",
            ),
            ("parameters", f"{card.training['parameters']:,}"),
            ("licence of the weights", card.licence),
        ],
    )


def _data(card: Card) -> str:
    return _table(
        ("corpus", "language", "speakers", "utterances", "licence"),
        [
            (item.name, item.language, item.speakers, item.utterances, item.licence)
            for item in card.data
        ],
    )


def _results(results: Results, card: Card) -> str:
    genders = sorted({name for corpus in results.corpora.values() for name in corpus.gender})
    rows = []
    for name, corpus in results.corpora.items():
        shares = (corpus.gender.get(gender) for gender in genders)
        telephone = results.telephone[name]
        rows.append(
            (
                name,
                corpus.speakers,
                corpus.n,
                f"{corpus.uar:.3f}",
                _interval(corpus.interval),
                f"{corpus.wa:.3f}",
                *(f"{share.uar:.3f}" if share else "-" for share in shares),
                f"{telephone.uar:.3f}",
                _interval(telephone.interval),
            )
        )
    headings = ("corpus", "speakers", "n", "UAR", "95 %", "WA")
    gender_headings = (f"UAR {gender}" for gender in genders)
    main = _table((*headings, *gender_headings, "UAR telephone", "95 %"), rows)
    num_silent = sum(sum(corpus.unanswered) for corpus in results.corpora.values())
    return "\n\n".join(
        [
            _whose_results(results, card),
            main,
            f"Mean UAR over corpora: {results.mean['clean']:.3f}, over the telephone "
            f"{results.mean['telephone']:.3f}. Chance is {1 / len(card.labels):g}. Utterances in "
            f"which no turn was found count as wrong: {num_silent}. Intervals are by bootstrap "
            "over speakers. Telephone: 300 to 3400 Hz, 8 kHz, G.711.",
            *_as_served(results),
            _folds(results),
        ]
    )


def _as_served(results: Results) -> list[str]:
    """Say what an evaluation found beside corpora and conditions, as far as it looked."""
    lines = []
    others = {name: uar for name, uar in results.mean.items() if name not in ("clean", "telephone")}
    if others:
        each = ", ".join(f"{name} {uar:.3f}" for name, uar in others.items())
        lines.append(f"Mean UAR in noise of so many dB below the speech, and in a room: {each}.")
    if results.heard_s:
        each = ", ".join(f"{name} s {rate.uar:.3f}" for name, rate in results.heard_s.items())
        lines.append(f"Mean UAR by seconds heard: {each.replace('all s', 'all')}.")
    if results.offline:
        lines.append(
            f"From the corpus's own boundaries, offline, it is {results.offline.gap_points:+.1f} "
            f"points; with the whole speaker's mean {results.offline.gap_to_whole_points:+.1f}."
        )
    if spliced := results.spliced:
        delay = "none" if spliced.median_delay_s is None else f"{spliced.median_delay_s:.2f} s"
        lines.append(
            f"{spliced.calls} calls from neutral to angry and back: anger shown in "
            f"{spliced.detected:.0%}, median delay {delay}, {spliced.flips_a_minute:.1f} changes "
            "of the label a minute where nothing changed."
        )
    if results.noise:
        lines.append(
            f"{results.noise.minutes:.0f} minutes of noise alone: "
            f"{results.noise.alarms_a_minute:.1f} emotional false alarms a minute."
        )
    return ["\n".join(f"- {line}" for line in lines)] if lines else []


def _whose_results(results: Results, card: Card) -> str:
    """Say whose figures they are: not this network's, where it has heard everybody."""
    whose = (
        f"Of {len(results.folds)} networks of the same recipe, each tested on speakers that it has "
        f"not heard ({results.protocol})"
    )
    if card.training["fold"] is not None:
        return f"{whose}; this network is fold {card.training['fold']}'s."
    all_speakers = "This network was trained on all speakers, so nobody is left to test it on."
    kept = (
        "Each fold's was trained on its validation speakers, too, after another had told the "
        "temperatures; all kept their last epoch."
        if card.training["config"].get("refit")
        else "Each fold kept the epoch that was best on its validation speakers; this one kept its "
        "last."
    )
    return f"{whose}. {all_speakers} {kept}"


def _folds(results: Results) -> str:
    corpora = sorted({corpus for fold in results.folds for corpus in fold.test})
    return _table(
        ("fold", "seed", "epoch kept", *(f"UAR {corpus}" for corpus in corpora)),
        [
            (
                fold.fold,
                fold.seed,
                fold.epoch + 1,
                *(f"{fold.test[corpus]:.3f}" if corpus in fold.test else "-" for corpus in corpora),
            )
            for fold in results.folds
        ],
    )


def _calibration(card: Card, results: Results | None) -> str:
    calibration = card.calibration
    rows = []
    for kind in ("window", "smoothed", "turn"):
        error = results.ece.get(kind) if results else None
        errors = (f"{error.before:.3f}", f"{error.after:.3f}") if error else ("-", "-")
        rows.append((kind, f"{getattr(calibration, kind):.3f}", *errors))
    table = _table(("scores", "temperature", "error before", "error after"), rows)
    rejection = card.rejection
    if rejection.smoothed or rejection.turn:
        table += (
            f"\n\nThe label is `{UNCERTAIN}` where the highest smoothed score is below "
            f"{rejection.smoothed:.3f}, or the highest of a turn below {rejection.turn:.3f}."
        )
    if results is None:
        return table
    return (
        f"{table}\n\nA temperature is the median of those that fit each fold's validation "
        "speakers. The expected calibration error is the folds' networks', on their test speakers, "
        "at a temperature of 1 and at each fold's own."
    )


def _training(card: Card) -> str:
    config = card.training["config"]
    loss = config["loss"]
    optimizer = "AdamW" if config.get("optimizer") == "adamw" else "Adam"
    return (
        f"Configuration `{config['name']}`, epoch {card.training['epoch'] + 1} of "
        f"{config['epochs']}, seed {config['seed']}: {optimizer} at {config['learning_rate']:g} "
        f"({config['schedule']}), weight decay {config['weight_decay']:g}, batches of "
        f"{config['batch_size']}, {loss['alpha']:g} triplet loss of margin {loss['margin']:g} "
        f"({loss['mining']}) and {1 - loss['alpha']:g} cross-entropy, {config['precision']}. "
        f"{_taught(config)}The card inside the model file holds every setting."
    )


def _taught(config: dict[str, Any]) -> str:
    if not config["network"].get("voice_members"):
        return ""
    return (
        "Before that a part of it learnt to say of speech what a larger network says: "
        f"{TEACHER}. None of that network's weights are in the file. "
    )


def _commands(card: Card, results: Results | None) -> list[str]:
    """Name the commands that make such a model again."""
    config, fold = card.training["config"], card.training["fold"]
    whom = "--all" if fold is None else f"--fold {fold}"
    run = f"runs/{config['name']}"
    checkpoint = f"{run}/{'all' if fold is None else f'fold{fold}'}/best.pt"
    export = f"python export_onnx.py {checkpoint} -o {card.name}.onnx --card {card.name}.md"
    lines = [f"python -m train fit {_settings(config)} {whom}"]
    if results:
        evaluated = results.command or f"python -m train evaluate {run}"
        lines += [f"python -m train folds {_settings(results.config)}", evaluated]
        export += f" --results {run}/results.json"
    return [*lines, export]


def _settings(config: dict[str, Any]) -> str:
    """Name a configuration as the command line does, with what differs from its file."""
    name = config["name"]
    try:
        known = _flat(config_to_dict(load_config(name)))
    except ConfigError:  # somebody's own file, which is not here
        return f"--config {name}.toml"
    changes = {key: text for key, text in _flat(config).items() if known.get(key) != text}
    return " ".join(
        [f"--config {name}", *(f"--set '{key}={text}'" for key, text in changes.items())]
    )


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(value)
    return flat


def _interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}"


def _table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )
