"""Whether a peer is who it says: HTTP message signatures and signed bearer tokens.

Pure functions over what the request said and the time it is: no clock, no state. So a request that
somebody recorded is good again for as long as its signature is young; only TLS keeps it from being
recorded. Whatever is wrong is a :class:`PeerError` with code ``unauthorized``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
from msgspec import UNSET, Struct

from streamer.dialects import Handshake, PeerError
from streamer.errors import ConfigError

MAX_AGE_S = 60.0
"""How old a signature may be; connecting takes seconds."""
MAX_SKEW_S = 5.0
"""How far the signer's clock may be ahead of ours."""

AUDIOHOOK_SIGNED = (
    "@request-target",
    "@authority",
    "audiohook-organization-id",
    "audiohook-session-id",
    "audiohook-correlation-id",
    "x-api-key",
)
"""What Genesys Cloud signs of its request, and must have."""

_MAX_FIELD = 4096
"""Characters of a header that is parsed here."""

# RFC 8941, sections 3.1.1 to 3.3.5, without what no signature parameter needs: escapes in strings,
# decimals, tokens.
_STRING = r'"[\x20-\x21\x23-\x5b\x5d-\x7e]*"'
_KEY = r"[a-z*][a-z0-9_.*-]*"
_PARAMETERS = rf"(?:; *{_KEY}=(?:{_STRING}|-?[0-9]{{1,15}}))*"
_INPUT_MEMBER = re.compile(rf"({_KEY})=\( *((?:{_STRING}(?: +{_STRING})*)?) *\)({_PARAMETERS})")
_SIGNATURE_MEMBER = re.compile(rf"({_KEY})=:([A-Za-z0-9+/=]*):")
_PARAMETER = re.compile(rf"; *({_KEY})=({_STRING}|-?[0-9]{{1,15}})")
_SEPARATOR = re.compile(r"[ \t]*,[ \t]*")


@dataclass(frozen=True, kw_only=True)
class MessageSignature:
    """One signature of a request, as its two headers say (RFC 9421, section 4).

    ``components`` are the names of what was signed, in order; ``parameters`` text or whole numbers.
    """

    components: tuple[str, ...]
    parameters: tuple[tuple[str, str | int], ...]
    signature: bytes

    def parameter(self, name: str) -> str | int | None:
        """Return a parameter's value."""
        return dict(self.parameters).get(name)

    def base(self, value_of: Callable[[str], str]) -> bytes:
        """Return the bytes that were signed (RFC 9421, section 2.5)."""
        lines = [f'"{name}": {value_of(name)}' for name in self.components]
        names = " ".join(f'"{name}"' for name in self.components)
        parameters = "".join(
            f';{name}="{value}"' if isinstance(value, str) else f";{name}={value}"
            for name, value in self.parameters
        )
        lines.append(f'"@signature-params": ({names}){parameters}')
        return "\n".join(lines).encode("utf-8", "surrogatepass")


def read_message_signature(signature_input: str | None, signature: str | None) -> MessageSignature:
    """Return the first signature that ``Signature-Input`` and ``Signature`` tell of.

    Raises:
        PeerError: there is none, a header cannot be read, or the two do not belong together.
    """
    if signature_input is None or signature is None:
        raise unauthorized("no Signature and Signature-Input headers: expected a signed request")
    label, names, parameters = _members("Signature-Input", _INPUT_MEMBER, signature_input)[0]
    signatures = _members("Signature", _SIGNATURE_MEMBER, signature)
    value = next((value for key, value in signatures if key == label), None)
    if value is None:
        raise unauthorized(f"Signature has no {label!r}: expected the label of Signature-Input")
    components = tuple(name[1:-1] for name in re.findall(_STRING, names))
    if len(set(components)) < len(components):
        raise unauthorized("Signature-Input names a component twice: expected each once")
    found = tuple((name, _value(value)) for name, value in _PARAMETER.findall(parameters))
    if len(dict(found)) < len(found):
        raise unauthorized("Signature-Input has a parameter twice: expected each once")
    return MessageSignature(components=components, parameters=found, signature=_from_base64(value))


def check_message_signature(
    signature: MessageSignature,
    value_of: Callable[[str], str | None],
    *,
    key: bytes,
    required: Sequence[str],
    now_s: float,
    max_age_s: float = MAX_AGE_S,
) -> None:
    """Check an HTTP message signature, hmac-sha256 (RFC 9421, sections 3.2 and 3.3.3).

    Args:
        signature: as the request's headers say.
        value_of: the value of a signed component: a header in lower case, or ``@authority`` and
            the like; None where the request has none.
        key: the shared secret.
        required: what must have been signed.
        now_s: seconds since 1970, UTC.
        max_age_s: how long ago it may have been made.

    Raises:
        PeerError: another algorithm, too little signed, too old or of the future, or not by
            whoever has the key.
    """
    algorithm = signature.parameter("alg")
    if algorithm not in (None, "hmac-sha256"):
        raise unauthorized(f"a signature by {algorithm!r}: expected 'hmac-sha256'")
    missing = [name for name in required if name not in signature.components]
    if missing:
        raise unauthorized(f"a signature that leaves out {', '.join(missing)}: expected it signed")
    _check_time(signature.parameter("created"), signature.parameter("expires"), now_s, max_age_s)

    def present(name: str) -> str:
        value = value_of(name)
        if value is None:
            raise unauthorized(f"a signature over {name!r}, which the request lacks: expected it")
        return value.strip(" \t")

    expected = hmac.digest(key, signature.base(present), hashlib.sha256)
    if not hmac.compare_digest(expected, signature.signature):
        raise unauthorized("a signature that does not match: expected one by the shared secret")


class _JwtHeader(Struct, frozen=True):
    alg: str
    crit: Any = UNSET


class _JwtClaims(Struct, frozen=True):
    iat: float
    exp: float | None = None
    nbf: float | None = None


_jwt_header: msgspec.json.Decoder[_JwtHeader] = msgspec.json.Decoder(_JwtHeader)
_jwt_claims: msgspec.json.Decoder[_JwtClaims] = msgspec.json.Decoder(_JwtClaims)


def check_bearer_jwt(
    authorization: str | None, *, key: bytes, now_s: float, max_age_s: float = MAX_AGE_S
) -> None:
    """Check the ``Authorization: Bearer`` token of a request, a JWT (RFC 7519) signed by HS256.

    HS256 whatever the token says: a token that names another algorithm, or extensions that must be
    understood (``crit``, RFC 7515, section 4.1.11), is refused. ``iat`` must be there.

    Raises:
        PeerError: no token, not a JWT, too old or of the future, or not by whoever has the key.
    """
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or len(token) > _MAX_FIELD:
        raise unauthorized("no bearer token: expected Authorization: Bearer with a signed JWT")
    parts = token.strip(" ").split(".")
    if len(parts) != 3:
        raise unauthorized(f"a bearer token of {len(parts)} parts: expected a JWT, of 3")
    signed = f"{parts[0]}.{parts[1]}".encode("utf-8", "surrogatepass")
    expected = hmac.digest(key, signed, hashlib.sha256)
    if not hmac.compare_digest(expected, _from_base64url(parts[2])):
        raise unauthorized("a JWT that does not match: expected one signed by the shared secret")
    try:
        header = _jwt_header.decode(_from_base64url(parts[0]))
        claims = _jwt_claims.decode(_from_base64url(parts[1]))
    except (ValueError, RecursionError) as error:
        raise unauthorized(f"a JWT that cannot be read ({error}): expected its claims") from error
    if header.alg != "HS256" or header.crit is not UNSET:
        raise unauthorized(f"a JWT by {header.alg!r}: expected 'HS256', without extensions")
    if claims.nbf is not None and claims.nbf > now_s + MAX_SKEW_S:
        raise unauthorized("a JWT that is not valid yet: expected nbf in the past")
    _check_time(claims.iat, claims.exp, now_s, max_age_s)


def check_audiohook(
    handshake: Handshake, *, api_key: str, client_secret: str, now_s: float
) -> None:
    """Check that a request for a WebSocket is by the AudioHook integration that has these secrets.

    Args:
        handshake: the request.
        api_key: what its ``X-API-KEY`` must say; unchecked where it is empty.
        client_secret: in base64, what it must be signed with; unchecked where it is empty.
        now_s: seconds since 1970, UTC.

    Raises:
        PeerError: the key or the signature is not there or not good.
        ConfigError: a client secret that is not base64.
    """
    found = handshake.header("x-api-key")
    if api_key:
        check_key(found, api_key, "X-API-KEY")
    if not client_secret:
        return
    try:
        key = base64.b64decode(client_secret, validate=True)
    except ValueError as error:
        raise ConfigError("a client secret that is not base64: expected it as Genesys") from error
    signature = read_message_signature(
        handshake.header("signature-input"), handshake.header("signature")
    )
    keyid = signature.parameter("keyid")
    if not isinstance(keyid, str) or keyid != found:
        raise unauthorized("a signature whose keyid is not the X-API-KEY: expected the same")

    def value_of(name: str) -> str | None:
        match name:
            case "@request-target":
                return _target(handshake)
            case "@authority":
                return (handshake.header("host") or "").lower().removesuffix(":443") or None
            case _:
                return handshake.header(name)

    check_message_signature(signature, value_of, key=key, required=AUDIOHOOK_SIGNED, now_s=now_s)


def _target(handshake: Handshake) -> str:
    """Return the path and query as they were sent, or what can be told of them by their parts."""
    if handshake.target:
        return handshake.target
    query = urlencode(handshake.query, quote_via=quote, errors="replace")
    return quote(handshake.path, safe="/:@!$&'()*+,;=~") + (f"?{query}" if query else "")


def check_key(found: str | None, expected: str, name: str) -> None:
    """Check a secret that a header says, in a time that does not tell where it differs.

    Raises:
        PeerError: it is not there, or another.
    """
    if found is None or not hmac.compare_digest(_bytes(found), _bytes(expected)):
        raise unauthorized(f"{name} is {'not there' if found is None else 'wrong'}: expected ours")


def unauthorized(message: str) -> PeerError:
    """Return the error of a peer that is not who it says."""
    return PeerError(message, code="unauthorized")


def _members(name: str, member: re.Pattern[str], text: str) -> list[tuple[str, ...]]:
    """Return the members of a structured dictionary (RFC 8941, section 3.2), all of one form."""
    members: list[tuple[str, ...]] = []
    text, place = text.strip(" "), 0
    while len(text) <= _MAX_FIELD and (found := member.match(text, place)):
        members.append(found.groups())
        if found.end() == len(text):
            return members
        comma = _SEPARATOR.match(text, found.end())
        if comma is None:
            break
        place = comma.end()
    raise unauthorized(f"{name} cannot be read: expected a dictionary of signatures (RFC 9421)")


def _value(text: str) -> str | int:
    return text[1:-1] if text.startswith('"') else int(text)


def _check_time(
    created: str | float | None, expires: str | float | None, now_s: float, max_age_s: float
) -> None:
    if not isinstance(created, int | float):
        raise unauthorized("a signature that does not say when it was made: expected the time")
    if created > now_s + MAX_SKEW_S:
        raise unauthorized(f"a signature made {created - now_s:.0f} s ahead: expected in the past")
    if created < now_s - max_age_s:
        raise unauthorized(
            f"a signature made {now_s - created:.0f} s ago: expected at most {max_age_s:g} s"
        )
    if expires is not None and (not isinstance(expires, int | float) or expires <= now_s):
        raise unauthorized("a signature that has expired: expected one that has not")


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise unauthorized("a signature that is not base64: expected its bytes so") from error


def _from_base64url(text: str) -> bytes:
    """Return the bytes of base64url without padding (RFC 7515, section 2)."""
    if not re.fullmatch(r"[A-Za-z0-9_-]*", text):
        raise unauthorized("a JWT part that is not base64url: expected it so, without padding")
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise unauthorized("a JWT part that is not base64url: expected it so") from error


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
