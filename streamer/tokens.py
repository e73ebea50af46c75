"""Bearer tokens: what they open, and the file that keeps their digests.

Tokens are made here, 256 random bits each, and kept as SHA-256: whoever reads the file cannot use
it, and no slow hash is needed, because what is random cannot be guessed.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from streamer.errors import ConfigError

Scope: TypeAlias = Literal["send", "watch", "metrics", "admin"]
"""Send audio; read calls, live and kept; read ``/metrics``; delete calls. None holds another."""
SCOPES: tuple[Scope, ...] = get_args(Scope)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LINE = re.compile(r"(?P<name>\S+)\s+(?P<scopes>\S+)\s+sha256:(?P<digest>[0-9a-f]{64})")


@dataclass(frozen=True, kw_only=True)
class Token:
    """One line of a tokens file: whose it is, what it opens, its SHA-256.

    Raises:
        ConfigError: a name that logs cannot show, or scopes that there are not.
    """

    name: str
    scopes: frozenset[Scope]
    digest: bytes

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"token name {self.name!r}: expected 1 to 64 letters, digits, '.', '_' or '-'"
            )
        if not self.scopes or not self.scopes <= set(SCOPES):
            raise ConfigError(
                f"scopes {','.join(sorted(self.scopes))!r} of token {self.name}: expected one or "
                f"more of {', '.join(SCOPES)}"
            )


def new_token(name: str, scopes: Iterable[Scope]) -> tuple[str, str]:
    """Return a new token, to be told once, and its line for the tokens file.

    Raises:
        ConfigError: a bad name or scope.
    """
    text = "ser_" + secrets.token_urlsafe(32)
    token = Token(name=name, scopes=frozenset(scopes), digest=digest_of(text))
    in_order = ",".join(scope for scope in SCOPES if scope in token.scopes)
    return text, f"{name} {in_order} sha256:{token.digest.hex()}"


def load_tokens(path: Path) -> tuple[Token, ...]:
    """Return the tokens of a file: ``NAME SCOPE[,SCOPE] sha256:HEX`` a line, ``#`` for remarks.

    Raises:
        ConfigError: it cannot be read, holds none, or a line is not of this form; the message
            never repeats a line, which may hold a token.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"tokens file {path} cannot be read: {reason}") from None
    tokens: dict[str, Token] = {}
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        where = f"tokens file {path}, line {number}"
        found = _LINE.fullmatch(line)
        if found is None:
            raise ConfigError(f"{where}: expected a line that `ser-serve token NAME` has written")
        try:
            token = Token(
                name=found["name"],
                scopes=frozenset(found["scopes"].split(",")),  # type: ignore[arg-type]  # it checks
                digest=bytes.fromhex(found["digest"]),
            )
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        if token.name in tokens:
            raise ConfigError(f"{where}: a second token {token.name}: expected a name once")
        tokens[token.name] = token
    if not tokens:
        raise ConfigError(f"tokens file {path} holds none: expected one or more")
    return tuple(tokens.values())


def digest_of(text: str) -> bytes:
    """Return what is kept of a token: the SHA-256 of its UTF-8."""
    return hashlib.sha256(text.encode(errors="backslashreplace")).digest()
