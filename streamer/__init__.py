"""ser-stream: the emotion in a voice, while the call is going on."""

from __future__ import annotations

from streamer.audio import AudioFormat
from streamer.batching import Batcher, Scorer
from streamer.call import Call, CallConfig, Lost
from streamer.drivers import converse, recognize
from streamer.errors import SerStreamError
from streamer.model import Model
from streamer.session import Session, SessionConfig, Window

__all__ = [
    "AudioFormat",
    "Batcher",
    "Call",
    "CallConfig",
    "Lost",
    "Model",
    "Scorer",
    "SerStreamError",
    "Session",
    "SessionConfig",
    "Window",
    "__version__",
    "converse",
    "recognize",
]

__version__ = "0.1.0"
