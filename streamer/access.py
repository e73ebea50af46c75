"""Who may come in: bearer tokens with scopes, the origins of browsers, calls at once by token.

A token comes

* in ``Authorization: Bearer TOKEN`` (RFC 6750, section 2.1), the way for every program;
* in ``Sec-WebSocket-Protocol: bearer, TOKEN``, for pages: a browser's WebSocket sets no other
  header, and this one is kept out of logs as a URL is not. The server answers ``bearer``;
* in ``?token=TOKEN``, for telephony products that take a URL and nothing else. URLs are written to
  the logs of proxies and consoles, so such a token opens ``send`` alone: whoever finds one can add
  a call, and can read or delete none.

Sans-I/O but for :func:`reload_tokens`.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from streamer.dialects import Handshake
from streamer.errors import ConfigError
from streamer.tokens import Scope, Token, digest_of, load_tokens

SUBPROTOCOL = "bearer"

_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True)
class AccessConfig:
    """What an operator may choose beside the tokens.

    ``origins`` are those of pages that may connect, such as ``https://desk.example.org``; pages of
    this machine to a server on loopback, and pages that a server with tokens has served itself,
    need not be named. ``signed_paths`` are those whose peers sign their requests, and need no
    token. ``max_calls_per_token`` are going on at once.

    Raises:
        ConfigError: what is no origin, or a limit below 1.
    """

    origins: tuple[str, ...] = ()
    signed_paths: frozenset[str] = frozenset()
    max_calls_per_token: int | None = None

    def __post_init__(self) -> None:
        for origin in self.origins:
            if normal_origin(origin) is None:
                raise ConfigError(
                    f"origin {origin!r}: expected a scheme, a host and perhaps a port, such as "
                    "https://desk.example.org, and no path"
                )
        if self.max_calls_per_token is not None and self.max_calls_per_token < 1:
            raise ConfigError(f"max_calls_per_token {self.max_calls_per_token}: expected 1 or more")


@dataclass(frozen=True, kw_only=True)
class Grant:
    """The peer may. ``name`` is its token's, empty where none was needed.

    ``subprotocol`` is to be named when a WebSocket is accepted: browsers insist.
    """

    name: str = ""
    subprotocol: str | None = None


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """The peer may not: an HTTP status, a code for programs, a sentence that is safe to send."""

    status: int
    code: str
    message: str

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers that the status owes (RFC 9110, sections 11.6.1 and 10.2.3)."""
        if self.status == 401:
            return {"www-authenticate": 'Bearer realm="ser-stream"'}
        return {"retry-after": "10"} if self.status == 429 else {}


class Place:
    """One call's place among those of its token: to be closed when the call ends; twice is fine."""

    def __init__(self, name: str, num_taken: Counter[str]) -> None:
        self._name = name
        self._num_taken = num_taken
        self._is_open = True
        num_taken[name] += 1

    def close(self) -> None:
        """Give the place back."""
        if self._is_open:
            self._is_open = False
            self._num_taken[self._name] -= 1
            if not self._num_taken[self._name]:
                del self._num_taken[self._name]  # names without calls are not kept

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Access:
    """The doors of one server.

    Without tokens everything is open to this machine: then a request that names another host is
    refused, because a page elsewhere can have its own name lead here (DNS rebinding).

    Args:
        config: what the operator chose.
        tokens: who may come; see :mod:`streamer.tokens`.
    """

    def __init__(self, config: AccessConfig | None = None, tokens: Iterable[Token] = ()) -> None:
        self._config = config or AccessConfig()
        self._origins = {normal_origin(origin) for origin in self._config.origins}
        self._tokens = tuple(tokens)
        self._num_taken: Counter[str] = Counter()

    @property
    def has_tokens(self) -> bool:
        """Whether peers must bring one."""
        return bool(self._tokens)

    def replace_tokens(self, tokens: Sequence[Token]) -> None:
        """Take other tokens from now on; calls that are going on go on.

        Raises:
            ConfigError: none, where there were some: that would open the doors, not close them.
        """
        if self._tokens and not tokens:
            raise ConfigError(
                "no tokens: expected one or more, as the server was started with some"
            )
        self._tokens = tuple(tokens)

    def check(self, handshake: Handshake, scope: Scope) -> Grant | Refusal:
        """Say whether a request may do what it asks for.

        Args:
            handshake: of a WebSocket or any other request.
            scope: what it would do.
        """
        refusal = self._check_origin(handshake)
        if refusal is not None:
            return refusal
        if scope == "send" and handshake.path in self._config.signed_paths:
            return Grant()
        if not self._tokens:
            return self._check_host(handshake) or Grant()
        presented = _presented(handshake)
        if not presented:
            return Refusal(
                status=401,
                code="no_token",
                message="no token: expected one in Authorization: Bearer",
            )
        known = [(token, way) for text, way in presented if (token := self._find(text))]
        if not known:
            return Refusal(
                status=401,
                code="bad_token",
                message="a token that is not known: expected one that this server was told of",
            )
        token, way = known[0]
        if scope not in token.scopes:
            return _forbidden(
                "no_scope",
                f"the token {token.name} has no scope {scope}: expected one that has it",
            )
        if way == "query" and scope != "send":
            return _forbidden(
                "token_in_url",
                "a token in a URL opens sending alone, because URLs are logged: expected it in "
                "Authorization: Bearer",
            )
        return Grant(name=token.name, subprotocol=SUBPROTOCOL if way == "subprotocol" else None)

    def take_place(self, grant: Grant) -> Place | Refusal:
        """Count one more call of this token, until the place is closed, or say that it has enough.

        Calls of peers that need no token are not counted here.
        """
        limit = self._config.max_calls_per_token
        if grant.name and limit is not None and self._num_taken[grant.name] >= limit:
            return Refusal(
                status=429,
                code="token_busy",
                message=f"no room for a call of token {grant.name}, the limit is {limit}: expected "
                "another try after one has ended",
            )
        return Place(grant.name, self._num_taken)

    def num_calls(self, name: str) -> int:
        """Places that a token's calls hold now."""
        return self._num_taken.get(name, 0)

    def _find(self, text: str) -> Token | None:
        """Return the token, in a time that does not tell which one it is, or how near a guess."""
        digest = digest_of(text)
        found = None
        for token in self._tokens:
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found

    def _check_origin(self, handshake: Handshake) -> Refusal | None:
        """Refuse pages that nobody allowed; what is no browser sends no Origin (RFC 6455, 10.2)."""
        origin = handshake.header("origin")
        if origin is None:
            return None
        host = handshake.header("host") or ""
        page = normal_origin(origin)
        if page is not None:
            if page in self._origins:
                return None
            if is_loopback(urlsplit(page).hostname or "") and is_loopback(_host(host)):
                return None
            # The scheme is not compared: a proxy may have ended TLS.
            if self._tokens and urlsplit(origin).netloc.lower() == host.lower():
                return None
        return _forbidden(
            "bad_origin", "a page from elsewhere: expected an origin that this server allows"
        )

    def _check_host(self, handshake: Handshake) -> Refusal | None:
        host = handshake.header("host")
        if host is None or is_loopback(_host(host)):
            return None
        return _forbidden(
            "bad_host",
            "a server without tokens was called by a name that is not this machine's: expected "
            "localhost or 127.0.0.1",
        )


def reload_tokens(access: Access, path: Path) -> int:
    """Read the tokens file again, as on SIGHUP; return how many there are.

    Raises:
        ConfigError: it is faulty; who may come in is then what it was.
    """
    tokens = load_tokens(path)
    access.replace_tokens(tokens)
    return len(tokens)


def check_address(host: str, *, has_tokens: bool, has_tls: bool, is_behind_proxy: bool) -> None:
    """Refuse to listen where others could come in, or hear tokens pass by.

    Args:
        host: the name or address to listen on.
        has_tokens: whether peers must bring one.
        has_tls: whether the server has a certificate.
        is_behind_proxy: whether the operator said that a proxy with TLS stands before it.

    Raises:
        ConfigError: an address that others can reach, without tokens or in plain text.
    """
    if is_loopback(host):
        return
    if not has_tokens:
        raise ConfigError(
            f"host {host!r} can be reached by others: expected tokens (ser-serve token NAME >> "
            "FILE, then --tokens FILE), or a loopback address such as 127.0.0.1"
        )
    if not has_tls and not is_behind_proxy:
        raise ConfigError(
            f"host {host!r} can be reached by others, and tokens and audio would pass in plain "
            "text: expected --tls-cert and --tls-key, or --plaintext-behind-proxy where a proxy "
            "with TLS stands before this server and nobody else reaches it"
        )


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address can only be this machine's."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def normal_origin(text: str) -> str | None:
    """Return an origin as browsers write it (RFC 6454, section 6.2), None for what is none."""
    try:
        parts = urlsplit(text.lower())
        port = parts.port
    except ValueError:
        return None
    if not parts.scheme or not parts.hostname or parts.path or parts.query or parts.fragment:
        return None
    if parts.username is not None:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    is_default = port is None or port == _DEFAULT_PORTS.get(parts.scheme)
    return f"{parts.scheme}://{host}" + ("" if is_default else f":{port}")


def _presented(handshake: Handshake) -> list[tuple[str, str]]:
    """Return the tokens that a request brings, and how; what is meant for others may be first."""
    found: list[tuple[str, str]] = []
    authorization = handshake.header("authorization") or ""
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() == "bearer" and rest.strip():
        found.append((rest.strip(), "header"))
    offered = [
        word.strip()
        for name, value in handshake.headers
        if name == "sec-websocket-protocol"
        for word in value.split(",")
    ]
    if len(offered) >= 2 and offered[0].lower() == SUBPROTOCOL:
        found.append((offered[1], "subprotocol"))
    in_query = next((value for name, value in handshake.query if name == "token"), None)
    return found if in_query is None else [*found, (in_query, "query")]


def _host(text: str) -> str:
    """Return the name of a Host header, without its port."""
    try:
        return urlsplit(f"//{text}").hostname or ""
    except ValueError:
        return ""


def _forbidden(code: str, message: str) -> Refusal:
    return Refusal(status=403, code=code, message=message)
