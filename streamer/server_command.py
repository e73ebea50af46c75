"""The command ``ser-serve``: serve, or check, or make a token."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from streamer.errors import SerStreamError
from streamer.logs import configure
from streamer.server import serve
from streamer.server_check import check
from streamer.server_options import serve_options, token_options
from streamer.terminal import printable
from streamer.tokens import new_token

_EXIT_FINE, _EXIT_USAGE = 0, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``ser-serve``; return its exit code.

    Raises:
        SystemExit: from argparse, with 2 for usage and 0 for ``--help`` and ``--version``.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words[:1] == ["check"]:
            return _check(words[1:])
        if words[:1] == ["token"]:
            return _make_token(words[1:])
        options = serve_options(words)
        configure(format=options.log_format, level=options.log_level)
        model = None if options.model is None else Path(options.model)
        return serve(options.server(), model, options.provider)
    except SerStreamError as error:
        print(f"ser-serve: error: {printable(str(error))}", file=sys.stderr)
        return _EXIT_USAGE


def _check(words: Sequence[str]) -> int:
    report = check(serve_options(words, "ser-serve check"))
    print(str(report), flush=True)
    return _EXIT_USAGE if report.faults else _EXIT_FINE


def _make_token(words: Sequence[str]) -> int:
    """Show the token to the person, and write its line to where their shell sends it."""
    options = token_options(words)
    token, line = new_token(options.name, options.scopes)
    print(f"{token}\n(the token of {options.name}: it is not shown again)", file=sys.stderr)
    print(line, flush=True)
    return _EXIT_FINE
