"""``ser-serve check``: what a server would do with these options, in plain words, and what not."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from streamer.access import is_loopback
from streamer.alerts import AlertRule, check_labels
from streamer.dialects.registry import PATHS
from streamer.errors import ConfigError, SerStreamError
from streamer.kept import KeptFile
from streamer.model import Model
from streamer.server_options import ServeOptions
from streamer.tls import tls_context
from streamer.tokens import load_tokens


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a server would do, what its operator should know, and why it would not start."""

    facts: tuple[str, ...]
    warnings: tuple[str, ...]
    faults: tuple[str, ...]

    def __str__(self) -> str:
        lines = ["ser-serve would:", *(f"  {fact}" for fact in self.facts)]
        for title, found in (("warnings:", self.warnings), ("it would not start:", self.faults)):
            lines += ["", title, *(f"  {line}" for line in found)] if found else []
        return "\n".join(lines)


def check(options: ServeOptions) -> Report:
    """Try everything that the options name, without serving; nothing is left behind.

    Sections that fail are faults; the others are told all the same.
    """
    facts: list[str] = []
    warnings: list[str] = []
    faults: list[str] = []
    sections: tuple[Callable[[ServeOptions], Iterator[str]], ...] = (
        _address, _doors, _model, _analysis, _results, _alerts, _limits,
    )  # fmt: skip
    for section in sections:
        try:
            for line in section(options):
                (warnings if line.startswith(_WARNING) else facts).append(
                    line.removeprefix(_WARNING)
                )
        except SerStreamError as error:
            faults.append(str(error))
    return Report(facts=tuple(facts), warnings=tuple(warnings), faults=tuple(faults))


_WARNING = "warning: "


def _address(options: ServeOptions) -> Iterator[str]:
    where = f"listen on {options.host} port {options.port}, {options.url}"
    if options.tls_cert is not None and options.tls_key is not None:
        tls_context(options.tls_cert, options.tls_key)
        yield f"{where}: with TLS, its certificate from {options.tls_cert}"
        if options.tls_key.stat().st_mode & stat.S_IRWXO:
            yield f"{_WARNING}everybody here can read {options.tls_key}: chmod o= it"
    elif is_loopback(options.host):
        yield f"{where}: without TLS, for programs of this machine alone"
    else:
        yield f"{where}: without TLS, for a proxy that has it"
        yield (
            f"{_WARNING}tokens and audio pass in plain text between the proxy and this server: "
            "nobody else may reach the port"
        )
    yield f"take calls at {', '.join(PATHS)}"
    if not 0 <= options.port <= 65535:
        return  # among the limits this is said
    try:
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        socket.create_server((options.host, options.port), family=family).close()
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            yield f"{_WARNING}port {options.port} is taken now, perhaps by this server itself"
            return
        raise ConfigError(
            f"cannot listen on {options.host} port {options.port}: {error}: expected an address "
            "of this machine, and a port that this user may take"
        ) from error


def _doors(options: ServeOptions) -> Iterator[str]:
    access = options.access()
    if options.tokens is None:
        yield "let in every program of this machine, without a token"
    else:
        tokens = load_tokens(options.tokens)
        told = (f"{token.name} ({', '.join(sorted(token.scopes))})" for token in tokens)
        yield f"let in whoever has one of {len(tokens)} tokens: {', '.join(told)}"
        if options.tokens.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            yield f"{_WARNING}others than its owner can write {options.tokens}: chmod go-w it"
    if access.signed_paths:
        yield f"take signed requests alone at {', '.join(sorted(access.signed_paths))}, no token"
    pages = [*access.origins]
    if is_loopback(options.host):
        pages.append("pages of this machine")
    if options.tokens is not None:
        pages.append("its own pages")
    yield f"let pages of browsers in from: {', '.join(pages)}"


def _model(options: ServeOptions) -> Iterator[str]:
    card = Model.load(options.model, provider=options.provider).card
    yield f"score with the model {card.name}: {', '.join(card.labels)}; {card.licence}"
    check_labels(options.alerts, card.labels)


def _analysis(options: ServeOptions) -> Iterator[str]:
    if options.analyse_agents:
        yield "infer the emotion of customers and of agents"
        yield (
            f"{_WARNING}agents are people at work: the EU forbids inferring their emotions (AI "
            "Act, Article 5(1)(f)), medical and safety uses apart"
        )
    else:
        yield "infer the emotion of customers; of agents only when they speak"
    yield f"score every {options.step_ms} ms of speech"


def _results(options: ServeOptions) -> Iterator[str]:
    if options.store is None:
        yield "keep nothing: what is heard is told to those who are connected, and forgotten"
        return
    options.kept()
    _check_store(options.store)
    yield (
        f"keep events and summaries, never audio, in {options.store}, until "
        f"{options.retention_days:g} days after a call's end"
    )


def _check_store(path: Path) -> None:
    """Refuse a path that no store can be at; make none."""
    if path.exists():
        KeptFile(path).open().close()
    elif not path.parent.is_dir():
        raise ConfigError(f"store {path}: {path.parent} is no folder: expected one that is there")
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"store {path}: {path.parent} cannot be written: expected that it can")


def _alerts(options: ServeOptions) -> Iterator[str]:
    for rule in options.alerts:
        yield f"alert {rule.name}: {_words(rule)}"
    for target in options.webhooks:
        yield f"post {', '.join(target.events)} to {target.host}, signed"


def _words(rule: AlertRule) -> str:
    whose = "anybody" if rule.role is None else f"{rule.role}s"
    return (
        f"when {whose} score {rule.label} {rule.probability:g} or more for {rule.duration_s:g} s, "
        f"not again within {rule.cooldown_s:g} s"
    )


def _limits(options: ServeOptions) -> Iterator[str]:
    options.server()
    of_token = options.max_calls_per_token
    yield (
        f"hear {options.max_calls} calls at once"
        + ("" if of_token is None else f", {of_token} of one token")
        + f", in messages of up to {options.max_message_bytes} bytes"
    )
    yield (
        f"give up a peer that is no WebSocket after {options.handshake_timeout_s:g} s, sends no "
        f"audio for {options.idle_timeout_s:g} s, or reads nothing for {options.send_timeout_s:g} s"
    )
    yield f"let a peer that was cut off come back within {options.resume_timeout_s:g} s"
    yield f"end all calls within {options.drain_timeout_s:g} s when it is told to stop"
