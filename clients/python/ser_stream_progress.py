"""What ser-stream's client must know to come back to a call that it was cut off from."""

from __future__ import annotations

import json
from typing import Any

MESSAGE_BYTES = 65_536
"""Longer chunks are sent in pieces of this size: a server bounds the size of a message."""
_KEPT_BYTES = 2**24
"""Audio that is kept to be sent again: more than two systems' sockets hold on its way."""
_KEPT_S = 10.0
"""Of what the server has, for one that was started anew and knows less than it had said."""
_ACK_EVENTS = 32
_SAMPLE_BYTES = {"pcm_s16le": 2, "pcm_f32le": 4}


class Progress:
    """What has arrived on either side, and the audio that may have to be sent again."""

    def __init__(self) -> None:
        self.session = ""
        self.seq = -1
        self.server_acks = False
        self._num_acknowledged = 0
        self._audio = bytearray()
        self._audio_from = 0
        self._place = 0
        self._block, self._kept_bytes = 1, 0

    def receive_event(self, event: dict[str, Any]) -> None:
        """Take an event that has come."""
        self.seq = event.get("seq", self.seq)
        if event["type"] == "ready" and "session" in event:
            self.session = event["session"]
            self._block = _SAMPLE_BYTES.get(event["encoding"], 1) * len(event["channels"])
            self._kept_bytes = round(_KEPT_S * event["sample_rate"]) * self._block

    def receive_ack(self, num_samples: int) -> None:
        """Learn how many samples the server has."""
        self.server_acks = True
        self._forget(num_samples * self._block - self._kept_bytes)

    def go_on_from(self, num_samples: int) -> bool:
        """Send from this sample on, next; return whether it is kept."""
        place = num_samples * self._block
        is_kept = self._audio_from <= place <= self._audio_from + len(self._audio)
        self._place = place if is_kept else self._place
        return is_kept

    def add(self, audio: memoryview) -> None:
        """Take audio that is to be sent."""
        self._audio += audio

    def next_piece(self) -> bytes:
        """What to send now; empty if all is on its way."""
        start = self._place - self._audio_from
        return bytes(self._audio[start : start + MESSAGE_BYTES])

    def sent(self, num_bytes: int) -> None:
        """Learn that so many bytes more are on their way."""
        self._place += num_bytes
        if len(self._audio) > _KEPT_BYTES:
            self._forget(self._audio_from + len(self._audio) - _KEPT_BYTES)

    def resume_message(self) -> str:
        """Return the first message of a new connection for the same call."""
        samples = -(-self._audio_from // self._block)
        return json.dumps(
            {"type": "resume", "session": self.session, "seq": self.seq, "samples": samples}
        )

    def ack_message(self, *, is_last: bool = False) -> str | None:
        """What the server need not keep any longer, now and then."""
        due = 1 if is_last else _ACK_EVENTS
        if not self.server_acks or self.seq + 1 - self._num_acknowledged < due:
            return None
        self._num_acknowledged = self.seq + 1
        return json.dumps({"type": "ack", "seq": self.seq})

    def _forget(self, place: int) -> None:
        num_bytes = min(place, self._place) - self._audio_from
        if num_bytes > 0:
            del self._audio[:num_bytes]
            self._audio_from += num_bytes
