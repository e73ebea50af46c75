"""What ser-serve can be told: flags and file say the same, and nothing lets others in unasked."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from streamer.dialects import registry
from streamer.dialects.registry import DialectSecrets
from streamer.errors import ConfigError
from streamer.server import ServerConfig
from streamer.server_options import ServeOptions, serve_options, signed_paths, token_options
from streamer.store import StoreConfig

ROOT = Path(__file__).resolve().parent.parent
SECRET = "whsec_" + "A" * 43 + "="


@pytest.fixture
def config(tmp_path: Path) -> Any:
    def write(text: str) -> str:
        path = tmp_path / "server.toml"
        path.write_text(text)
        return str(path)

    return write


def told(text: str) -> list[str]:
    """Return the flags of a help text."""
    return sorted(set(re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE)))


def test_nothing_said_is_the_servers_defaults() -> None:
    options = serve_options([])
    assert options == ServeOptions()
    store = StoreConfig(path=Path("ser-stream.db"))
    assert options.server() == replace(ServerConfig(), store=store)
    assert serve_options(["--no-store"]).server() == ServerConfig()


EVERYTHING = {
    "host": ("localhost", "localhost"),
    "port": ("9000", 9000),
    "tls-cert": ("c.pem", Path("c.pem")),
    "tls-key": ("k.pem", Path("k.pem")),
    "plaintext-behind-proxy": (None, True),
    "tokens": ("tokens", Path("tokens")),
    "origin": ("https://a.example", ("https://a.example",)),
    "max-calls": ("50", 50),
    "max-calls-per-token": ("5", 5),
    "max-message-bytes": ("2048", 2048),
    "handshake-timeout-s": ("1.5", 1.5),
    "idle-timeout-s": ("2.5", 2.5),
    "send-timeout-s": ("3.5", 3.5),
    "resume-timeout-s": ("4.5", 4.5),
    "drain-timeout-s": ("5.5", 5.5),
    "store": ("calls.db", Path("calls.db")),
    "retention-days": ("7", 7.0),
    "analyse-agents": (None, True),
    "step-ms": ("500", 500),
    "model": ("can", "can"),
    "provider": ("cpu", "cpu"),
    "log-format": ("json", "json"),
    "log-level": ("debug", "debug"),
}
FIELDS = {"origin": "origins"}


@pytest.mark.parametrize("key", EVERYTHING)
def test_flag_and_key_say_the_same(key: str, config: Any) -> None:
    text, expected = EVERYTHING[key]
    pair = {"tls-cert": "tls-key", "tls-key": "tls-cert"}.get(key)
    also = [] if pair is None else [f"--{pair}=x"]
    by_flag = serve_options([f"--{key}" if text is None else f"--{key}={text}", *also])
    value = "true" if text is None else f'"{text}"'
    by_file = serve_options(["--config", config(f"{key} = {value}\n"), *also])
    field = FIELDS.get(key, key.replace("-", "_"))
    assert by_flag == by_file
    assert getattr(by_flag, field) == expected
    assert getattr(by_flag, field) != getattr(ServeOptions(), field)


def test_every_flag_is_tried_above(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        serve_options(["--help"])
    flags = {flag.removeprefix("--") for flag in told(capsys.readouterr().out)}
    assert flags - {"config", "version", "no-store", "alert"} == set(EVERYTHING)


def test_a_flag_beats_the_file(config: Any) -> None:
    path = config(
        'port = 1\nmax-calls = 50\norigin = ["https://a.example"]\nanalyse-agents = true\n'
        'store = "a.db"\n'
    )
    arguments = ["--port=2", "--origin=https://b.example", "--no-analyse-agents", "--no-store"]
    options = serve_options(["--config", path, *arguments])
    assert (options.port, options.max_calls, options.analyse_agents) == (2, 50, False)
    assert options.origins == ("https://b.example",)
    assert options.store is None
    assert serve_options(["--config", config("no-store = true"), "--store=b.db"]).store is not None


def test_lists_and_tables(config: Any, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from a file\n")
    options = serve_options(["--config", config(f"""
        origin = ["https://a.example", "https://b.example"]
        [[alert]]
        name = "angry10"
        label = "angry"
        probability = 0.7
        duration = 10
        [[webhook]]
        url = "https://hooks.example/x"
        secret = "{SECRET}"
        events = ["alert", "summary"]
        [secrets]
        twilio-auth-token = {{ file = "{tmp_path / "secret"}" }}
    """)])  # fmt: skip
    assert options.origins == ("https://a.example", "https://b.example")
    assert [(rule.name, rule.duration_s) for rule in options.alerts] == [("angry10", 10.0)]
    assert options.webhooks[0].events == ("alert", "summary")
    assert options.secrets.twilio_auth_token == "from a file"
    assert "from a file" not in repr(options) and SECRET not in repr(options)
    rule = "name=sad5 label=sad probability=0.5 duration=5"
    assert [rule.name for rule in serve_options(["--alert", rule]).alerts] == ["sad5"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_calls = 5", "unknown key 'max_calls': expected 'max-calls', perhaps"),
        ("prot = 5", "unknown key 'prot': expected 'port', perhaps"),
        ("webhooks = 5", "unknown key 'webhooks': expected 'webhook', perhaps"),
        ("xyzzy = 5", "unknown key 'xyzzy': expected the name of a flag"),
        ("config = 'a'", "unknown key 'config'"),
        ("help = true", "unknown key 'help'"),
        ("port = 'many'", "port: invalid int value: 'many'"),
        ("port = true", "port is True: expected text or a number"),
        ("port = [1]", r"port is \[1\]: expected text or a number"),
        ("[port]\na = 1", "port is {'a': 1}: expected text or a number"),
        ("analyse-agents = 'no'", "analyse-agents is 'no': expected true or false"),
        ("step-ms = 255", "step-ms: '255': expected 10 to 10000 ms"),
        ("provider = 'tpu'", "provider: invalid choice"),
        ("no-store = true\nstore = 'a'", "not allowed with"),
        ("tls-cert = 'a'", "expected both, or neither"),
        ("origin = ['example.org']", "expected a scheme"),
        ("max-calls-per-token = 0", "expected 1 or more"),
        ("alert = 'name=a'", r"expected tables, each under \[\[alert\]\]"),
        ("[[alert]]\nname = 'a'", "alert a without duration"),
        ("[[webhook]]\nurl = 'https://a.example'", "no url or no secret"),
        (f"[[webhook]]\nurl='https://a'\nsecret='{SECRET}'\nto='x'", "webhook with key 'to'"),
        (f"[[webhook]]\nurl='https://a'\nsecret='{SECRET}'\nevents='x'", "expected a list"),
        (f"[[webhook]]\nurl='https://a'\nsecret='{SECRET}'", "but no alert"),
        ("secrets = 1", "expected a table"),
        ("[secrets]\ntwilio-token = 'a'", "unknown secret 'twilio-token': expected twilio-auth"),
        ("[secrets]\ntwilio-auth-token = ''", "expected text, or"),
        ("[secrets]\ntwilio-auth-token = { file = '/nowhere' }", "cannot be read"),
        ("[secrets]\ngenesys-api-key = 'a'", "secrets without genesys-client-secret"),
        ("port = ", "expected TOML"),
    ],
)
def test_files_that_are_refused(text: str, message: str, config: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        serve_options(["--config", config(text)])


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        serve_options(["--config", str(tmp_path / "server.toml")])
    (tmp_path / "latin.toml").write_bytes(b"host = '\xe4'")
    with pytest.raises(ConfigError, match="expected TOML"):
        serve_options(["--config", str(tmp_path / "latin.toml")])


def test_others_are_let_in_only_with_tokens_and_tls_or_a_proxy() -> None:
    for arguments, message in (
        ([], "expected tokens"),
        (["--tls-cert=c", "--tls-key=k"], "expected tokens"),
        (["--plaintext-behind-proxy"], "expected tokens"),
        (["--tokens=t"], "expected --tls-cert and --tls-key"),
    ):
        with pytest.raises(ConfigError, match=message):
            serve_options(["--host=0.0.0.0", *arguments])
    serve_options(["--host=0.0.0.0", "--tokens=t", "--plaintext-behind-proxy"])
    options = serve_options(["--host=::", "--tokens=t", "--tls-cert=c", "--tls-key=k"])
    assert options.url == "wss://[::]:8765/v1/stream"


def test_alerts_for_agents_need_agents_analysed() -> None:
    rule = "--alert=name=a label=sad probability=0.5 duration=5 role=agent"
    with pytest.raises(ConfigError, match="--analyse-agents"):
        serve_options([rule])
    serve_options([rule, "--analyse-agents"])


def test_no_secret_can_be_said_on_a_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        serve_options(["--help"])
    words = " ".join(told(capsys.readouterr().out))
    assert not re.search(r"secret|webhook|key\b(?<!tls-key)", words)


def test_paths_are_signed_by_the_secrets_of_their_dialects(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = DialectSecrets(twilio_auth_token="a")
    monkeypatch.setattr("streamer.server_options.PATHS", ("/v1/stream", "/twilio", "/vonage"))
    names = {"/v1/stream": "native", "/twilio": "twilio", "/vonage": "vonage"}
    monkeypatch.setattr("streamer.server_options.dialect_name", names.__getitem__)
    assert signed_paths(secrets) == {"/twilio"}
    assert signed_paths(DialectSecrets()) == frozenset()


def test_secrets_are_named_after_dialects() -> None:
    known = {registry.dialect_name(path) for path in registry.PATHS}
    if known == {"native"}:
        pytest.skip("no dialect that signs is served")
    assert {field.name.partition("_")[0] for field in fields(DialectSecrets)} <= known


def test_the_sample_is_served_as_it_is() -> None:
    options = serve_options(["--config", str(ROOT / "samples" / "server.toml")])
    assert options.log_format == "json" and len(options.alerts) == 1
    text = (ROOT / "samples" / "server.toml").read_text()
    keys = set(re.findall(r"^(?:# )?([a-z-]+) = ", text, re.MULTILINE))
    tables = {"name", "label", "probability", "duration", "role", "url", "secret", "events"}
    assert keys - tables - {"twilio-auth-token"} == set(EVERYTHING) - {"model", "provider"}


def test_token_options() -> None:
    options = token_options(["pbx", "--scope", "send", "--scope", "watch"])
    assert (options.name, options.scopes) == ("pbx", ["send", "watch"])
    for words in (["pbx"], ["pbx", "--scope", "listen"]):
        with pytest.raises(SystemExit):
            token_options(words)
