"""Send a microphone to a ser-stream server and print what it hears, until Ctrl-C.

It needs sounddevice (`pip install sounddevice`; on Linux also `apt install libportaudio2`).
"""

from __future__ import annotations

import argparse
import queue
import signal
import sys
import threading
from typing import Any

from example_file import line_of
from ser_stream_client import Client, ClientError

SAMPLE_RATE = 16_000
BLOCK_S = 0.02
MAX_QUEUED_BLOCKS = 100

EPILOG = """\
examples:
  ser-serve                                  the server, in another terminal
  python example_microphone.py               Ctrl-C ends it, with the last turn and a summary
  python example_microphone.py --device USB
  python -m sounddevice                      lists the devices

exit codes: 0 ended by Ctrl-C, 1 no server or no microphone (the reason is on stderr)

People whose emotion is inferred must be told so before you begin."""


class Blocks:
    """What was recorded and is not sent yet: bounded, since sound does not wait."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.num_dropped = 0

    def end(self, *_: object) -> None:
        """Let `send` end the audio; a second Ctrl-C does not wait for the last words."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.queue.put(None)

    def receive(self, data: Any, num_samples: int, times: Any, status: Any) -> None:
        """Copy a block, on the sound card's thread: nothing else may be done there."""
        if self.queue.qsize() < MAX_QUEUED_BLOCKS:
            self.queue.put(bytes(data))
        else:
            self.num_dropped += 1


def send(client: Client, blocks: Blocks) -> None:
    """Send blocks until None, then the end; a lost server is told by `Client.events`."""
    try:
        while (block := blocks.queue.get()) is not None:
            client.send(block)
        client.end()
    except ClientError:
        pass


def hear(url: str, device: str | int | None) -> None:
    """Print events until Ctrl-C, then those of the tail."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: it is there, PortAudio is not
        raise ClientError(f"{error}: pip install sounddevice; apt install libportaudio2") from None
    blocks = Blocks()
    try:
        microphone = sounddevice.RawInputStream(
            samplerate=SAMPLE_RATE,
            blocksize=round(BLOCK_S * SAMPLE_RATE),
            device=device,
            channels=1,
            dtype="int16",
            callback=blocks.receive,
            finished_callback=lambda: blocks.queue.put(None),  # unplugged
        )
    except (ValueError, sounddevice.PortAudioError) as error:
        raise ClientError(f"no microphone that records {SAMPLE_RATE} Hz: {error}") from None
    with Client(url, sample_rate=SAMPLE_RATE) as client, microphone:
        # Ctrl-C ends the audio, not the program: the last turn is still scored.
        signal.signal(signal.SIGINT, blocks.end)
        threading.Thread(target=send, args=(client, blocks), daemon=True).start()
        for event in client.events():
            line = line_of(event)
            if line is not None:
                print(line, flush=True)
    if blocks.num_dropped:
        lost_s = blocks.num_dropped * BLOCK_S
        print(f"# {lost_s:.2f} s were not sent: the server was too slow")


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--url", default="ws://127.0.0.1:8765/v1/stream", help="default: %(default)s"
    )
    parser.add_argument("--device", metavar="NAME", help="a device's number or a part of its name")
    options = parser.parse_args()
    device = options.device
    try:
        hear(options.url, int(device) if device and device.isdecimal() else device)
    except ClientError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
