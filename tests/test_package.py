"""What `import streamer` gives."""

from __future__ import annotations

import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import streamer

ROOT = Path(__file__).resolve().parents[1]


def test_all_names_what_is_public_and_everything_there_is_documented() -> None:
    assert streamer.__all__ == sorted(streamer.__all__, key=lambda name: (name.islower(), name))
    for name in streamer.__all__:
        found = getattr(streamer, name)
        if name != "__version__":
            assert inspect.getdoc(found), name


def test_the_version_is_the_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert streamer.__version__ == project["version"]


def test_import_brings_no_model_runtime_no_server_and_no_torch() -> None:
    heavy = ["onnxruntime", "torch", "onnx", "sounddevice", "uvicorn", "starlette", "rich"]
    code = f"import sys, streamer; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout.strip() == "[]"
