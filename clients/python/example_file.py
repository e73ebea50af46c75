"""Send a WAV file to a ser-stream server and print what it hears."""

from __future__ import annotations

import argparse
import sys

from ser_stream_client import ClientError, Event, recognize_file

EPILOG = """\
examples:
  ser-serve                                        the server, in another terminal
  python example_file.py call.wav                  as fast as the server can hear it
  python example_file.py call.wav --realtime       as if it were being spoken
  python example_file.py call.wav --roles customer,agent
                                                   two channels; agents are not analysed

exit codes: 0 heard to its end, 1 not (the reason is on stderr), 2 usage, 130 Ctrl-C"""


def line_of(event: Event) -> str | None:
    """Return one line for people, None for what they need not see."""
    role = event["role"]
    match event["type"]:
        case "ready":
            roles = [
                f"{channel['role']}{'' if channel['analysed'] else ' (speech only)'}"
                for channel in event["channels"]
            ]
            return f"# {event['model']} hears: {', '.join(roles)}"
        case "speech":
            what = "speaks" if event["active"] else "pauses"
            return f"{event['time_s']:8.2f} s  {role:8}  {what}"
        case "emotion":
            # "uncertain" has no score of its own: the highest was not high enough.
            score = event["scores"].get(event["label"], max(event["scores"].values()))
            warming_up = "  (the turn is still short)" if event["warming_up"] else ""
            return f"{event['end_s']:8.2f} s  {role:8}  {event['label']:8} {score:.2f}{warming_up}"
        case "turn":
            span = f"turn of {event['end_s'] - event['start_s']:.2f} s"
            # "uncertain" has no score of its own: the highest was not high enough.
            score = event["scores"].get(event["label"], max(event["scores"].values()))
            return f"{event['end_s']:8.2f} s  {role:8}  {event['label']:8} {score:.2f}  = {span}"
        case "gap" | "lag":
            return f"{event['start_s']:8.2f} s  {role:8}  {event['type']}: {event['reason']}"
        case "talk_over":
            return f"{event['start_s']:8.2f} s  both      speak until {event['end_s']:.2f} s"
        case "alert":
            return f"{event['end_s']:8.2f} s  {role:8}  alert: {event['rule']}"
        case "error":
            return f"# error: {event['message']} ({event['code']})"
        case "summary":
            turns = sum(channel["turns"] for channel in event["channels"])
            speech_s = sum(channel["speech_s"] for channel in event["channels"])
            return (
                f"# {event['duration_s']:.2f} s heard: {speech_s:.2f} s of speech, turns: {turns}"
            )
    return None  # an event of a newer server


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", metavar="WAV", help="16-bit PCM, 8 to 48 kHz, mono or stereo")
    parser.add_argument(
        "--url", default="ws://127.0.0.1:8765/v1/stream", help="default: %(default)s"
    )
    parser.add_argument(
        "--roles",
        default="",
        metavar="ROLE[,ROLE]",
        help="who speaks on each channel: customer or agent; default: customers all",
    )
    parser.add_argument(
        "--realtime", action="store_true", help="send it at the pace of speech, not faster"
    )
    options = parser.parse_args()
    roles = options.roles.split(",") if options.roles else ()
    try:
        for event in recognize_file(
            options.url, options.path, roles=roles, realtime=options.realtime
        ):
            line = line_of(event)
            if line is not None:
                print(line, flush=True)
    except ClientError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
