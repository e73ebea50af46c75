"""What ``ser-serve`` can be told: flags, and a TOML file of the same names; a flag beats the file.

What is secret is only in files: a command line is shown to everybody by ``ps``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from streamer import __version__
from streamer.access import AccessConfig, check_address
from streamer.alerts import AlertRule, check_rules, parse_rule
from streamer.dialects.registry import PATHS, DialectSecrets, dialect_name
from streamer.errors import ConfigError
from streamer.logs import LogFormat, LogLevel
from streamer.model import Provider
from streamer.options import step_ms
from streamer.server import ServerConfig
from streamer.server_file import read_config
from streamer.session import SessionConfig
from streamer.store import StoreConfig
from streamer.tokens import SCOPES
from streamer.webhook_config import WebhooksConfig, WebhookTarget

_DESCRIPTION = """\
Serve calls: a WebSocket takes audio and gives events. /healthz and /readyz
tell how the server is, /metrics what it does."""

_EPILOG = """\
commands:
  ser-serve check [options]       say what these options would do, or why not
  ser-serve token NAME --scope S  make a token; --help tells more

examples:
  ser-serve
  ser-serve --port 9000 --max-calls 50 --no-store
  ser-serve check --config server.toml && ser-serve --config server.toml

exit codes:
  0  stopped by Ctrl-C or SIGTERM; check: all is well
  1  the address cannot be listened on, or the server failed
  2  usage, configuration or the model

configuration:
  The file of --config holds every option by the name of its flag:
  max-calls = 50, analyse-agents = false, origin = ["https://desk.example.org"].
  In it alone: [secrets] of dialects, and [[webhook]] with url, secret, events;
  a secret is text or { file = "PATH" }.
  SIGHUP reads the tokens and the certificate again.

agents:
  Their emotion is not inferred unless you say --analyse-agents, which the EU
  forbids for people at work: see ser-stream --help."""

_TOKEN_EPILOG = """\
The token is shown once, on standard error; its line for the tokens file goes to
standard output and holds only a digest:

  ser-serve token pbx --scope send >> /etc/ser-stream/tokens

scopes:
  send     send audio, and read what is heard in it
  watch    read all calls, live and kept
  metrics  read /metrics
  admin    delete kept calls"""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Everything that an operator chose; defaults are the server's.

    ``store`` is None where nothing is kept. ``max_calls_per_token`` of None is no limit.

    Raises:
        ConfigError: options that contradict each other, or would let others in.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    tls_cert: Path | None = None
    tls_key: Path | None = None
    plaintext_behind_proxy: bool = False
    tokens: Path | None = None
    origins: tuple[str, ...] = ()
    max_calls: int = 200
    max_calls_per_token: int | None = None
    max_message_bytes: int = 2**20
    handshake_timeout_s: float = 10.0
    idle_timeout_s: float = 60.0
    send_timeout_s: float = 30.0
    resume_timeout_s: float = 60.0
    drain_timeout_s: float = 10.0
    store: Path | None = Path("ser-stream.db")
    retention_days: float = 30.0
    alerts: tuple[AlertRule, ...] = ()
    webhooks: tuple[WebhookTarget, ...] = ()
    secrets: DialectSecrets = field(default_factory=DialectSecrets, repr=False)
    analyse_agents: bool = False
    step_ms: int = 250
    model: str | None = None
    provider: Provider = "auto"
    log_format: LogFormat = "text"
    log_level: LogLevel = "info"

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("one of tls-cert and tls-key alone: expected both, or neither")
        check_address(
            self.host,
            has_tokens=self.tokens is not None,
            has_tls=self.tls_cert is not None,
            is_behind_proxy=self.plaintext_behind_proxy,
        )
        check_rules(self.alerts, analyse_agents=self.analyse_agents)
        if not self.alerts and any(target.events == ("alert",) for target in self.webhooks):
            raise ConfigError("a webhook for alerts, but no alert: expected one or more")
        self.access()

    @property
    def url(self) -> str:
        """Where clients find the native path."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'ws' if self.tls_cert is None else 'wss'}://{host}:{self.port}/v1/stream"

    def access(self) -> AccessConfig:
        """Return what the doors are to be told.

        Raises:
            ConfigError: an origin that is none, or half of a dialect's secrets.
        """
        return AccessConfig(
            origins=self.origins,
            signed_paths=signed_paths(self.secrets),
            max_calls_per_token=self.max_calls_per_token,
        )

    def server(self) -> ServerConfig:
        """Return what the server is to be told.

        Raises:
            ConfigError: a value outside its range.
        """
        return ServerConfig(
            host=self.host,
            port=self.port,
            tokens=self.tokens,
            access=self.access(),
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
            plaintext_behind_proxy=self.plaintext_behind_proxy,
            session=SessionConfig(step_s=self.step_ms / 1000),
            analyse_agents=self.analyse_agents,
            max_calls=self.max_calls,
            max_connections=max(ServerConfig.max_connections, 5 * self.max_calls),
            max_message_bytes=self.max_message_bytes,
            handshake_timeout_s=self.handshake_timeout_s,
            idle_timeout_s=self.idle_timeout_s,
            send_timeout_s=self.send_timeout_s,
            resume_timeout_s=self.resume_timeout_s,
            alerts=self.alerts,
            secrets=self.secrets,
            drain_timeout_s=self.drain_timeout_s,
            store=self.kept(),
            webhooks=WebhooksConfig(targets=self.webhooks),
        )

    def kept(self) -> StoreConfig | None:
        """Return how calls are kept, None where they are not.

        Raises:
            ConfigError: a value outside its range.
        """
        if self.store is None:
            return None
        return StoreConfig(
            path=self.store,
            retention_days=self.retention_days,
            resume_timeout_s=self.resume_timeout_s,
        )


def signed_paths(secrets: DialectSecrets) -> frozenset[str]:
    """Return the paths whose peers must sign, and therefore need no token.

    Raises:
        ConfigError: a dialect with some of its secrets, but not all.
    """
    by_dialect: dict[str, dict[str, bool]] = {}
    for item in fields(secrets):
        dialect = item.name.partition("_")[0]
        by_dialect.setdefault(dialect, {})[item.name] = bool(getattr(secrets, item.name))
    for given in by_dialect.values():
        if any(given.values()) and not all(given.values()):
            missing = ", ".join(
                name.replace("_", "-") for name, is_given in given.items() if not is_given
            )
            raise ConfigError(f"secrets without {missing}: expected all of a dialect, or none")
    return frozenset(
        path for path in PATHS if all(by_dialect.get(dialect_name(path), {"": False}).values())
    )


def serve_options(arguments: Sequence[str], command: str = "ser-serve") -> ServeOptions:
    """Return the options of ``ser-serve`` or ``ser-serve check``.

    Raises:
        ConfigError: a file that cannot be read or says what it may not, or bad options.
        SystemExit: from argparse, with 2 for usage and 0 for ``--help`` and ``--version``.
    """
    parser = argparse.ArgumentParser(
        prog=command,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ser-serve {__version__}")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a TOML file; see below")
    add_options(parser)
    given = vars(parser.parse_args(arguments))
    path = given.pop("config", None)
    from_file = {} if path is None else read_config(path, add_options)
    chosen: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in (from_file | given).items()
    }
    return ServeOptions(**chosen)


def token_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Return ``name`` and ``scopes`` of ``ser-serve token``; argparse's way out is SystemExit."""
    parser = argparse.ArgumentParser(
        prog="ser-serve token",
        description="Make a token: for one peer, to be handed to nobody else.",
        epilog=_TOKEN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="whose it is, as logs will say")
    parser.add_argument(
        "--scope",
        dest="scopes",
        action="append",
        choices=SCOPES,
        required=True,
        help="what it opens; more than once for more",
    )
    return parser.parse_args(arguments)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add every flag that is also a key of the file."""
    _add_address(parser)
    _add_limits(parser)
    results = parser.add_argument_group("results")
    store = results.add_mutually_exclusive_group()
    default = ServeOptions
    store.add_argument(
        "--store", type=Path, metavar="FILE", help=f"keeps events; default: {default.store}"
    )
    store.add_argument(
        "--no-store", dest="store", action="store_const", const=None, help="keep nothing"
    )
    results.add_argument(
        "--retention-days",
        type=float,
        metavar="DAYS",
        help=f"ended calls are kept; default: {default.retention_days:g}",
    )
    results.add_argument(
        "--alert",
        dest="alerts",
        action="append",
        type=_rule,
        metavar="RULE",
        help='tell when "name=angry10 label=angry probability=0.7 duration=10"',
    )
    analysis = parser.add_argument_group("analysis")
    analysis.add_argument(
        "--analyse-agents",
        action=argparse.BooleanOptionalAction,
        help="infer agents' emotion, too; see below",
    )
    analysis.add_argument(
        "--step-ms",
        type=step_ms,
        metavar="MS",
        help=f"between two scores, a multiple of 10; default: {default.step_ms}",
    )
    analysis.add_argument(
        "--model", metavar="NAME", help="an ONNX file with a card, or the name of a shipped model"
    )
    _add_choice(analysis, "--provider", get_args(Provider), default.provider)
    log = parser.add_argument_group("log, on standard error")
    _add_choice(log, "--log-format", get_args(LogFormat), default.log_format)
    _add_choice(log, "--log-level", get_args(LogLevel), default.log_level)


def _add_address(parser: argparse.ArgumentParser) -> None:
    address = parser.add_argument_group("address and doors")
    address.add_argument("--host", help=f"default: {ServeOptions.host}")
    address.add_argument("--port", type=int, help=f"default: {ServeOptions.port}")
    address.add_argument("--tls-cert", type=Path, metavar="FILE", help="chain of certificates, PEM")
    address.add_argument("--tls-key", type=Path, metavar="FILE", help="its key, PEM")
    address.add_argument(
        "--plaintext-behind-proxy",
        action=argparse.BooleanOptionalAction,
        help="serve others without TLS, as a proxy before this server has it",
    )
    address.add_argument("--tokens", type=Path, metavar="FILE", help="who may come in")
    address.add_argument(
        "--origin",
        dest="origins",
        action="append",
        metavar="ORIGIN",
        help="pages that may connect, such as https://desk.example.org",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    limits = parser.add_argument_group("limits")
    for flag, kind, what in (
        ("--max-calls", int, "at once"),
        ("--max-calls-per-token", int, "at once, of one token"),
        ("--max-message-bytes", int, "of one message"),
        ("--handshake-timeout-s", float, "to become a WebSocket"),
        ("--idle-timeout-s", float, "without audio"),
        ("--send-timeout-s", float, "for a peer that does not read"),
        ("--resume-timeout-s", float, "for a peer that was cut off to come back"),
        ("--drain-timeout-s", float, "for calls to end when the server stops"),
    ):
        default = getattr(ServeOptions, flag[2:].replace("-", "_"))
        said = "none" if default is None else f"{default:g}" if kind is float else default
        limits.add_argument(
            flag,
            type=kind,
            metavar="SECONDS" if kind is float else "N",
            help=f"{what}; default: {said}",
        )


def _add_choice(group: Any, flag: str, choices: tuple[str, ...], default: str) -> None:
    group.add_argument(flag, choices=choices, help=f"default: {default}")


def _rule(text: str) -> AlertRule:
    try:
        return parse_rule(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
