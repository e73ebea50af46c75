"""The house itself: what is installed, what ships, what `make` does, who imports whom."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
AUDIO_SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".raw", ".pcm"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def names(requirements: list[str]) -> set[str]:
    return {
        re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower() for requirement in requirements
    }


def run(*command: str, environment: dict[str, str] | None = None) -> str:
    """Return what the command prints, run at the root."""
    done = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60, env=environment
    )
    return done.stdout


def make_dry_run(*arguments: str) -> str:
    """Return the commands that make would run, whatever the make that runs these tests was told."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    told = {
        "MAKEFLAGS",
        "MAKELEVEL",
        "MFLAGS",
        "ARGS",
        "AUDIO",
        "BACKEND",
        "MIC",
        "ROLES",
        "PYTHON",
    }
    environment = {name: value for name, value in os.environ.items() if name not in told}
    return run("make", "--dry-run", *arguments, environment=environment)


def committed_files() -> list[Path]:
    """Return what git tracks or would: all files that it does not ignore."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = run(
        "git",
        "-c",
        "safe.directory=*",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    )
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).exists()]


# What is installed


def test_serving_needs_neither_torch_nor_one_build_of_onnxruntime(project: dict[str, Any]) -> None:
    base = names(project["project"]["dependencies"])
    assert "numpy" in base
    assert not {name for name in base if name.startswith(("torch", "onnx"))}


def test_extras(project: dict[str, Any]) -> None:
    extras = {
        extra: names(wants) for extra, wants in project["project"]["optional-dependencies"].items()
    }
    assert {"cpu", "gpu", "mic", "train", "dev"} <= set(extras)
    # The two builds fill the same folder: one extra must never bring the other.
    assert [extra for extra in extras if "onnxruntime" in extras[extra]] == ["cpu"]
    assert [extra for extra in extras if "onnxruntime-gpu" in extras[extra]] == ["gpu"]
    assert [extra for extra in extras if "torch" in extras[extra]] == ["train"]


def test_train_keeps_the_torch_that_make_installs_first(project: dict[str, Any]) -> None:
    wanted = next(
        requirement
        for requirement in map(Requirement, project["project"]["optional-dependencies"]["train"])
        if requirement.name == "torch"
    )
    first = re.search(r"^TORCH \?= torch==(\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert first is not None
    # A CPU build has a local version; the range must be met by it, or pip fetches CUDA after all.
    assert wanted.specifier.contains(f"{first[1]}+cpu")


def test_commands_exist(project: dict[str, Any]) -> None:
    scripts = project["project"]["scripts"]
    assert set(scripts) == {"ser-stream", "ser-serve"}
    for target in scripts.values():
        module, function = target.split(":")
        spec = importlib.util.find_spec(module)
        assert spec is not None and spec.origin is not None
        defined = ast.parse(Path(spec.origin).read_text()).body
        assert function in {node.name for node in defined if isinstance(node, ast.FunctionDef)}


# What ships


def test_wheel_holds_the_package_alone(project: dict[str, Any]) -> None:
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"] == {"packages": ["streamer"]}
    shipped = {path.relative_to(ROOT).as_posix() for path in committed_files()}
    assert {"streamer/py.typed", "streamer/models/LICENSE"} <= shipped
    assert any(re.fullmatch(r"streamer/models/[^/]+\.onnx", name) for name in shipped)


def test_models_are_small_and_licensed() -> None:
    for model in (ROOT / "streamer" / "models").glob("*.onnx"):
        assert model.stat().st_size < 2_000_000, model.name
    licence = (ROOT / "streamer" / "models" / "LICENSE").read_text()
    for word in ("CC BY-NC-SA 4.0", "RAVDESS", "EMO-DB", "nEMO", "BanglaSER"):
        assert word in licence
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_no_speech_in_the_repository() -> None:
    audio = {
        path.relative_to(ROOT).as_posix()
        for path in committed_files()
        if path.suffix.lower() in AUDIO_SUFFIXES
    }
    assert audio == {"samples/call.wav"}


# The sample


def sample() -> tuple[int, np.ndarray]:
    with wave.open(str(ROOT / "samples" / "call.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (2, 2)
        pcm = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").reshape(-1, 2)
        return file.getframerate(), pcm


def test_sample_is_a_short_telephone_call() -> None:
    rate, pcm = sample()
    assert rate == 8000
    assert 20 <= len(pcm) / rate <= 30
    level = np.abs(pcm.astype(np.int32))
    assert (level.max(axis=0) > 3000).all(), "both sides speak"
    assert level.max() < 32767, "nobody clips"


def test_script_makes_the_sample(tmp_path: Path) -> None:
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed")
    if "1.51 " not in run("espeak-ng", "--version"):
        pytest.skip("call.wav was made by espeak-ng 1.51; another version speaks otherwise")
    output = tmp_path / "call.wav"
    run(sys.executable, str(ROOT / "samples" / "make_call.py"), str(output))
    with wave.open(str(output)) as file:
        made = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").reshape(-1, 2)
    _, committed = sample()
    assert made.shape == committed.shape
    # One step of 16 bits: the last bit of a filter's sum differs between processors.
    assert np.abs(made.astype(np.int32) - committed).max() <= 1


# What make does


@pytest.mark.parametrize("target", ["help", "setup", "run", "test", "check", "format", "clean"])
def test_make_target(target: str) -> None:
    assert make_dry_run(target)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "ser-stream --realtime --roles customer,agent 'samples/call.wav'"),
        (["AUDIO=other.wav"], "ser-stream --realtime 'other.wav'"),
        (["AUDIO=other.wav", "ROLES=agent"], "ser-stream --realtime --roles agent 'other.wav'"),
        (["MIC=1"], "ser-stream --mic"),
    ],
)
def test_make_run(arguments: list[str], expected: str) -> None:
    last_line = make_dry_run("run", *arguments).splitlines()[-1]
    assert " ".join(last_line.split()) == f".venv/bin/{expected}"


# Who imports whom, where import-linter does not look


def imported(path: Path) -> set[str]:
    roots = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            roots.add(node.module.split(".")[0])
    return roots


def test_clients_import_nothing_of_ours() -> None:
    clients = list((ROOT / "clients" / "python").rglob("*.py"))
    assert clients
    for client in clients:
        assert not imported(client) & {"streamer", "train", "export_onnx"}, client.name


def test_files_are_short() -> None:
    folders = ["streamer", "train", "clients", "bench", "tests"]
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        assert len(path.read_text().splitlines()) <= 400, path.relative_to(ROOT)


def test_functions_are_short() -> None:
    for path in (
        path for folder in ("streamer", "train") for path in (ROOT / folder).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                num_lines = node.end_lineno - node.lineno + 1
                assert num_lines <= 50, (
                    f"{path.relative_to(ROOT)}: {node.name} has {num_lines} lines"
                )
