"""Which path speaks which dialect."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from streamer.dialects import Dialect, Handshake
from streamer.dialects.exotel import ExotelDialect
from streamer.dialects.genesys import GenesysDialect
from streamer.dialects.native import NativeDialect
from streamer.dialects.plivo import PlivoDialect
from streamer.dialects.telnyx import TelnyxDialect
from streamer.dialects.twilio import TwilioDialect
from streamer.dialects.vonage import VonageDialect
from streamer.dialects.vosk import VoskDialect
from streamer.errors import ConfigError

NATIVE_PATH = "/v1/stream"


@dataclass(frozen=True, kw_only=True)
class DialectSecrets:
    """What an operator shares with the peers' companies, to know their signatures.

    A secret that is empty is not checked: allowed on loopback alone.

    Raises:
        ConfigError: Genesys' client secret is not base64.
    """

    twilio_auth_token: str = ""
    telnyx_auth_token: str = ""
    genesys_api_key: str = ""
    genesys_client_secret: str = ""
    vonage_signature_secret: str = ""

    def __post_init__(self) -> None:
        try:
            base64.b64decode(self.genesys_client_secret, validate=True)
        except ValueError as error:
            raise ConfigError(
                f"genesys-client-secret: {error}: expected base64, as Genesys shows it"
            ) from error


_Make: TypeAlias = Callable[[Handshake, int, DialectSecrets], Dialect]


def _twilio(handshake: Handshake, step_ms: int, secrets: DialectSecrets) -> Dialect:
    token = secrets.twilio_auth_token
    return TwilioDialect(handshake, min_step_ms=step_ms, auth_token=token)


def _telnyx(handshake: Handshake, step_ms: int, secrets: DialectSecrets) -> Dialect:
    token = secrets.telnyx_auth_token
    return TelnyxDialect(handshake, min_step_ms=step_ms, auth_token=token)


def _vonage(handshake: Handshake, step_ms: int, secrets: DialectSecrets) -> Dialect:
    secret = secrets.vonage_signature_secret
    return VonageDialect(handshake, min_step_ms=step_ms, signature_secret=secret)


def _genesys(handshake: Handshake, step_ms: int, secrets: DialectSecrets) -> Dialect:
    return GenesysDialect(
        handshake,
        min_step_ms=step_ms,
        api_key=secrets.genesys_api_key,
        client_secret=secrets.genesys_client_secret,
    )


_DIALECTS: dict[str, _Make] = {
    NATIVE_PATH: lambda asked, step_ms, _: NativeDialect(asked, min_step_ms=step_ms),
    "/twilio": _twilio,
    "/telnyx": _telnyx,
    "/plivo": lambda asked, step_ms, _: PlivoDialect(asked, min_step_ms=step_ms),
    "/exotel": lambda asked, step_ms, _: ExotelDialect(asked, min_step_ms=step_ms),
    "/vonage": _vonage,
    "/genesys": _genesys,
    "/vosk": lambda asked, step_ms, _: VoskDialect(asked, min_step_ms=step_ms),
}

PATHS = tuple(_DIALECTS)
"""All paths that a WebSocket may ask for."""


def dialect_name(path: str) -> str:
    """Return what the dialect of one of the paths is called."""
    return "native" if path == NATIVE_PATH else path.removeprefix("/")


def make_dialect(
    handshake: Handshake, *, min_step_ms: int, secrets: DialectSecrets | None = None
) -> Dialect:
    """Return a new dialect for a connection to one of the paths.

    Raises:
        PeerError: the handshake does not say what it must: its signature, its query.
    """
    make = _DIALECTS[handshake.path]
    return make(handshake, min_step_ms, secrets or DialectSecrets())
