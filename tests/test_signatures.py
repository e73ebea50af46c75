"""Signed requests: the documented examples verify, and nothing that differs from them does."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.dialects import CloseCode, Handshake, PeerError
from streamer.dialects.signatures import (
    check_audiohook,
    check_bearer_jwt,
    check_key,
    check_message_signature,
    read_message_signature,
)
from streamer.errors import ConfigError

# The example of the AudioHook documentation ("Session walkthrough").
API_KEY = "SGVsbG8sIEkgYW0gdGhlIEFQSSBrZXkh"
CLIENT_SECRET = "TXlTdXBlclNlY3JldEtleVRlbGxOby0xITJAMyM0JDU="
CREATED = 1641013200
DOCUMENTED = {
    "host": "audiohook.example.com",
    "audiohook-organization-id": "d7934305-0972-4844-938e-9060eef73d05",
    "audiohook-session-id": "30b0e395-84d3-4570-ac13-9a62d8f514c0",
    "audiohook-correlation-id": "e160e428-53e2-487c-977d-96989bf5c99d",
    "x-api-key": API_KEY,
    "signature": "sig1=:NZBwyBHRRyRoeLqy1IzOa9VYBuI8TgMFt2GRDkDuJh4=:",
    "signature-input": (
        'sig1=("@request-target" "@authority" "audiohook-organization-id" "audiohook-session-id" '
        '"audiohook-correlation-id" "x-api-key");keyid="SGVsbG8sIEkgYW0gdGhlIEFQSSBrZXkh";'
        'nonce="VGhpc0lzQVVuaXF1ZU5vbmNl";alg="hmac-sha256";created=1641013200;expires=3282026430'
    ),
}
PATH = "/api/v1/voicebiometrics/ws"


def check(
    headers: dict[str, str],
    *,
    path: str = PATH,
    query: tuple[tuple[str, str], ...] = (),
    now_s: float = CREATED + 1,
    secret: str = CLIENT_SECRET,
) -> None:
    handshake = Handshake(path=path, query=query, headers=tuple(headers.items()))
    check_audiohook(handshake, api_key=API_KEY, client_secret=secret, now_s=now_s)


def sign(
    lines: list[tuple[str, str]], parameters: str, key: bytes, *, label: str = "sig1"
) -> dict[str, str]:
    """Sign by the letter of RFC 9421, section 2.5, with nothing of the code under test."""
    names = " ".join(f'"{name}"' for name, _ in lines)
    base = "".join(f'"{name}": {value}\n' for name, value in lines)
    base += f'"@signature-params": ({names}){parameters}'
    digest = base64.b64encode(hmac.new(key, base.encode(), hashlib.sha256).digest()).decode()
    return {"signature": f"{label}=:{digest}:", "signature-input": f"{label}=({names}){parameters}"}


def signed(
    parameters: str = f';keyid="{API_KEY}";nonce="n";alg="hmac-sha256";created={CREATED}',
    *,
    target: str = PATH,
    leave_out: str = "",
    more: tuple[tuple[str, str], ...] = (),
) -> dict[str, str]:
    names = ("audiohook-organization-id", "audiohook-session-id", "audiohook-correlation-id")
    lines = [("@request-target", target), ("@authority", "audiohook.example.com")]
    lines += [(name, DOCUMENTED[name]) for name in (*names, "x-api-key")]
    lines = [line for line in [*lines, *more] if line[0] != leave_out]
    return {**DOCUMENTED, **sign(lines, parameters, base64.b64decode(CLIENT_SECRET))}


# HTTP message signatures


def test_the_example_of_the_audiohook_documentation() -> None:
    check(DOCUMENTED)


def test_the_example_of_the_rfc() -> None:
    """RFC 9421, appendix B.2.5, with the key of B.1.5."""
    key = base64.b64decode(
        "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ=="
    )
    signature = read_message_signature(
        'sig-b25=("date" "@authority" "content-type");created=1618884473;'
        'keyid="test-shared-secret"',
        "sig-b25=:pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=:",
    )
    values = {
        "date": "Tue, 20 Apr 2021 02:07:55 GMT",
        "@authority": "example.com",
        "content-type": "application/json",
    }
    check_message_signature(signature, values.get, key=key, required=["date"], now_s=1618884480)


def test_an_own_signature() -> None:
    check(signed())
    check(signed(target=f"{PATH}?step_ms=500&x=a%20b"), query=(("step_ms", "500"), ("x", "a b")))
    check({**signed(), "host": "AudioHook.example.com:443"})
    check(signed(more=(("@authority-2", "x"),)) | {"@authority-2": "x"})


def test_two_signatures_and_the_first_counts() -> None:
    one, other = signed(), sign([("date", "x")], ";created=1", b"", label="b")
    headers = {name: f"{one[name]} , {other[name]}" for name in other}
    check({**one, **headers})


@pytest.mark.parametrize("name", [name for name in DOCUMENTED if not name.startswith("signature")])
def test_every_signed_header_counts(name: str) -> None:
    for value in (DOCUMENTED[name][:-1], DOCUMENTED[name] + "x", ""):
        with pytest.raises(PeerError):
            check({**DOCUMENTED, name: value})
    with pytest.raises(PeerError):
        check({key: value for key, value in DOCUMENTED.items() if key != name})


@pytest.mark.parametrize(
    ("headers", "sentence"),
    [
        (signed(leave_out="audiohook-session-id"), "leaves out audiohook-session-id"),
        (signed(leave_out="@request-target"), "leaves out @request-target"),
        (signed(f';keyid="other";created={CREATED}'), "keyid is not the X-API-KEY"),
        (signed(f";created={CREATED}"), "keyid is not the X-API-KEY"),
        (signed(f";keyid=5;created={CREATED}"), "keyid is not the X-API-KEY"),
        (signed(f';keyid="{API_KEY}";alg="none";created={CREATED}'), "'hmac-sha256'"),
        (signed(f';keyid="{API_KEY}"'), "when it was made"),
        (signed(f';keyid="{API_KEY}";created="x"'), "when it was made"),
        (signed(f';keyid="{API_KEY}";created={CREATED - 60}'), "61 s ago"),
        (signed(f';keyid="{API_KEY}";created={CREATED + 7}'), "6 s ahead"),
        (signed(f';keyid="{API_KEY}";created={CREATED};expires={CREATED}'), "has expired"),
        (signed(f';keyid="{API_KEY}";created={CREATED};created={CREATED}'), "parameter twice"),
        (signed(more=(("x-api-key", API_KEY),)), "component twice"),
        (signed(more=(("date", "x"),)), "'date', which the request lacks"),
        ({**DOCUMENTED, "signature": "sig2=:AAAA:"}, "Signature has no 'sig1'"),
        ({**DOCUMENTED, "signature": "sig1=:AAA:"}, "not base64"),
        ({**DOCUMENTED, "signature": "sig1=AAAA"}, "Signature cannot be read"),
        ({**DOCUMENTED, "signature-input": 'sig1=("a";sf);created=1'}, "cannot be read"),
        ({**DOCUMENTED, "signature-input": "sig1=()" + ";a=1" * 2000}, "cannot be read"),
        ({**DOCUMENTED, "signature-input": "sig1=(),"}, "cannot be read"),
        ({**DOCUMENTED, "signature-input": ""}, "cannot be read"),
    ],
)
def test_what_is_not_signed_as_it_must_be(headers: dict[str, str], sentence: str) -> None:
    with pytest.raises(PeerError) as caught:
        check(headers)
    assert sentence in str(caught.value) and "expected" in str(caught.value)
    assert (caught.value.code, caught.value.close_code) == ("unauthorized", CloseCode.POLICY)


@pytest.mark.parametrize("change", [{"path": "/x"}, {"query": (("a", "b"),)}, {"secret": "AAAA"}])
def test_the_target_and_the_secret_count(change: dict[str, Any]) -> None:
    with pytest.raises(PeerError, match="does not match"):
        check(DOCUMENTED, **change)


def test_an_unsigned_request_is_let_in_by_its_key_alone_if_there_is_no_secret() -> None:
    check({"x-api-key": API_KEY}, secret="")
    for headers in ({}, {"x-api-key": "x"}, {"x-api-key": "é"}):
        with pytest.raises(PeerError, match="X-API-KEY"):
            check(headers, secret="")


def test_a_secret_that_is_not_base64_is_the_operators_mistake() -> None:
    with pytest.raises(ConfigError, match="base64"):
        check(DOCUMENTED, secret="not base64!")


# JSON Web Tokens


def jwt(header: Any, claims: Any, secret: bytes = b"secret") -> str:
    parts = [
        base64.urlsafe_b64encode(part if isinstance(part, bytes) else json.dumps(part).encode())
        for part in (header, claims)
    ]
    text = b".".join(part.rstrip(b"=") for part in parts)
    digest = hmac.new(secret, text, hashlib.sha256).digest()
    return f"{text.decode()}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


HS256 = {"alg": "HS256", "typ": "JWT"}


def check_jwt(token: str | None, *, now_s: float = 1000.0) -> None:
    check_bearer_jwt(token, key=b"secret", now_s=now_s)


def test_a_good_token() -> None:
    check_jwt("Bearer " + jwt(HS256, {"iat": 990, "iss": "Vonage", "jti": "x"}))
    check_jwt("bearer " + jwt(HS256, {"iat": 1004.5, "exp": 1001, "nbf": 900, "aud": [1]}))


def test_the_example_of_the_rfc_matches_but_does_not_say_when_it_was_made() -> None:
    """RFC 7515, appendix A.1: its signature is checked first, then its claims."""
    key = base64.urlsafe_b64decode(
        "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow=="
    )
    token = (
        "Bearer eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9."
        "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFt"
        "cGxlLmNvbS9pc19yb290Ijp0cnVlfQ."
        "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    )
    with pytest.raises(PeerError, match="missing required field `iat`"):
        check_bearer_jwt(token, key=key, now_s=1300819370)
    with pytest.raises(PeerError, match="does not match"):
        check_bearer_jwt(token, key=key + b"x", now_s=1300819370)


@pytest.mark.parametrize(
    ("token", "sentence"),
    [
        (None, "no bearer token"),
        ("", "no bearer token"),
        ("Basic x", "no bearer token"),
        ("Bearer " + "x" * 5000, "no bearer token"),
        ("Bearer x", "1 parts"),
        ("Bearer a.b.c.d", "4 parts"),
        ("Bearer " + jwt(HS256, {"iat": 1000}, b"other"), "does not match"),
        ("Bearer " + jwt(HS256, {"iat": 1000}) + "=", "not base64url"),
        ("Bearer " + jwt(HS256, {"iat": 1000})[:-1] + "é", "not base64url"),
        ("Bearer " + jwt({"alg": "none"}, {"iat": 1000}), "by 'none'"),
        ("Bearer " + jwt({"alg": "HS512"}, {"iat": 1000}), "by 'HS512'"),
        ("Bearer " + jwt({**HS256, "crit": ["b64"]}, {"iat": 1000}), "without extensions"),
        ("Bearer " + jwt([], {"iat": 1000}), "cannot be read"),
        ("Bearer " + jwt(HS256, {}), "cannot be read"),
        ("Bearer " + jwt(HS256, {"iat": "x"}), "cannot be read"),
        ("Bearer " + jwt(HS256, b"\xff"), "cannot be read"),
        ("Bearer " + jwt(HS256, {"iat": 939}), "61 s ago"),
        ("Bearer " + jwt(HS256, {"iat": 1006}), "6 s ahead"),
        ("Bearer " + jwt(HS256, {"iat": 1000, "exp": 1000}), "has expired"),
        ("Bearer " + jwt(HS256, {"iat": 1000, "nbf": 1006}), "not valid yet"),
    ],
)
def test_what_is_no_good_token(token: str | None, sentence: str) -> None:
    with pytest.raises(PeerError) as caught:
        check_jwt(token)
    assert sentence in str(caught.value) and "expected" in str(caught.value)
    assert caught.value.code == "unauthorized"


def test_an_unsigned_token_is_none_even_if_it_says_so() -> None:
    """The classic: alg "none" and no signature."""
    token = jwt({"alg": "none"}, {"iat": 1000}).rpartition(".")[0] + "."
    with pytest.raises(PeerError, match="does not match"):
        check_jwt(f"Bearer {token}")


# Anything


HEADER = st.text(max_size=60) | st.sampled_from(
    [DOCUMENTED["signature"], DOCUMENTED["signature-input"], API_KEY, "sig1=()", "sig1=::"]
)


@given(st.dictionaries(st.sampled_from([*DOCUMENTED, "authorization"]), HEADER), st.text())
def test_only_peer_errors_come_out(changes: dict[str, str], path: str) -> None:
    headers = {**DOCUMENTED, **changes}
    try:
        check(headers, path=path)
    except PeerError as fault:
        assert fault.code == "unauthorized"
    for authorization in (headers.get("authorization"), f"Bearer {path}"):
        with pytest.raises(PeerError):
            check_jwt(authorization)


@given(st.text(), st.text(min_size=1))
def test_keys_are_any_text(found: str, expected: str) -> None:
    if found == expected:
        check_key(found, expected, "key")
        return
    with pytest.raises(PeerError, match="key is wrong"):
        check_key(found, expected, "key")
