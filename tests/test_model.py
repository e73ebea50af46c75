from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest

from streamer.card import CARD_KEY, Card, decode_card, encode_card
from streamer.errors import CardError, ModelError, ProviderError, SerStreamError
from streamer.model import GOLDEN_KEY, Golden, Model, decode_golden, encode_golden
from streamer.windows import WindowConfig
from tests.models import tiny_model, with_metadata

CUDA = "CUDAExecutionProvider"
HAS_CUDA = CUDA in onnxruntime.get_available_providers()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(path: Path) -> Model:
    return Model.load(path, provider="cpu")


@pytest.fixture(scope="module")
def card(model: Model) -> Card:
    return model.card


def batch(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    windows = rng.normal(0, 8, (n, 3, 26, 1)) + rng.normal(0, 4, (n, 3, 26, 200))
    return np.asarray(windows, np.float32)


# What it says


def test_score(model: Model) -> None:
    scores = model.score(batch(3))
    assert [output.shape for output in scores] == [(3, 4), (3, 64), (3, 200)]
    assert {output.dtype for output in scores} == {np.dtype(np.float32)}
    np.testing.assert_allclose(scores.attention.sum(axis=1), 1.0, atol=1e-5)  # float32's sum of 200
    assert np.ptp(scores.logits, axis=0).max() > 0.05, "windows that differ score differently"
    assert model.provider == "CPUExecutionProvider"


def test_batching_moves_last_bits_only(model: Model) -> None:
    windows = batch(16)
    together = model.score(windows)
    for row in range(16):
        alone = model.score(windows[row : row + 1])
        for one, many in zip(alone, together, strict=True):
            np.testing.assert_allclose(one[0], many[row], atol=1e-4)  # law 1's


def test_poisoned_window_spoils_its_own_row_alone(model: Model) -> None:
    windows = batch(3)
    clean = model.score(windows).logits
    windows[1, 0, 5, 100] = np.nan
    logits = model.score(windows).logits
    np.testing.assert_allclose(logits[[0, 2]], clean[[0, 2]], atol=1e-6)


def test_several_threads_share_a_session(model: Model) -> None:
    windows = batch(4)
    expected = model.score(windows).logits
    found: list[np.ndarray] = []

    def work() -> None:
        for _ in range(5):
            found.append(model.score(windows).logits)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 15
    assert all(np.array_equal(logits, expected) for logits in found)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 3, 26, 199), np.float32),
        np.zeros((3, 26, 200), np.float32),
        np.zeros((0, 3, 26, 200), np.float32),
        np.zeros((1, 3, 26, 200), np.float64),
        np.zeros((), np.float32),
    ],
)
def test_refuses_another_batch(model: Model, wrong: np.ndarray) -> None:
    with pytest.raises(ModelError, match=r"expected \(n, 3, 26, 200\), n >= 1, float32") as caught:
        model.score(wrong)
    assert str(wrong.shape) in str(caught.value)


# What is refused at load


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"",
        lambda content: b"This is a text file.\n" * 50,
        lambda content: content[: len(content) // 2],
        lambda content: content[:100],
    ],
    ids=["empty", "text", "half", "hundred bytes"],
)
@pytest.mark.parametrize("provider", ["cpu", "auto", "cuda"])
def test_refuses_what_is_no_whole_model(
    path: Path, tmp_path: Path, spoil: Callable[[bytes], bytes], provider: Any
) -> None:
    spoilt = tmp_path / "spoilt.onnx"
    spoilt.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ModelError, match="cannot be loaded"):
        Model.load(spoilt, provider=provider)


def test_refuses_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected an ONNX file"):
        Model.load(tmp_path / "none.onnx", provider="cpu")
    with pytest.raises(ModelError, match="expected an ONNX file"):
        Model.load(tmp_path, provider="cpu")


def test_finds_shipped_models_by_name(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    for name in ("can", "other"):
        (tmp_path / "models" / f"{name}.onnx").write_bytes(path.read_bytes())
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    assert Model.load(provider="cpu").card.name == "tiny"
    assert Model.load("other", provider="cpu").card.name == "tiny"
    with pytest.raises(ModelError, match=r"no model 'another': .* one of can, other"):
        Model.load("another", provider="cpu")


def three_labels(card: Card) -> Card:
    return msgspec.structs.replace(card, labels=card.labels[:3])


def shorter_windows(card: Card) -> Card:
    return msgspec.structs.replace(card, window=WindowConfig(num_frames=150))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: None, "has no card"),
        (lambda card: "{", "cannot be read"),
        (lambda card: encode_card(three_labels(card)), "4 logits: expected 3"),
        (lambda card: encode_card(shorter_windows(card)), r"expected \(3, 26, 150\)"),
    ],
)
def test_refuses_a_card_of_something_else(
    path: Path, card: Card, tmp_path: Path, change: Callable[[Card], str | None], message: str
) -> None:
    changed = with_metadata(path, tmp_path / "changed.onnx", **{CARD_KEY: change(card)})
    with pytest.raises(CardError, match=message):
        Model.load(changed, provider="cpu")


def test_refuses_foreign_onnx(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "foreign",
        [value("x", onnx.TensorProto.FLOAT, [1])],
        [value("y", onnx.TensorProto.FLOAT, [1])],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    foreign = tmp_path / "foreign.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), foreign)
    with pytest.raises(CardError, match="has no card"):
        Model.load(foreign, provider="cpu")


def renamed(old: str, new: str) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        for node in proto.graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
            node.output[:] = [new if name == old else name for name in node.output]
        for value in (*proto.graph.input, *proto.graph.output):
            value.name = new if value.name == old else value.name

    return change


def one_window_only(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed("windows", "x"), "has inputs"),
        (renamed("attention", "focus"), "has outputs logits, embedding, focus"),
        (one_window_only, "batches of 1 alone"),
    ],
)
def test_refuses_another_graph(
    path: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None], message: str
) -> None:
    proto = onnx.load(path)
    change(proto)
    onnx.save(proto, tmp_path / "changed.onnx")
    with pytest.raises(ModelError, match=message):
        Model.load(tmp_path / "changed.onnx", provider="cpu")


# Golden vectors


def golden_of(path: Path, card: Card) -> Golden:
    metadata = {prop.key: prop.value for prop in onnx.load(path).metadata_props}
    return decode_golden(metadata[GOLDEN_KEY], card, "test")


def off_by(difference: float) -> Callable[[Golden], str]:
    def change(golden: Golden) -> str:
        logits = golden.logits.copy()
        logits[1, 1] += difference
        return encode_golden(golden._replace(logits=logits))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (off_by(1e-3), "missed by 0.001 at batch 2 on CPU.*expected at most 0.0001"),
        (off_by(np.nan), "missed by nan"),
        (lambda golden: None, "has no golden vectors"),
        (lambda golden: "[]", "cannot be read"),
        (lambda golden: '{"inputs": "%", "logits": ""}', "cannot be read"),
        (lambda golden: '{"inputs": "AAAA", "logits": ""}', "cannot be read"),
        (lambda golden: encode_golden(Golden(golden.inputs[:1], golden.logits)), "1 golden"),
        (lambda golden: encode_golden(Golden(golden.inputs[:0], golden.logits[:0])), "0 golden"),
    ],
)
def test_refuses_golden_vectors_that_do_not_come_out(
    path: Path,
    card: Card,
    tmp_path: Path,
    change: Callable[[Golden], str | None],
    message: str,
) -> None:
    text = change(golden_of(path, card))
    changed = with_metadata(path, tmp_path / "changed.onnx", **{GOLDEN_KEY: text})
    with pytest.raises(ModelError, match=message):
        Model.load(changed, provider="cpu")


def test_golden_vectors_travel_unchanged(path: Path, card: Card) -> None:
    golden = golden_of(path, card)
    assert golden.inputs.shape == (2, 3, 26, 200)
    again = decode_golden(encode_golden(golden), card, "test")
    assert all(np.array_equal(one, other) for one, other in zip(golden, again, strict=True))


def test_card_travels_unchanged(card: Card) -> None:
    assert decode_card(encode_card(card), "test") == card


# Providers


@pytest.mark.skipif(HAS_CUDA, reason="CUDA is there")
def test_cuda_fails_hard_where_it_is_missing(path: Path) -> None:
    with pytest.raises(ProviderError, match=f"found .*CPUExecutionProvider only; expected {CUDA}"):
        Model.load(path, provider="cuda")


def test_unknown_provider(path: Path) -> None:
    with pytest.raises(ProviderError, match="'tpu': expected one of auto, cpu, cuda"):
        Model.load(path, provider="tpu")  # type: ignore[arg-type]


@pytest.mark.skipif(HAS_CUDA, reason="CUDA is there")
def test_auto_says_once_what_it_took(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="streamer"):
        Model.load(path, provider="cpu")
        assert not caplog.records, "who asked for it need not be told"
        Model.load(path, provider="auto")
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert caplog.messages[0].endswith("runs on CPUExecutionProvider")


class FakeGpu:
    """ONNX Runtime with CUDA, by its own word: the CPU computes, what was asked for is kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, found: str | Exception = CUDA) -> None:
        self.calls: list[Any] = []
        self.batch_sizes: list[int] = []
        self.options: Any = None
        real = onnxruntime.InferenceSession

        def open_session(content: bytes, options: Any, *, providers: list[Any], **rest: Any) -> Any:
            self.options = options
            self.calls.append(providers)
            on_cuda = providers != ["CPUExecutionProvider"]
            if on_cuda and isinstance(found, Exception):
                raise found
            session = real(content, options, providers=["CPUExecutionProvider"], **rest)
            return self._wrap(session, found) if on_cuda else session

        monkeypatch.setattr(
            onnxruntime, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"]
        )
        monkeypatch.setattr(onnxruntime, "preload_dlls", self._preload, raising=False)
        monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)

    def _preload(self) -> None:
        self.calls.append("preload_dlls")
        print("Failed to load a library")

    def _wrap(self, session: Any, found: Any) -> Any:
        outer = self

        class Session:
            get_inputs, get_outputs = session.get_inputs, session.get_outputs
            get_modelmeta = session.get_modelmeta

            def get_providers(self) -> list[str]:
                return [found]

            def run(self, names: Any, feed: dict[str, np.ndarray], options: Any) -> Any:
                outer.batch_sizes.append(len(feed["windows"]))
                return session.run(names, feed, options)

        return Session()


def test_cuda_pads_to_sizes_that_it_has_warmed(
    path: Path, model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = FakeGpu(monkeypatch)
    on_cuda = Model.load(path, provider="cuda")
    assert on_cuda.provider == CUDA
    tf32_off = {"use_tf32": "0"}
    assert gpu.calls == ["preload_dlls", [(CUDA, tf32_off), "CPUExecutionProvider"]]
    assert gpu.batch_sizes == [1, 2, 4, 8, 16, 32, 64], "each size is warmed at load"
    gpu.batch_sizes.clear()
    windows = batch(70)
    expected = model.score(windows)
    for found, wanted in zip(on_cuda.score(windows), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)  # other batches, other last bits
    assert on_cuda.score(windows[:5]).logits.shape == (5, 4)
    assert gpu.batch_sizes == [64, 8, 8]
    assert capsys.readouterr().out == "", "stdout is for events"


@pytest.mark.parametrize("found", ["CPUExecutionProvider", RuntimeError("no CUDA-capable device")])
def test_cuda_that_cannot_start(
    path: Path,
    found: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    FakeGpu(monkeypatch, found=found)
    with pytest.raises(ProviderError, match=f"expected {CUDA}: .*(took CPU|no CUDA-capable)"):
        Model.load(path, provider="cuda")
    with caplog.at_level(logging.INFO, logger="streamer"):
        assert Model.load(path, provider="auto").provider == "CPUExecutionProvider"
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_threads_do_not_spin(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(monkeypatch)
    Model.load(path, provider="cpu")
    assert gpu.options.intra_op_num_threads == 1
    assert gpu.options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_missing_onnxruntime_says_which_extra(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SerStreamError, match=r"pip install ser-stream\[cpu\].*ser-stream\[gpu\]"):
        Model.load(path, provider="cpu")


def test_onnxruntime_is_imported_only_to_load() -> None:
    code = "import sys, streamer.batching; sys.exit('onnxruntime' in sys.modules)"
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=60)
