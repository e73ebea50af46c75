"""The doors: tokens, the ways to bring one, origins, places, and what is refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.access import (
    Access,
    AccessConfig,
    Grant,
    Refusal,
    check_address,
    is_loopback,
    normal_origin,
    reload_tokens,
)
from streamer.dialects import Handshake
from streamer.errors import ConfigError
from streamer.tokens import SCOPES, Scope, Token, digest_of, new_token

SENDER, WATCHER = "ser_sender", "ser_watcher"


def token(text: str, name: str, *scopes: Scope) -> Token:
    return Token(name=name, scopes=frozenset(scopes), digest=digest_of(text))


TOKENS = (token(SENDER, "pbx", "send"), token(WATCHER, "desk", "watch", "send"))


def asks(path: str = "/v1/stream", query: str = "", **headers: str) -> Handshake:
    headers = {"host": "ser.example.org"} | headers
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    pairs = tuple(pair.split("=", 1) for pair in query.split("&") if pair)
    return Handshake(path=path, query=pairs, headers=tuple(names.items()))  # type: ignore[arg-type]


def bearer(text: str) -> Handshake:
    return asks(authorization=f"Bearer {text}")


def code(answer: Grant | Refusal) -> str:
    assert isinstance(answer, Refusal), answer
    assert "expected" in answer.message
    return f"{answer.status} {answer.code}"


# Tokens


@pytest.mark.parametrize(
    ("handshake", "subprotocol"),
    [
        (bearer(SENDER), None),
        (asks(authorization=f"bearer  {SENDER}"), None),
        (asks(sec_websocket_protocol=f"bearer, {SENDER}"), "bearer"),
        (asks(query=f"encoding=mulaw&token={SENDER}"), None),
        # The header may be meant for whoever checks the product's own signature.
        (asks(query=f"token={SENDER}", authorization="Bearer a.b.c"), None),
    ],
)
def test_three_ways_to_bring_a_token(handshake: Handshake, subprotocol: str | None) -> None:
    answer = Access(tokens=TOKENS).check(handshake, "send")
    assert answer == Grant(name="pbx", subprotocol=subprotocol)


@pytest.mark.parametrize(
    ("handshake", "scope", "refused"),
    [
        (asks(), "send", "401 no_token"),
        (asks(authorization="Basic cGJ4OnNlcl9zZW5kZXI="), "send", "401 no_token"),
        (asks(authorization="Bearer "), "send", "401 no_token"),
        (asks(sec_websocket_protocol="bearer"), "send", "401 no_token"),
        (asks(sec_websocket_protocol=f"chat, {SENDER}"), "send", "401 no_token"),
        (bearer("ser_nobody"), "send", "401 bad_token"),
        (bearer(TOKENS[0].digest.hex()), "send", "401 bad_token"),
        (bearer("\udcff\u20ac"), "send", "401 bad_token"),
        (bearer(SENDER), "watch", "403 no_scope"),
        (bearer(WATCHER), "admin", "403 no_scope"),
        (asks(query=f"token={WATCHER}"), "watch", "403 token_in_url"),
    ],
)
def test_refusals(handshake: Handshake, scope: Scope, refused: str) -> None:
    answer = Access(tokens=TOKENS).check(handshake, scope)
    assert code(answer) == refused
    assert isinstance(answer, Refusal)
    assert SENDER not in answer.message and WATCHER not in answer.message
    assert ("www-authenticate" in answer.headers) == (answer.status == 401)


@given(st.text(max_size=80), st.sampled_from(SCOPES))
def test_no_text_but_a_token_opens_anything(text: str, scope: Scope) -> None:
    for handshake in (bearer(text), asks(sec_websocket_protocol=f"bearer,{text}")):
        assert isinstance(Access(tokens=TOKENS).check(handshake, scope), Refusal)


def test_a_signed_path_needs_no_token_to_send_and_opens_nothing_else() -> None:
    access = Access(AccessConfig(signed_paths=frozenset({"/twilio"})), TOKENS)
    assert access.check(asks("/twilio"), "send") == Grant()
    assert code(access.check(asks("/twilio"), "watch")) == "401 no_token"
    assert code(access.check(asks("/telnyx"), "send")) == "401 no_token"


def test_tokens_are_replaced_while_calls_go_on() -> None:
    access = Access(AccessConfig(max_calls_per_token=1), TOKENS)
    grant = access.check(bearer(SENDER), "send")
    assert isinstance(grant, Grant)
    with access.take_place(grant):  # type: ignore[union-attr]
        access.replace_tokens(TOKENS[1:])
        assert code(access.check(bearer(SENDER), "send")) == "401 bad_token"
        assert access.num_calls("pbx") == 1
    assert access.num_calls("pbx") == 0
    with pytest.raises(ConfigError, match="no tokens"):
        access.replace_tokens(())
    assert isinstance(access.check(bearer(WATCHER), "watch"), Grant)


def test_a_faulty_file_changes_nothing_when_it_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    text, line = new_token("late", ["send"])
    access = Access(tokens=TOKENS)
    path.write_text("pbx send ser_secret\n")
    with pytest.raises(ConfigError):
        reload_tokens(access, path)
    assert access.check(bearer(SENDER), "send") == Grant(name="pbx")
    path.write_text(line + "\n")
    assert reload_tokens(access, path) == 1
    assert access.check(bearer(text), "send") == Grant(name="late")
    assert code(access.check(bearer(SENDER), "send")) == "401 bad_token"


# Places


def test_calls_at_once_are_counted_by_token() -> None:
    access = Access(AccessConfig(max_calls_per_token=2), TOKENS)
    places = [access.take_place(Grant(name="pbx")) for _ in range(3)]
    assert code(places[2]) == "429 token_busy"  # type: ignore[arg-type]
    assert isinstance(places[2], Refusal) and "retry-after" in places[2].headers
    assert not isinstance(access.take_place(Grant(name="desk")), Refusal)
    first = places[0]
    assert not isinstance(first, Refusal)
    first.close()
    first.close()
    assert access.num_calls("pbx") == 1
    assert not isinstance(access.take_place(Grant(name="pbx")), Refusal)


def test_peers_without_a_token_are_not_counted() -> None:
    access = Access(AccessConfig(max_calls_per_token=1))
    assert not any(isinstance(access.take_place(Grant()), Refusal) for _ in range(5))


# Browsers, and servers without tokens

LOCAL = "127.0.0.1:8765"


@pytest.mark.parametrize(
    ("tokens", "host", "origin", "is_let_in"),
    [
        ((), LOCAL, None, True),
        ((), "[::1]:8765", None, True),
        ((), LOCAL, "http://localhost:3000", True),
        ((), LOCAL, "https://evil.example", False),
        ((), LOCAL, "http://localhost.evil.example", False),
        ((), LOCAL, "http://localhost@evil.example", False),
        ((), LOCAL, "null", False),
        ((), LOCAL, "https://desk.example.org", True),
        # A page whose own name was led to this machine, by GET and by WebSocket.
        ((), "evil.example:8765", None, False),
        ((), "evil.example:8765", "http://evil.example:8765", False),
        ((), "127.0.0.1@evil.example", None, False),
        ((), "[", None, False),
        (TOKENS, "ser.example.org", None, True),
        (TOKENS, "ser.example.org", "https://ser.example.org", True),
        (TOKENS, "ser.example.org", "https://desk.example.org", True),
        (TOKENS, "ser.example.org", "HTTPS://Desk.Example.org:443", True),
        (TOKENS, "ser.example.org", "http://desk.example.org", False),
        (TOKENS, "ser.example.org", "https://desk.example.org.evil.example", False),
        (TOKENS, "ser.example.org", "http://localhost:3000", False),
        (TOKENS, "ser.example.org", "https://[", False),
    ],
)
def test_origins_and_hosts(
    tokens: tuple[Token, ...], host: str, origin: str | None, is_let_in: bool
) -> None:
    access = Access(AccessConfig(origins=("https://desk.example.org:443",)), tokens)
    headers: dict[str, Any] = {"host": host, "authorization": f"Bearer {WATCHER}"}
    headers |= {} if origin is None else {"origin": origin}
    answer = access.check(asks(**headers), "watch")
    assert isinstance(answer, Grant) == is_let_in, answer
    if not is_let_in:
        assert code(answer) in ("403 bad_origin", "403 bad_host")


@pytest.mark.parametrize("origin", ["desk.example.org", "https://a/b", "*", "null", "https://u@a"])
def test_what_is_no_origin(origin: str) -> None:
    assert normal_origin(origin) is None
    with pytest.raises(ConfigError, match="expected a scheme"):
        AccessConfig(origins=(origin,))


def test_an_origin_is_compared_as_browsers_write_it() -> None:
    assert normal_origin("HTTP://[::1]:80") == "http://[::1]"
    assert normal_origin("http://A.example:8080") == "http://a.example:8080"


def test_a_limit_below_one() -> None:
    with pytest.raises(ConfigError, match="expected 1 or more"):
        AccessConfig(max_calls_per_token=0)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.1", "::", "example.org", "", "localhost."])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("host", "has_tokens", "has_tls", "is_behind_proxy", "wanted"),
    [
        ("127.0.0.1", False, False, False, None),
        ("0.0.0.0", False, True, True, "expected tokens"),
        ("", False, True, True, "expected tokens"),
        ("ser.example.org", True, False, False, "expected --tls-cert"),
        ("::", True, True, False, None),
        ("10.0.0.1", True, False, True, None),
    ],
)
def test_addresses_that_others_reach(
    host: str, has_tokens: bool, has_tls: bool, is_behind_proxy: bool, wanted: str | None
) -> None:
    doors = {"has_tokens": has_tokens, "has_tls": has_tls, "is_behind_proxy": is_behind_proxy}
    if wanted is None:
        check_address(host, **doors)
    else:
        with pytest.raises(ConfigError, match=wanted):
            check_address(host, **doors)
