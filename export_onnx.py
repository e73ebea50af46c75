"""Make a checkpoint a model file: ONNX, a card, golden vectors, refused unless both runtimes agree.

``python export_onnx.py CHECKPOINT -o can.onnx [--results results.json] [--card can.md]``
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from streamer.arrays import Samples, WindowFeatures
from streamer.card import CARD_KEY, Calibration, Card, Corpus, Rejection, encode_card
from streamer.errors import ModelError, SerStreamError
from streamer.frontend import FrontEnd, FrontEndConfig, WindowCut
from streamer.model import (
    GOLDEN_KEY,
    INPUT_NAME,
    OUTPUT_NAMES,
    Golden,
    Model,
    Scores,
    encode_golden,
)
from train.can import CascadedAttentionNetwork, count_parameters
from train.card_page import card_page, describe
from train.checkpoint import LARGE, Checkpoint, load_checkpoint
from train.committee import Committee
from train.config import config_to_dict
from train.corpora import LABELS, load_data, load_manifest, read_samples
from train.results import card_results

Network: TypeAlias = CascadedAttentionNetwork | Committee

SPEECH_DATA = Path(__file__).resolve().parent.parent / "shared" / "data"
TOLERANCE = 1e-4
NUM_WINDOWS = 16
NUM_GOLDEN = 2
MAX_BYTES = 2_000_000
OPSET = 17  # ONNX Runtime 1.20 knows up to 21; nothing in the network is newer than this

# Language and licence of the corpora that we know, all of them acted; your own are for you to say.
CORPORA = {
    "ravdess": ("en", "CC BY-NC-SA 4.0"),
    "emodb": ("de", "CC0 or CC BY 4.0 (sources differ)"),
    "nemo": ("pl", "CC BY-NC-SA 4.0"),
    "banglaser": ("bn", "CC BY 4.0 (not confirmed)"),
}
WEIGHTS_LICENCE = "CC BY-NC-SA 4.0"


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far ONNX Runtime is from torch, and how fast on one thread."""

    difference: float
    ms_per_window: float
    num_bytes: int


def make_card(
    checkpoint: Checkpoint, *, name: str, description: str = "", results: dict[str, Any]
) -> Card:
    """Say what the checkpoint was trained for, on what, and how well it did.

    Raises:
        ModelError: the results' calibration is not three temperatures, their rejection not two
            thresholds, or they are not those of an evaluation of the same recipe.
    """
    try:
        calibration = msgspec.convert(results.get("calibration", {}), Calibration)
        rejection = msgspec.convert(results.get("rejection", {}), Rejection)
    except msgspec.ValidationError as error:
        raise ModelError(
            f"calibration {results.get('calibration')}, rejection {results.get('rejection')}: "
            "expected temperatures for window, smoothed and turn, thresholds for smoothed and "
            f"turn: {error}"
        ) from error
    kept = card_results(results, checkpoint.config)
    config = checkpoint.config
    corpora = sorted(checkpoint.training_data)
    licence = WEIGHTS_LICENCE if set(corpora) & set(CORPORA) else "unknown"
    speech = "acted speech" if set(corpora) <= set(CORPORA) else "speech"
    return Card(
        name=name,
        description=description
        or describe(
            data=f"{speech} ({', '.join(corpora)})",
            licence=licence,
            fold=checkpoint.fold,
            num_folds=len(kept.get("folds", [])),
        ),
        labels=LABELS,
        features=config.features,
        normalization=checkpoint.normalization,
        window=config.window,
        calibration=calibration,
        rejection=rejection,
        data=tuple(_corpus(corpus, checkpoint.training_data[corpus]) for corpus in corpora),
        licence=licence,
        training={
            "config": config_to_dict(config),
            "epoch": checkpoint.epoch,
            "fold": checkpoint.fold,
            "validation": checkpoint.validation,
            "parameters": count_parameters(checkpoint.network),
        },
        results=kept,
    )


def _corpus(name: str, counts: dict[str, int]) -> Corpus:
    language, licence = CORPORA.get(name, ("unknown", "unknown"))
    return Corpus(name=name, language=language, licence=licence, **counts)


def real_windows(card: Card, data: Path | None) -> NDArray[np.float32]:
    """Cut NUM_WINDOWS windows of speech as serving would, shape (n, 3, num_ceps, num_frames).

    One from the middle of each of as many utterances, evenly spread over ``data``: a folder of
    corpora or a manifest. Without it, from a synthetic voice. Values are float16's, as golden
    vectors keep them.

    Raises:
        ModelError: there is not enough speech.
        CorpusError: ``data`` cannot be read.
    """
    config = FrontEndConfig(
        features=card.features, normalization=card.normalization, window=card.window
    )
    windows: list[WindowFeatures] = []
    if data is None:
        cuts = _cuts(config, synthetic_voice(12.0, card.features.sample_rate))
        windows = [cuts[i] for i in np.linspace(0, len(cuts) - 1, NUM_WINDOWS).astype(int)]
    else:
        for samples in _spread_utterances(data):
            if len(windows) < NUM_WINDOWS and (cuts := _cuts(config, samples)):
                windows.append(cuts[len(cuts) // 2])
    if len(windows) < NUM_WINDOWS:
        raise ModelError(
            f"{data}: {len(windows)} utterances with a window of speech: expected {NUM_WINDOWS}"
        )
    return np.stack(windows).astype(np.float16).astype(np.float32)


def _spread_utterances(data: Path) -> Iterator[Samples]:
    utterances = load_manifest(data) if data.is_file() else load_data(data)
    # Twice as many as are needed, the other half for those in which no speech is heard.
    places = np.linspace(0, len(utterances) - 1, 2 * NUM_WINDOWS).astype(int)
    for place in dict.fromkeys([*places[::2], *places[1::2]]):
        yield read_samples(utterances[place])


def _cuts(config: FrontEndConfig, samples: Samples) -> list[WindowFeatures]:
    front_end = FrontEnd(config)
    happenings = front_end.receive(samples) + front_end.flush()
    return [cut.features for cut in happenings if isinstance(cut, WindowCut)]


def synthetic_voice(duration_s: float, rate: int) -> Samples:
    """Make voiced syllables, four a second, with a moving pitch and two formants: not silence."""
    time_s = np.arange(round(duration_s * rate)) / rate
    pitch_hz = 140 + 30 * np.sin(2 * np.pi * 0.7 * time_s)
    phase = 2 * np.pi * np.cumsum(pitch_hz) / rate
    formants_hz = 600 + 200 * np.sin(2 * np.pi * 1.3 * time_s), np.full_like(time_s, 1600.0)
    voice = np.zeros_like(time_s)
    for harmonic in range(1, 25):
        gain = sum(np.exp(-(((harmonic * pitch_hz - f) / 250) ** 2)) for f in formants_hz)
        voice += (gain + 0.05) * np.sin(harmonic * phase)
    voice *= 0.55 + 0.45 * np.sin(2 * np.pi * 4 * time_s)
    voice += np.random.default_rng(0).normal(0, 1e-3, len(voice))
    result: Samples = (0.3 * voice / np.abs(voice).max()).astype(np.float32)
    return result


@torch.no_grad()
def torch_scores(network: Network, batch: NDArray[np.float32]) -> Scores:
    """Score windows with torch: what ONNX Runtime is measured against."""
    logits, embedding, attention = network(torch.from_numpy(batch))[: len(OUTPUT_NAMES)]
    return Scores(logits.numpy(), embedding.numpy(), attention.numpy())


def to_onnx(network: Network, path: Path) -> None:
    """Write the network, its statistics inside, for any number of windows; no card yet.

    Every weight is an initialiser under its own name, so that :func:`load_weights` finds it again:
    nothing is folded here. ONNX Runtime does that when it loads the file, to the same speed.
    """
    served = copy.deepcopy(network)
    for module in served.modules():
        if isinstance(module, CascadedAttentionNetwork):
            module.emotions = None  # a second classifier is for training alone
    # One window: the LSTM's initial state then follows the batch that comes, and torch knows it.
    example = torch.zeros(1, *network.config.input_shape)
    with warnings.catch_warnings():
        # Of the exporter's age, and of the LSTM's own shape checks, which hold for every batch.
        # The newer one needs onnxscript; whether this one did well is measured below.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            served,
            (example,),
            str(path),
            input_names=[INPUT_NAME],
            output_names=list(OUTPUT_NAMES),
            dynamic_axes={name: {0: "n"} for name in (INPUT_NAME, *OUTPUT_NAMES)},
            opset_version=OPSET,
            dynamo=False,
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
        )
    proto = onnx.load(path)
    there = {item.name for item in proto.graph.initializer}
    # Of equal weights the exporter keeps one, and names the others by nodes that copy it.
    missing = {name: value for name, value in _weights(served).items() if name not in there}
    for node in [node for node in proto.graph.node if node.output[0] in missing]:
        proto.graph.node.remove(node)
    for name, value in missing.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value.numpy(), name))
    _halve(proto)
    onnx.save(proto, path)


def _halve(proto: onnx.ModelProto) -> None:
    """Store large tensors that are float16's numbers as such, and cast them: nothing is lost.

    ONNX Runtime casts them once, when it loads the file.
    """
    graph = proto.graph
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        tensor = node.attribute[0].t
        if math.prod(tensor.dims) >= LARGE:
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
            graph.node.remove(node)
    for place, item in enumerate(graph.initializer):
        value = onnx.numpy_helper.to_array(item)
        half = value.astype(np.float16)
        if value.dtype != np.float32 or value.size < LARGE or not np.array_equal(half, value):
            continue
        cast_name = f"{item.name}.float32"
        for node in graph.node:
            for index, name in enumerate(node.input):
                if name == item.name:
                    node.input[index] = cast_name
        graph.initializer[place].CopyFrom(onnx.numpy_helper.from_array(half, item.name))
        cast = onnx.helper.make_node(
            "Cast", [item.name], [cast_name], name=cast_name, to=onnx.TensorProto.FLOAT
        )
        graph.node.insert(0, cast)


def _weights(network: Network) -> dict[str, torch.Tensor]:
    """All that a served network is made of, by name.

    How many batches were averaged is for training alone, and so is a second classifier.
    """
    return {
        name: value
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked") and "emotions" not in name.split(".")
    }


def load_weights(network: Network, path: Path) -> None:
    """Read the weights of a model file that :func:`to_onnx` wrote back into a network.

    Raises:
        ModelError: the file lacks weights of this network, or has them in another shape.
    """
    try:
        proto = onnx.load(path)
    except Exception as error:  # protobuf's, onnx's and the file system's share no base
        raise ModelError(f"{path} cannot be read as an ONNX model: {error}") from error
    stored = {item.name: onnx.numpy_helper.to_array(item) for item in proto.graph.initializer}
    wanted = _weights(network)
    wrong = [n for n in wanted if n not in stored or stored[n].shape != tuple(wanted[n].shape)]
    if wrong:
        raise ModelError(
            f"{path} lacks {', '.join(wrong[:3])}{' and others' if len(wrong) > 3 else ''}: "
            "expected every weight of its card's network by name, as export_onnx.py writes them"
        )
    read = {name: torch.from_numpy(stored[name].astype(np.float32)) for name in wanted}
    network.load_state_dict({**network.state_dict(), **read})


def export(checkpoint: Checkpoint, card: Card, output: Path, data: Path | None) -> Agreement:
    """Write ``output`` whole and proven, or not at all.

    Raises:
        ModelError: torch and ONNX Runtime differ by more than TOLERANCE in any output at batch 1
            or 16, the file would be too large to ship, or there is no folder to write it to.
        CardError: the network does not fit the card.
    """
    if not output.parent.is_dir():
        raise ModelError(f"{output}: expected a folder {output.parent}, found none")
    windows = real_windows(card, data)
    # Of nobody's voice: the file is passed on, and features say a good deal of what was said.
    golden = real_windows(card, None)[:: NUM_WINDOWS // NUM_GOLDEN]
    metadata = {
        CARD_KEY: encode_card(card),
        GOLDEN_KEY: encode_golden(Golden(golden, torch_scores(checkpoint.network, golden).logits)),
    }
    part = output.with_name(f"{output.name}.part")
    try:
        to_onnx(checkpoint.network, part)
        proto = onnx.load(part)
        onnx.helper.set_model_props(proto, metadata)
        onnx.checker.check_model(proto)
        onnx.save(proto, part)
        agreement = _compare(checkpoint.network, windows, part)
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)
    return agreement


def _compare(network: Network, windows: NDArray[np.float32], path: Path) -> Agreement:
    """Load the file as serving does and hold it against torch."""
    model = Model.load(path, provider="cpu")
    largest = 0.0
    for size in (1, NUM_WINDOWS):
        for first in range(0, NUM_WINDOWS, size):
            batch = windows[first : first + size]
            pairs = zip(OUTPUT_NAMES, torch_scores(network, batch), model.score(batch), strict=True)
            for name, expected, found in pairs:
                difference = float(np.abs(expected - found).max())
                if not difference <= TOLERANCE:
                    raise ModelError(
                        f"torch and ONNX Runtime differ by {difference:.2g} in {name} at batch "
                        f"{size}: expected at most {TOLERANCE:g}"
                    )
                largest = max(largest, difference)
    num_bytes = path.stat().st_size
    if num_bytes >= MAX_BYTES:
        raise ModelError(f"the file has {num_bytes} bytes: expected less than {MAX_BYTES}")
    times_ms = []
    for number in range(100):
        start_s = time.thread_time()  # one thread's own, whatever else the machine does
        model.score(windows[number % NUM_WINDOWS][None])
        times_ms.append(1000 * (time.thread_time() - start_s))
    return Agreement(
        difference=largest, ms_per_window=statistics.median(times_ms), num_bytes=num_bytes
    )


def _read_results(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ModelError(f"{path}: expected a JSON object of results: {error}") from error


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.onnx")
    parser.add_argument(
        "--results", type=Path, metavar="JSON", help="written by `python -m train evaluate`"
    )
    parser.add_argument(
        "--card", type=Path, metavar="FILE.md", help="write the card as a page to read, too"
    )
    parser.add_argument("--name", help="the model's name; else the file's")
    parser.add_argument("--description", default="", help="for the card; else what is known of it")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR|CSV",
        help="speech to compare the runtimes on; else ../shared/data, or a synthetic voice",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Export one checkpoint; return 0, or 1 where it was refused."""
    arguments = _arguments(argv)
    data = arguments.data or (SPEECH_DATA if SPEECH_DATA.is_dir() else None)
    try:
        checkpoint = load_checkpoint(arguments.checkpoint)
        card = make_card(
            checkpoint,
            name=arguments.name or arguments.output.stem,
            description=arguments.description,
            results=_read_results(arguments.results),
        )
        if arguments.card and not arguments.card.parent.is_dir():
            raise ModelError(f"{arguments.card}: expected a folder for it, found none")
        page = card_page(card)
        agreement = export(checkpoint, card, arguments.output, data)
    except SerStreamError as error:
        print(f"export refused: {error}", file=sys.stderr)
        return 1
    if arguments.card:
        arguments.card.write_text(page, encoding="utf-8")
    if arguments.results is None:
        print("without --results: the card has no results and temperatures of 1", file=sys.stderr)
    print(
        f"{arguments.output}: {agreement.num_bytes / 1e6:.2f} MB, "
        f"{card.training['parameters']} parameters, labels {', '.join(card.labels)}\n"
        f"torch and ONNX Runtime differ by {agreement.difference:.1e} at most on {NUM_WINDOWS} "
        f"windows of {data or 'a synthetic voice'}, at batch 1 and {NUM_WINDOWS}\n"
        f"{agreement.ms_per_window:.2f} ms of CPU a window, on one thread"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
