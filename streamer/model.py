"""A network under ONNX Runtime: refused at load unless its card and golden vectors come out.

The only importer of onnxruntime, and only when a model is loaded: everything else works without.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.resources
import io
import logging
from importlib.abc import Traversable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from streamer.card import CARD_KEY, Card, decode_card
from streamer.errors import CardError, ModelError, ProviderError

Provider = Literal["auto", "cpu", "cuda"]

INPUT_NAME = "windows"
OUTPUT_NAMES = ("logits", "embedding", "attention")

GOLDEN_KEY = "ser_stream_golden"
"""Metadata key under which an ONNX file holds windows and the logits that it must give them."""

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
# Another CPU's instruction set moves the fifth decimal, another device's order of sums the fourth.
_GOLDEN_TOLERANCE = {_CPU: 1e-4, _CUDA: 1e-3}
# A GPU plans memory and kernels for each shape that it meets: these only, and all of them at load.
_CUDA_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)

_logger = logging.getLogger("streamer")


class Scores(NamedTuple):
    """What the network says of n windows of T frames, float32."""

    logits: NDArray[np.float32]  # (n, num_labels), before the softmax
    embedding: NDArray[np.float32]  # (n, 64)
    attention: NDArray[np.float32]  # (n, T), sums to 1: how much each frame contributed


class Golden(NamedTuple):
    """Windows (n, 3, num_rows, num_frames) and the logits (n, num_labels) that they must give."""

    inputs: NDArray[np.float32]
    logits: NDArray[np.float32]


class _GoldenText(Struct, forbid_unknown_fields=True):
    inputs: bytes
    logits: bytes


def encode_golden(golden: Golden) -> str:
    """Return golden vectors as metadata: JSON, base64 of float16 inputs and float32 logits.

    The logits must be those of the inputs as float16 holds them.
    """
    text = {
        "inputs": base64.b64encode(golden.inputs.astype("<f2").tobytes()).decode(),
        "logits": base64.b64encode(golden.logits.astype("<f4").tobytes()).decode(),
    }
    return msgspec.json.encode(text).decode()


def decode_golden(text: str | None, card: Card, origin: str) -> Golden:
    """Return the golden vectors that a model's metadata holds.

    Raises:
        ModelError: there are none, or they are not windows and logits of the card's shape.
    """
    if not text:
        raise ModelError(
            f"{origin} has no golden vectors: expected metadata {GOLDEN_KEY!r}, as export_onnx.py "
            "writes it"
        )
    try:
        stored = msgspec.json.decode(text, type=_GoldenText)
        inputs = np.frombuffer(stored.inputs, "<f2").astype(np.float32)
        logits = np.frombuffer(stored.logits, "<f4").astype(np.float32)
        golden = Golden(inputs.reshape(-1, *card.input_shape), logits.reshape(-1, len(card.labels)))
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ModelError(f"{origin}: its golden vectors cannot be read: {error}") from error
    if len(golden.inputs) != len(golden.logits) or not len(golden.inputs):
        raise ModelError(
            f"{origin}: {len(golden.inputs)} golden windows with {len(golden.logits)} logits: "
            "expected as many of both, and at least one"
        )
    return golden


class Model:
    """A loaded network; :meth:`score` may be called from several threads at once.

    Made by :meth:`load`.
    """

    def __init__(self, session: Any, origin: str) -> None:
        self._session = session
        self._origin = origin
        metadata = session.get_modelmeta().custom_metadata_map
        self.card: Card = decode_card(metadata.get(CARD_KEY), origin)
        """What it was trained for."""
        self.provider: str = session.get_providers()[0]
        """What it runs on, in ONNX Runtime's words: ``CPUExecutionProvider`` and the like."""
        self._batch_sizes = _CUDA_BATCH_SIZES if self.provider == _CUDA else ()
        # A run that fails raises, and is logged by whoever catches that: once, and in our format.
        self._run_options = _import_onnxruntime().RunOptions()
        self._run_options.log_severity_level = 4
        _check_signature(session, self.card, origin)
        self._golden = decode_golden(metadata.get(GOLDEN_KEY), self.card, origin)

    @classmethod
    def load(cls, path: Path | str | None = None, *, provider: Provider = "auto") -> Model:
        """Load a model file and prove that it still says what it said when it was exported.

        Args:
            path: an ONNX file, the bare name of a model that is shipped, or None for the default.
            provider: ``cuda`` fails where it is not to be had; ``auto`` takes it where it is, and
                logs once what it took (logger ``streamer``).

        Raises:
            ModelError: not such a model, or its golden vectors do not come out; or ONNX Runtime is
                not installed.
            CardError: its card is missing, cannot be read, or is of another network.
            ProviderError: the provider is unknown or not there.
        """
        if provider not in get_args(Provider):
            raise ProviderError(
                f"provider {provider!r}: expected one of {', '.join(get_args(Provider))}"
            )
        file, origin = _find(path)
        session = _open_session(_read(file, origin), origin, provider)
        model = cls(session, origin)
        model.check_golden()
        if provider == "auto":
            _logger.info("%s runs on %s", origin, model.provider)
        return model

    def score(self, batch: NDArray[np.float32]) -> Scores:
        """Score windows, shape (n, 3, num_rows, num_frames), float32, n >= 1.

        Rows do not depend on each other. A window that is not finite may well get finite logits, as
        a ReLU can swallow a NaN: it is for the caller to refuse it.

        Raises:
            ModelError: another shape or type, or ONNX Runtime fails.
        """
        expected = self.card.input_shape
        if batch.dtype != np.float32 or batch.shape[1:] != expected or not len(batch):
            raise ModelError(
                f"a batch of shape {batch.shape}, {batch.dtype}: expected (n, "
                f"{', '.join(map(str, expected))}), n >= 1, float32"
            )
        if not self._batch_sizes:
            return self._run(batch)
        largest = self._batch_sizes[-1]
        parts = [self._run_padded(batch[i : i + largest]) for i in range(0, len(batch), largest)]
        return Scores(*(np.concatenate(outputs) for outputs in zip(*parts, strict=True)))

    def check_golden(self) -> None:
        """Score the golden windows, in every batch size that will be used, and compare.

        Raises:
            ModelError: their logits do not come out.
        """
        tolerance = _GOLDEN_TOLERANCE.get(self.provider, max(_GOLDEN_TOLERANCE.values()))
        inputs, expected = self._golden
        for size in self._batch_sizes or (1, len(inputs)):
            rows = np.arange(size) % len(inputs)
            logits = self.score(inputs[rows]).logits
            difference = float(np.abs(logits - expected[rows]).max())
            if not difference <= tolerance:  # so written that a NaN fails, too
                raise ModelError(
                    f"{self._origin}: its golden logits are missed by {difference:.2g} at batch "
                    f"{size} on {self.provider}: expected at most {tolerance:g}"
                )

    def _run_padded(self, batch: NDArray[np.float32]) -> Scores:
        num_windows = len(batch)
        size = next(size for size in self._batch_sizes if size >= num_windows)
        padded = np.zeros((size, *batch.shape[1:]), np.float32)
        padded[:num_windows] = batch
        return Scores(*(output[:num_windows] for output in self._run(padded)))

    def _run(self, batch: NDArray[np.float32]) -> Scores:
        try:
            inputs = {INPUT_NAME: batch}
            scores = Scores(*self._session.run(OUTPUT_NAMES, inputs, self._run_options))
        except Exception as error:  # ONNX Runtime's exceptions share no other base
            raise ModelError(f"{self._origin} failed to score {len(batch)} windows: {error}") from (
                error
            )
        expected = (len(batch), len(self.card.labels)), (len(batch), self.card.window.num_frames)
        if (scores.logits.shape, scores.attention.shape) != expected:
            raise ModelError(
                f"{self._origin} gave logits {scores.logits.shape}, attention "
                f"{scores.attention.shape}: expected {expected[0]} and {expected[1]}"
            )
        return scores


def shipped_models() -> dict[str, Traversable]:
    """Return the models inside the package, by name."""
    folder = importlib.resources.files("streamer") / "models"
    files = [file for file in folder.iterdir() if file.name.endswith(".onnx")]
    return {file.name.removesuffix(".onnx"): file for file in files}


def _find(path: Path | str | None) -> tuple[Path | Traversable, str]:
    """Return the file and what to call it in messages."""
    if path is None:
        path = "can"
    shipped = shipped_models()
    if str(path) in shipped:
        return shipped[str(path)], f"model {str(path)!r}"
    file = Path(path)
    if not file.is_file():
        raise ModelError(
            f"no model {str(path)!r}: expected an ONNX file"
            + (f" or one of {', '.join(sorted(shipped))}" if shipped else "")
        )
    return file, str(path)


def _read(file: Path | Traversable, origin: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ModelError(f"{origin} cannot be read: {error.strerror}") from error


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(
            "ONNX Runtime is not installed: expected `pip install ser-stream[cpu]`, or "
            f"ser-stream[gpu] where an NVIDIA driver is, never both ({error})"
        ) from error
    return onnxruntime


def _open_session(content: bytes, origin: str, provider: Provider) -> Any:
    runtime = _import_onnxruntime()
    if provider == "cpu":
        return _new_session(runtime, content, origin, [_CPU])
    session, reason = _try_cuda(runtime, content, origin)
    if session is not None:
        return session
    # Before anything is said of CUDA: a file that is no model at all is refused here, as such.
    session = _new_session(runtime, content, origin, [_CPU])
    if provider == "cuda":
        raise ProviderError(f"provider 'cuda': {reason}")
    if _CUDA in runtime.get_available_providers():  # the GPU build is there: somebody wanted it
        _logger.warning("the CPU is used: %s", reason)
    return session


def _try_cuda(runtime: Any, content: bytes, origin: str) -> tuple[Any, str]:
    """Return a session on CUDA, or None and why not."""
    available = runtime.get_available_providers()
    if _CUDA not in available:
        return None, (
            f"found {', '.join(available)} only; expected {_CUDA}, which ser-stream[gpu] brings"
        )
    if hasattr(runtime, "preload_dlls"):
        # It prints what it does not find; stdout may be our events.
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            runtime.preload_dlls()
        if printed.getvalue():
            _logger.debug("preload_dlls: %s", printed.getvalue().strip())
    try:
        # TensorFloat-32 keeps ten bits of mantissa: golden vectors would not come out.
        session = _new_session(runtime, content, origin, [(_CUDA, {"use_tf32": "0"}), _CPU])
    except ModelError as error:
        return None, f"expected {_CUDA}: {error.__cause__}"
    found = session.get_providers()[0]
    if found != _CUDA:
        return None, (
            f"expected {_CUDA}: ONNX Runtime took {found}: is there a GPU, its driver, CUDA and "
            "cuDNN?"
        )
    return session, ""


def _new_session(runtime: Any, content: bytes, origin: str, providers: list[Any]) -> Any:
    options = runtime.SessionOptions()
    # The default pool spins between runs: 102 % of a core at 50 windows a second, against 3.5 %.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors: what matters of the rest is said by our own checks
    try:
        # Its fallback prints to stdout and goes on with the CPU unasked.
        return runtime.InferenceSession(content, options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions share no other base
        raise ModelError(
            f"{origin} cannot be loaded, expected a whole ONNX model: {error}"
        ) from error


def _check_signature(session: Any, card: Card, origin: str) -> None:
    """Compare inputs and outputs with the card; a dimension with a name is one that may vary."""
    inputs = {node.name: (node.type, *node.shape) for node in session.get_inputs()}
    found = inputs.get(INPUT_NAME, ())
    if len(inputs) != 1 or found[:1] != ("tensor(float)",):
        raise ModelError(
            f"{origin} has inputs {inputs}: expected one of floats, {INPUT_NAME!r}, shape "
            f"(n, {', '.join(map(str, card.input_shape))})"
        )
    if found[2:] != card.input_shape:
        raise CardError(
            f"{origin} takes windows of shape {found[2:]}: expected {card.input_shape}, which is "
            "what its card says"
        )
    if isinstance(found[1], int):
        raise ModelError(f"{origin} takes batches of {found[1]} alone: expected any number")
    outputs = {node.name: tuple(node.shape) for node in session.get_outputs()}
    if set(outputs) != set(OUTPUT_NAMES):
        raise ModelError(
            f"{origin} has outputs {', '.join(outputs)}: expected {', '.join(OUTPUT_NAMES)}"
        )
    num_labels = outputs["logits"][-1] if outputs["logits"] else 0
    if num_labels != len(card.labels):
        raise CardError(
            f"{origin} gives {num_labels} logits: expected {len(card.labels)}, one for each of its "
            f"card's labels, {', '.join(card.labels)}"
        )
