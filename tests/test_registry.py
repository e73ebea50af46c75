"""Which path speaks which dialect, and how a peer of another product is refused."""

from __future__ import annotations

import json
import time
from pathlib import Path
from socket import create_connection

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from streamer.access import AccessConfig
from streamer.dialects import Handshake, PeerError
from streamer.dialects.registry import PATHS, DialectSecrets, dialect_name, make_dialect
from streamer.tokens import new_token
from tests import test_signatures
from tests.scorers import FakeScorer, make_card
from tests.serving import DEADLINE_S, serving, wait_until

CARD = make_card()
SECRETS = DialectSecrets(
    twilio_auth_token="a",
    telnyx_auth_token="b",
    genesys_api_key="c",
    genesys_client_secret="ZA==",
    vonage_signature_secret="e",
)


@pytest.mark.parametrize("path", PATHS)
def test_every_path_has_its_dialect(path: str) -> None:
    dialect = make_dialect(Handshake(path=path), min_step_ms=100)
    name = dialect_name(path)
    assert type(dialect).__name__ == f"{name.capitalize()}Dialect"
    assert type(dialect).__module__ == f"streamer.dialects.{name}"
    assert dialect.messages_to_send() == []


@pytest.mark.parametrize("path", ["/twilio", "/telnyx", "/genesys", "/vonage"])
def test_a_secret_that_is_configured_is_asked_for(path: str) -> None:
    with pytest.raises(PeerError, match="expected") as caught:
        make_dialect(Handshake(path=path), min_step_ms=100, secrets=SECRETS)
    assert caught.value.code == "unauthorized"


def test_a_peer_that_is_not_who_it_says_is_refused_in_its_handshake() -> None:
    with (
        serving(FakeScorer(CARD), secrets=SECRETS) as running,
        pytest.raises(InvalidStatus) as caught,
    ):
        connect(f"ws://127.0.0.1:{running.port}/telnyx", proxy=None)
    assert caught.value.response.status_code == 403
    assert b"expected" in caught.value.response.body


@pytest.mark.parametrize("sent", ["step_ms=500", "step%5Fms=5%300&a=~", ""])
def test_a_signature_is_of_the_target_as_it_was_sent(sent: str, tmp_path: Path) -> None:
    """Through a proxy that passes host and path on, however its query is escaped."""
    secrets = DialectSecrets(
        genesys_api_key=test_signatures.API_KEY,
        genesys_client_secret=test_signatures.CLIENT_SECRET,
    )
    target = "/genesys" + (f"?{sent}" if sent else "")
    headers = test_signatures.signed(
        f';keyid="{test_signatures.API_KEY}";created={int(time.time())}', target=target
    )
    del headers["host"]

    def come(asked: str) -> None:
        url = f"ws://audiohook.example.com{asked}"
        with (
            create_connection(("127.0.0.1", running.port)) as proxy,
            connect(url, sock=proxy, additional_headers=headers, proxy=None),
        ):
            pass

    tokens = tmp_path / "tokens"
    tokens.write_text(new_token("pbx", ["send"])[1] + "\n")
    access = AccessConfig(signed_paths=frozenset({"/genesys"}))
    with serving(FakeScorer(CARD), secrets=secrets, tokens=tokens, access=access) as running:
        come(target)
        with pytest.raises(InvalidStatus) as caught:
            come(target.replace("genesys", "%67enesys"))
    assert caught.value.response.status_code == 403, "the same path, but not as it was signed"


def test_a_full_server_refuses_other_products_in_their_handshake() -> None:
    with serving(FakeScorer(CARD), max_calls=1) as running, running.connect() as first:
        first.send('{"type":"start"}')
        first.recv(DEADLINE_S)
        with pytest.raises(InvalidStatus) as caught:
            connect(f"ws://127.0.0.1:{running.port}/vosk", proxy=None)
    response = caught.value.response
    assert response.status_code == 503 and response.headers["retry-after"] == "10"
    assert b"no room for a call" in response.body


def test_another_products_call_ends_with_its_connection() -> None:
    with serving(FakeScorer(CARD)) as running:
        with connect(f"ws://127.0.0.1:{running.port}/vosk", proxy=None) as connection:
            connection.send('{"config":{"sample_rate":16000}}')
            connection.send(bytes(3200))
            assert "partial" in json.loads(connection.recv(DEADLINE_S))
            assert running.process is not None
            hub = running.process.service.hub
            wait_until(lambda: hub.num_calls == 1, "the call has begun")
            (call,) = hub.calls()
            assert (call.record.dialect, call.record.start.audio.sample_rate) == ("vosk", 16000)
            connection.send('{"eof" : 1}')
            assert list(connection)
        assert connection.close_code == 1000
