"""What dialects read alike: JSON text of bounded size, and what an operator says of a call."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from streamer.call import ROLES
from streamer.dialects import CloseCode, PeerError
from streamer.errors import ConfigError

_MAX_CALL_ID = 128
_SHIFT_MS = 10
"""Windows end where frames do."""
_MAX_STEP_MS = 10_000

_Kind = TypeVar("_Kind")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What an operator says of a call of one channel, in the URL or in the peer's own words.

    ``call_id`` is its name, empty if it has none; ``roles`` who speaks; ``step_s`` the time between
    two emotions, the server's own where it is None.
    """

    call_id: str = ""
    roles: tuple[str, ...] = ("customer",)
    step_s: float | None = None


def read_text(
    text: str, kind: type[_Kind], *, expected: str, max_text: int, strict: bool = True
) -> _Kind:
    """Return the message that a text is; fields that it does not name are ignored.

    Raises:
        PeerError: more than ``max_text`` characters, not JSON, or not of this kind.
    """
    if len(text) > max_text:
        raise PeerError(
            f"a text message of {len(text)} characters: expected at most {max_text}",
            code="too_big",
            close_code=CloseCode.TOO_BIG,
        )
    try:
        return msgspec.json.decode(text, type=kind, strict=strict)
    except msgspec.ValidationError as error:
        raise PeerError(f"{error}: {expected}") from error
    except (ValueError, RecursionError) as error:  # not JSON; a lone surrogate; brackets
        raise PeerError(
            f"a text message that is not JSON ({error}): {expected}",
            code="bad_json",
            close_code=CloseCode.INVALID_DATA,
        ) from error


def read_asked(said: Iterable[tuple[str, str]], *, min_step_ms: int) -> Asked:
    """Return what ``call_id``, ``roles`` and ``step_ms`` say; other names are somebody else's.

    Raises:
        PeerError: one of them cannot be, or is said twice and not the same.
    """
    found: dict[str, str] = {}
    for name, text in said:
        if found.setdefault(name, text) != text and name in ("call_id", "roles", "step_ms"):
            raise PeerError(f"{name} is {found[name][:80]!r} and {text[:80]!r}: expected one")
    call_id, role = found.get("call_id", ""), found.get("roles", "customer")
    if not (call_id.isprintable() and len(call_id) <= _MAX_CALL_ID):
        raise PeerError(
            f"call_id of {len(call_id)} characters: expected 1 to {_MAX_CALL_ID} printable ones"
        )
    if role not in ROLES:
        raise PeerError(f"roles is {role[:80]!r}: expected one of {', '.join(ROLES)}")
    step_s = None if "step_ms" not in found else _step_s(found["step_ms"], min_step_ms)
    return Asked(call_id=call_id, roles=(role,), step_s=step_s)


def _step_s(text: str, min_step_ms: int) -> float:
    step_ms = int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else 0
    if not min_step_ms <= step_ms <= _MAX_STEP_MS or step_ms % _SHIFT_MS:
        found = text[:40] if text.isprintable() else ascii(text[:40])
        raise PeerError(
            f"step of {found} ms: expected {min_step_ms} to {_MAX_STEP_MS} ms, a multiple of "
            f"{_SHIFT_MS} ms",
            code=ConfigError.code,
        )
    return step_ms / 1000
