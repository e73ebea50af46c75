"""What ``ser-stream`` can be told, and how it says so."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import get_args

from streamer import __version__
from streamer.audio import AudioFormat, Encoding
from streamer.call import ROLES
from streamer.errors import SerStreamError
from streamer.model import Provider

_STREAM_DESCRIPTION = """\
Hear the emotion in speech while it is spoken: scores every 250 ms of speech, a
label that does not flicker, an answer for every turn. On a terminal a live
view, else one line an event."""

_STREAM_EPILOG = """\
examples:
  ser-stream --realtime call.wav              a recording, as if it went on now
  ser-stream --roles customer,agent call.wav  two channels, the second an agent's
  ser-stream --json *.wav > events.jsonl      files, as fast as they can be heard
  ser-stream --mic                            the microphone; Ctrl-C ends it
  arecord -t raw -f S16_LE -r 16000 | ser-stream -
  ffmpeg -i talk.mp4 -f s16le -ar 16000 -ac 1 - | ser-stream --json -

exit codes:
  0         every source was heard to its end
  1         a source failed, in part or wholly, or --roles do not fit it: its
            `error` says why, the others went on; or output cannot be written
  2         usage, configuration or the model
  130, 143  ended by Ctrl-C or SIGTERM, after the tail was scored and the summary
            given; a second one quits at once
  141       whoever read the output left

files that were cut off:
  WAV, RF64, W64, AIFF, AU, FLAC and Ogg show that a part is missing: it is an
  `error` after what could be heard. Others, such as MP3, may seem to end there.

agents:
  A channel with the role `agent` tells speech only: its emotion is not inferred
  unless you say --analyse-agents. The EU forbids inferring the emotions of people
  at work (AI Act, Article 5(1)(f); medical and safety uses apart), and whoever's
  emotion is inferred must be told (Article 50(3))."""


def stream_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return checked options; argparse's way out is SystemExit."""
    parser = argparse.ArgumentParser(
        prog="ser-stream",
        usage="ser-stream [options] PATH... | - | --mic",
        description=_STREAM_DESCRIPTION,
        epilog=_STREAM_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_sources(parser)
    _add_analysis(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="events as JSON, one a line")
    output.add_argument("--schema", action="store_true", help="print the JSON Schema of events")
    parser.add_argument("--version", action="version", version=f"ser-stream {__version__}")
    words = list(sys.argv[1:] if arguments is None else arguments)
    # argparse forgets what "--" means when options may stand between paths.
    end = words.index("--") if "--" in words else len(words)
    options = parser.parse_intermixed_args(words[:end])
    options.paths += words[end + 1 :]
    if options.schema or options.list_devices:
        return options
    raw = {"encoding": options.encoding, "sample_rate": options.rate, "channels": options.channels}
    given = {name: value for name, value in raw.items() if value is not None}
    options.is_declared = bool(given)
    _check_sources(parser, options)
    try:
        options.audio = AudioFormat(**given)
    except SerStreamError as error:
        parser.error(str(error))
    return options


def _check_sources(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if bool(options.paths) == options.mic:
        parser.error("expected one or more PATHs, or -, or --mic")
    if "-" in options.paths and len(options.paths) > 1:
        parser.error("- is standard input: expected no PATH beside it")
    if options.device is not None and not options.mic:
        parser.error("--device chooses a microphone: expected --mic with it")
    if options.is_declared and options.paths != ["-"]:
        parser.error("--encoding, --rate and --channels are of raw PCM: expected - with them")


def _add_sources(parser: argparse.ArgumentParser) -> None:
    sources = parser.add_argument_group("sources")
    sources.add_argument(
        "paths", nargs="*", metavar="PATH", help="audio files, one after another; - for raw PCM"
    )
    sources.add_argument(
        "--mic", action="store_true", help="the microphone (needs ser-stream[mic])"
    )
    sources.add_argument(
        "--device", type=_device, metavar="NAME", help="a microphone, by number or part of its name"
    )
    sources.add_argument("--list-devices", action="store_true", help="list the microphones")
    sources.add_argument(
        "--realtime", action="store_true", help="files at the pace of their audio, as if live"
    )
    raw = parser.add_argument_group("raw PCM on standard input")
    raw.add_argument(
        "--encoding", choices=get_args(Encoding), help=f"default: {AudioFormat.encoding}"
    )
    raw.add_argument(
        "--rate", type=int, metavar="HZ", help=f"8000 to 48000; default: {AudioFormat.sample_rate}"
    )
    raw.add_argument(
        "--channels",
        type=int,
        choices=(1, 2),
        help=f"interleaved; default: {AudioFormat.channels}",
    )


def _add_analysis(parser: argparse.ArgumentParser) -> None:
    analysis = parser.add_argument_group("analysis")
    analysis.add_argument(
        "--roles",
        type=_roles,
        default=(),
        metavar="ROLE[,ROLE]",
        help=f"who speaks on each channel: {' or '.join(ROLES)}; default: customers all",
    )
    analysis.add_argument(
        "--analyse-agents", action="store_true", help="infer agents' emotion, too; see below"
    )
    analysis.add_argument(
        "--step-ms",
        type=step_ms,
        default=250,
        metavar="MS",
        help="between two scores: 10 to 10000, a multiple of 10; default: %(default)s",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", metavar="NAME", help="an ONNX file with a card, or the name of a shipped model"
    )
    model.add_argument(
        "--provider",
        choices=get_args(Provider),
        default="auto",
        help="cuda fails where there is none, auto takes it where it is; default: %(default)s",
    )


def _roles(text: str) -> tuple[str, ...]:
    roles = tuple(role.strip() for role in text.split(","))
    if not set(roles) <= set(ROLES) or len(roles) > 2:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected one or two of {', '.join(ROLES)}, with a comma between them"
        )
    return roles


def step_ms(text: str) -> int:
    """Return a step, as argparse asks for it."""
    is_number = text.isascii() and text.isdecimal()
    if not is_number or int(text) % 10 or not 10 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 10 to 10000 ms, a multiple of 10")
    return int(text)


def _device(text: str) -> int | str:
    return int(text) if text.isdecimal() else text
