"""The shipped model made better for one's own speech, and whether it became so.

Speakers are left out by folds: a network adapted to the others hears them through the session, the
model as it was hears them, too, and the difference of the two, by bootstrap over speakers, is what
may be claimed. What is written was then adapted to everybody, by the same recipe.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from msgspec.structs import replace as replace_card
from numpy.typing import NDArray
from torch import nn

from export_onnx import Agreement, Network, export, load_weights, make_card
from streamer.arrays import WindowFeatures
from streamer.card import Calibration, Card, Corpus, Rejection
from streamer.errors import ConfigError, ModelError
from streamer.frontend import FrontEnd, FrontEndConfig, WindowCut
from streamer.model import Model
from train.checkpoint import Checkpoint, halved, load_checkpoint
from train.committee import Committee, build_can
from train.conditions import condition_samples
from train.config import config_from_dict
from train.contenders import corpora_heard
from train.corpora import LABELS, CorpusError, Utterance
from train.evaluate import fit
from train.listening import NO_ANSWER, Group, Heard, hear
from train.measures import rounded
from train.metrics import confusion, uar_difference, unweighted_average_recall
from train.verdict import Verdict

MIN_SPEAKERS = 3
_NUM_FOLDS = 3  # as many trainings more: minutes on a laptop
_CONDITIONS = ("clean", "telephone")

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """How a model is adapted.

    Every epoch draws at most ``epoch_windows`` windows anew, each label as often as another, half
    of them by telephone. Batch normalisation keeps the statistics of many speakers: those of few
    would be learnt by heart first.

    Raises:
        ConfigError: a value out of range.
    """

    epochs: int = 4
    epoch_windows: int = 480
    batch_size: int = 32
    learning_rate: float = 3e-4
    weight_decay: float = 1e-2
    label_smoothing: float = 0.1
    seed: int = 1

    def __post_init__(self) -> None:
        if min(self.epochs, self.epoch_windows, self.batch_size) < 1 or self.learning_rate <= 0:
            raise ConfigError(
                f"{self.epochs} epochs of {self.epoch_windows} windows by {self.batch_size} at "
                f"{self.learning_rate:g}: expected 1 or more of each, and a positive rate"
            )


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """What came of it: ``verdict`` is None where too few speakers leave nobody to judge by."""

    card: Card
    verdict: Verdict | None
    agreement: Agreement


@dataclass(frozen=True, kw_only=True, eq=False)
class _Base:
    """The model to start from: its file as served, its card, how to make its network again."""

    path: Path
    card: Card
    checkpoint: Checkpoint

    def network(self) -> Network:
        network = build_can(self.checkpoint.config.network)
        network.load_state_dict(self.checkpoint.network.state_dict())
        return network.eval()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Cut:
    """One utterance's windows as serving cuts them, float16, its speaker and its label's index."""

    windows: NDArray[np.float16]
    speaker_id: str
    label: int


def adapt(
    model: Path,
    utterances: Sequence[Utterance],
    output: Path,
    config: AdaptConfig,
    *,
    name: str,
    licence: str = "",
    begin: Callable[[int], None] = lambda total: None,
    advance: Callable[[int], None] = lambda count: None,
) -> Adapted:
    """Adapt a model to one's own speech and write it, its card included.

    Args:
        model: an ONNX file, or a checkpoint of a training.
        utterances: of one's own; those without a label are passed over.
        output: the new ONNX file.
        config: how.
        name: of the new model.
        licence: of one's own speech, for the card; the weights inherit the old model's as well.
        begin: gets the number of training steps, ``advance`` those done since.

    Raises:
        ConfigError: one label alone, or not a checkpoint.
        ModelError: the file is not a model, lacks its weights by name, became worse, or would not
            say the same under ONNX Runtime as under torch.
        CorpusError: audio that cannot be read, or in which there is no speech.
    """
    labelled = _labelled(utterances)
    with tempfile.TemporaryDirectory() as folder:
        base = load_base(model, Path(folder))
        cuts = [_cut(utterance, base.card) for utterance in labelled]
        if not any(len(cut.windows) for cut in cuts):
            raise CorpusError(f"{len(labelled)} utterances: found no speech, expected some")
        speakers = sorted({cut.speaker_id for cut in cuts})
        num_folds = _NUM_FOLDS if len(speakers) >= MIN_SPEAKERS else 0
        begin((num_folds + 1) * config.epochs * _num_steps(cuts, config))
        pairs: list[tuple[Heard, Heard]] = []
        for fold in range(num_folds):
            out = set(speakers[fold::num_folds])
            network = base.network()
            fine_tune(network, [cut for cut in cuts if cut.speaker_id not in out], config, advance)
            held_out = tuple(item for item in labelled if item.speaker_id in out)
            pairs += _compare(base, network, held_out, Path(folder) / f"fold{fold}.onnx")
        verdict = _accepted(pairs, corpora_heard(base.card, labelled))
        network = base.network()
        fine_tune(network, cuts, config, advance)
        card = _new_card(base, labelled, verdict, [after for _, after in pairs], name, licence)
        agreement = export(_with_network(base, network), card, output, None)
    return Adapted(card=card, verdict=verdict, agreement=agreement)


def _labelled(utterances: Sequence[Utterance]) -> list[Utterance]:
    labelled = [utterance for utterance in utterances if utterance.label]
    if len({utterance.label for utterance in labelled}) < 2:
        raise ConfigError(
            f"{len(labelled)} utterances of one label or none: expected some of two labels or more"
        )
    return labelled


def _accepted(pairs: list[tuple[Heard, Heard]], heard: tuple[str, ...]) -> Verdict | None:
    verdict = _judge(pairs, heard) if pairs else None
    if verdict and verdict.word == "worse":
        raise ModelError(f"nothing was written: {verdict.sentence()}")
    return verdict


def load_base(path: Path, folder: Path) -> _Base:
    """Read a model file's network from its own weights; a checkpoint is exported first.

    Raises:
        ModelError: the file is not a model, or lacks its weights by name.
        ConfigError: its card's configuration is not one of this version's, or no checkpoint.
    """
    if path.suffix == ".onnx":
        card = Model.load(path, provider="cpu").card
        config = config_from_dict(card.training.get("config", {}), f"{path}: its card")
        network = build_can(config.network)
        load_weights(network, path)
        checkpoint = Checkpoint(
            network=network.eval(),
            config=config,
            normalization=card.normalization,
            training_data={},
            fold=card.training.get("fold"),
            epoch=card.training.get("epoch", 0),
            validation={},
        )
        return _Base(path=path, card=card, checkpoint=checkpoint)
    checkpoint = load_checkpoint(path)
    card = make_card(checkpoint, name=checkpoint.config.name, results={})
    served = folder / "base.onnx"
    export(checkpoint, card, served, None)
    return _Base(path=served, card=card, checkpoint=checkpoint)


def _cut(utterance: Utterance, card: Card) -> _Cut:
    """Cut an utterance's windows in both conditions, those that a turn's answer is made of."""
    windows: list[WindowFeatures] = []
    front_end_config = FrontEndConfig(
        features=card.features, normalization=card.normalization, window=card.window
    )
    for condition in _CONDITIONS:
        front_end = FrontEnd(front_end_config)
        samples = condition_samples(utterance, condition)
        happenings = front_end.receive(samples) + front_end.flush()
        cuts = [item for item in happenings if isinstance(item, WindowCut)]
        chosen = [item for item in cuts if item.span.is_full] or cuts[-1:]
        windows += [item.features for item in chosen]
    shape = (0, *card.input_shape)
    stacked = np.stack(windows).astype(np.float16) if windows else np.zeros(shape, np.float16)
    return _Cut(
        windows=stacked,
        speaker_id=utterance.speaker_id,
        label=LABELS.index(utterance.label or ""),
    )


def _num_steps(cuts: Sequence[_Cut], config: AdaptConfig) -> int:
    """Steps an epoch: of all windows, but of no more than are drawn."""
    num_windows = sum(len(cut.windows) for cut in cuts)
    return math.ceil(min(num_windows, config.epoch_windows) / config.batch_size)


def fine_tune(
    network: nn.Module,
    cuts: Sequence[_Cut],
    config: AdaptConfig,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Train a network a little further, its rate falling to nothing; it ends in evaluation mode.

    Utterances are drawn label by label, so that a label with few of them counts as much.
    """
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    spoken = [cut for cut in cuts if len(cut.windows)]
    labels = sorted({cut.label for cut in spoken})
    by_label = {label: [cut for cut in spoken if cut.label == label] for label in labels}
    network.train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    if isinstance(network, Committee) and network.gate is not None:
        network.gate.requires_grad_(requires_grad=False)  # your folder has no noises
    if isinstance(network, Committee) and network.voice is not None:
        network.voice.encoder.requires_grad_(requires_grad=False)  # nor the teacher's thousands
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    num_steps = config.epochs * _num_steps(cuts, config)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, num_steps))
    loss_of = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    for _ in range(num_steps):
        truth = [labels[i] for i in rng.integers(len(labels), size=config.batch_size)]
        drawn = [_pick(_pick(by_label[label], rng).windows, rng) for label in truth]
        logits = network(torch.from_numpy(np.stack(drawn)).float())[0]
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss_of(logits, torch.tensor(truth)))
        optimizer.step()
        schedule.step()
        advance(1)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(halved(weight))
    network.eval()


def _pick(items: Sequence[_T] | NDArray[Any], rng: np.random.Generator) -> Any:
    return items[int(rng.integers(len(items)))]


def _compare(
    base: _Base,
    network: Network,
    held_out: tuple[Utterance, ...],
    path: Path,
) -> list[tuple[Heard, Heard]]:
    """Let held-out speakers be heard by the model as it was and as it became, as served."""
    card = replace_card(base.card, calibration=Calibration(), rejection=Rejection())
    export(_with_network(base, network), card, path, None)
    before, after = (
        hear(Group(model=model, card=card, fold=None, condition="clean", utterances=held_out))
        for model in (base.path, path)
    )
    return list(zip(before, after, strict=True))


def _with_network(base: _Base, network: Network) -> Checkpoint:
    return replace(base.checkpoint, network=network)


def _judge(pairs: Sequence[tuple[Heard, Heard]], heard: tuple[str, ...]) -> Verdict:
    truth = [before.truth for before, _ in pairs]
    answers = [before.answer for before, _ in pairs], [after.answer for _, after in pairs]
    speakers = [before.utterance.speaker_id for before, _ in pairs]
    num_answers = NO_ANSWER + 1
    _, low, high = uar_difference(truth, *answers, speakers, num_answers)
    before, after = (_uar(truth, guess) for guess in answers)
    return Verdict(
        before=rounded(before),
        after=rounded(after),
        interval=(rounded(low), rounded(high)),
        speakers=len(set(speakers)),
        utterances=len(pairs),
        heard_before=heard,
    )


def _uar(truth: Sequence[int], guess: Sequence[int]) -> float:
    return unweighted_average_recall(confusion(truth, guess, NO_ANSWER + 1))


def _new_card(
    base: _Base,
    utterances: Sequence[Utterance],
    verdict: Verdict | None,
    held_out: Sequence[Heard],
    name: str,
    licence: str,
) -> Card:
    """Say what was adapted to what; temperatures are the held-out speakers', if there are any."""
    corpora = [
        Corpus(
            name=corpus,
            language=", ".join(sorted({item.language for item in members} - {""})) or "unknown",
            speakers=len({item.speaker for item in members}),
            utterances=len(members),
            licence=licence or "unknown",
        )
        for corpus in sorted({item.corpus for item in utterances})
        if (members := [item for item in utterances if item.corpus == corpus])
    ]
    calibration, rejection = fit([item for item in held_out if len(item.turn)], base.card)
    licences = [base.card.licence, licence]
    found = verdict.sentence() if verdict else "Nobody was left to judge by."
    return replace_card(
        base.card,
        name=name,
        description=(
            f"{base.card.description} Adapted to {len(utterances)} utterances of "
            f"{', '.join(corpus.name for corpus in corpora)}: {found}"
        ),
        calibration=calibration,
        rejection=rejection,
        data=(*base.card.data, *corpora),
        licence=" and ".join(dict.fromkeys(item for item in licences if item)),
        training={
            **base.card.training,
            "adapted": {
                "from": base.card.name,
                "speakers": len({item.speaker_id for item in utterances}),
                "utterances": len(utterances),
                "verdict": asdict(verdict) if verdict else None,
            },
        },
        results={},
    )
