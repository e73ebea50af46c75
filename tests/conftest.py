from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every run and every machine; two shared cores make any deadline a lottery.
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci")

SPEECH_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SHIPPED_MODEL = Path(__file__).resolve().parents[1] / "streamer" / "models" / "can.onnx"
NO_SPEECH_DATA = "REAL SPEECH IS MISSING, so this was not tested"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-examples",
        type=int,
        metavar="N",
        help="examples for each target of tests/test_fuzz.py, each time others; default: a few",
    )


@pytest.fixture(scope="session")
def speech_data() -> Path:
    """The folder of real speech beside the checkout, one folder a corpus."""
    if not SPEECH_DATA.is_dir():
        pytest.skip(f"{NO_SPEECH_DATA}: expected {SPEECH_DATA}, found none")
    return SPEECH_DATA


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The model that ships."""
    if not SHIPPED_MODEL.is_file():
        pytest.skip(f"NO SHIPPED MODEL, so this was not tested: expected {SHIPPED_MODEL}")
    return SHIPPED_MODEL


@pytest.fixture(scope="module", autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Give torch one thread in modules marked so, before any other fixture of theirs trains."""
    if request.node.get_closest_marker("one_thread") is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    num_untested = sum(NO_SPEECH_DATA in str(report.longrepr) for report in skipped)
    if num_untested:
        terminalreporter.write_line(
            f"{num_untested} tests were skipped for lack of real speech in {SPEECH_DATA}",
            yellow=True,
            bold=True,
        )
