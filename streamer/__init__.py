"""ser-stream: the emotion in a voice, while the call is going on."""

from __future__ import annotations

__version__ = "0.1.0"
