"""The TOML file of a server: its keys are the flags' names, and a few tables are in it alone."""

from __future__ import annotations

import argparse
import difflib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from streamer.alerts import parse_rule
from streamer.dialects.registry import DialectSecrets
from streamer.errors import ConfigError, quoted
from streamer.webhook_config import WebhookTarget


def read_config(
    path: Path, add_options: Callable[[argparse.ArgumentParser], None]
) -> dict[str, Any]:
    """Return the options that a TOML file sets, by their names in ``ServeOptions``.

    Args:
        path: the file.
        add_options: adds to a parser all flags that the file may set.

    Raises:
        ConfigError: it cannot be read, or holds a key or a value that there is not.
    """
    try:
        settings = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}: expected TOML") from error
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8; endless digits, brackets
        raise ConfigError(f"{path} cannot be read: {error}: expected TOML") from error
    parser = _FileParser(argument_default=argparse.SUPPRESS, allow_abbrev=False, add_help=False)
    add_options(parser)
    try:
        tables: dict[str, Any] = {}
        if "alert" in settings:
            tables["alerts"] = [parse_rule(table) for table in _tables(settings, "alert")]
        if "webhook" in settings:
            tables["webhooks"] = [_webhook(table) for table in _tables(settings, "webhook")]
        if "secrets" in settings:
            tables["secrets"] = _secrets(settings.pop("secrets"))
        words = [word for key, value in settings.items() for word in _words(parser, key, value)]
        return tables | vars(parser.parse_args(words))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


class _FileParser(argparse.ArgumentParser):
    """Reads a file's settings as the flags that they stand for; the file is told of its faults."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message.replace("argument --", ""))

    def flag(self, key: str) -> argparse.Action:
        """Return a key's flag."""
        actions = self._option_string_actions
        if f"--{key}" in actions:
            return actions[f"--{key}"]
        known = [name.removeprefix("--") for name in actions] + ["secrets", "webhook"]
        near = difflib.get_close_matches(key.replace("_", "-"), known, n=1)
        raise ConfigError(
            f"unknown key {key!r}: expected "
            + (f"{near[0]!r}, perhaps" if near else "the name of a flag, as ser-serve --help says")
        )


def _words(parser: _FileParser, key: str, value: object) -> list[str]:
    """Return a setting as it would stand on a command line."""
    action = parser.flag(key)
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ConfigError(f"{key} is {quoted(value)}: expected true or false")
        if value:
            return [f"--{key}"]
        # What can be said in the negative is, so that false also stands for itself.
        return [f"--no-{key}"] if f"--no-{key}" in action.option_strings else []
    is_list = type(action).__name__ == "_AppendAction"
    values = value if is_list and isinstance(value, list) else [value]
    for one in values:
        is_long = isinstance(one, int) and one.bit_length() > 63  # more than TOML promises to hold
        if isinstance(one, bool) or is_long or not isinstance(one, str | int | float):
            raise ConfigError(f"{key} is {quoted(one)}: expected text or a number")
    return [f"--{key}={one}" for one in values]


def _tables(settings: dict[str, Any], key: str) -> list[Mapping[str, object]]:
    """Take the tables ``[[key]]`` out of the settings."""
    tables = settings.pop(key)
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{key}: expected tables, each under [[{key}]]")
    return tables


def _webhook(table: Mapping[str, object]) -> WebhookTarget:
    unknown = sorted(set(table) - {"url", "secret", "events"})
    if unknown or not {"url", "secret"} <= set(table):
        found = f"key {unknown[0]!r}" if unknown else "no url or no secret"
        raise ConfigError(f"webhook with {found}: expected url and secret, and perhaps events")
    events = table.get("events", ["alert"])
    if not isinstance(events, list) or not all(isinstance(event, str) for event in events):
        raise ConfigError(f"webhook events {quoted(events)}: expected a list of texts")
    return WebhookTarget(
        url=_secret("webhook url", table["url"]),  # its path may be one
        secret=_secret("webhook secret", table["secret"]),
        events=tuple(events),
    )


def _secrets(table: object) -> DialectSecrets:
    names = {_key(item.name): item.name for item in fields(DialectSecrets)}
    if not isinstance(table, dict):
        raise ConfigError("secrets: expected a table, under [secrets]")
    for key in table:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1) or list(names)
            raise ConfigError(f"unknown secret {key!r}: expected {', '.join(near)}")
    return DialectSecrets(**{names[key]: _secret(key, value) for key, value in table.items()})


def _secret(what: str, value: object) -> str:
    """Return a secret that stands in the file, or in a file of its own; never say it."""
    if isinstance(value, dict) and set(value) == {"file"} and isinstance(value["file"], str):
        try:
            value = Path(value["file"]).read_text("utf-8").strip()
        except OSError as error:
            raise ConfigError(f"{what} cannot be read: {error}: expected a file") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{what} is not UTF-8: expected text") from error
    if not isinstance(value, str) or not value:
        raise ConfigError(f'{what}: expected text, or {{ file = "PATH" }} of a file that has some')
    return value


def _key(name: str) -> str:
    return name.replace("_", "-")
