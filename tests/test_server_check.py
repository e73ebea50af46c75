"""`ser-serve check` and `ser-serve token`: what they say, and that they leave nothing behind."""

from __future__ import annotations

import os
import shutil
import sqlite3
import ssl
import subprocess
from pathlib import Path
from socket import create_server
from typing import Any

import pytest

from streamer.errors import ConfigError
from streamer.server_check import check
from streamer.server_command import main
from streamer.server_options import ServeOptions, serve_options
from streamer.tls import load_certificate, tls_context
from streamer.tokens import load_tokens, new_token

SECRET = "whsec_" + "A" * 43 + "="


@pytest.fixture
def model(model_path: Path) -> str:
    return str(model_path)


@pytest.fixture
def options(model: str, tmp_path: Path) -> Any:
    def make(**chosen: Any) -> ServeOptions:
        given = {"port": 0, "model": model, "provider": "cpu", "store": tmp_path / "calls.db"}
        return ServeOptions(**(given | chosen))

    return make


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    return make_certificate(tmp_path_factory.mktemp("tls"))


def make_certificate(folder: Path) -> tuple[Path, Path]:
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
        *("-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", key, "-out", cert),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    key.chmod(0o600)
    return cert, key


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(new_token("pbx", ["send"])[1] + "\n")
    path.chmod(0o640)
    return path


def test_it_says_what_it_would_do_and_makes_nothing(options: Any, tmp_path: Path) -> None:
    report = check(options())
    assert report.faults == report.warnings == ()
    text = str(report)
    for words in (
        "without TLS, for programs of this machine alone",
        "let in every program of this machine, without a token",
        "infer the emotion of customers; of agents only when they speak",
        "keep events and summaries, never audio, in ",
        "until 30 days after a call's end",
        "hear 200 calls at once",
        "end all calls within 10 s",
    ):
        assert words in text
    assert list(tmp_path.iterdir()) == []


def test_it_says_who_may_come_and_what_is_sent(
    options: Any, tokens: Path, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "server.toml"
    path.write_text(f"""
        [[alert]]
        name = "angry10"
        label = "angry"
        probability = 0.7
        duration = 10
        [[webhook]]
        url = "https://hooks.example/very-secret-path"
        secret = "{SECRET}"
    """)
    chosen = serve_options(["--config", str(path)])
    report = check(
        options(
            host="0.0.0.0",
            tls_cert=certificate[0],
            tls_key=certificate[1],
            tokens=tokens,
            origins=("https://desk.example.org",),
            alerts=chosen.alerts,
            webhooks=chosen.webhooks,
            analyse_agents=True,
            store=None,
            max_calls_per_token=5,
        )
    )
    # The server itself still insists on a loopback address.
    assert [fault for fault in report.faults if "loopback" not in fault] == []
    text = str(report)
    for words in (
        "with TLS, its certificate from",
        "let in whoever has one of 1 tokens: pbx (send)",
        "let pages of browsers in from: https://desk.example.org, its own pages",
        "alert angry10: when customers score angry 0.7 or more for 10 s",
        "post alert to hooks.example, signed",
        "AI Act, Article 5(1)(f)",
        "keep nothing",
    ):
        assert words in text
    assert SECRET not in text and "very-secret-path" not in text


def test_all_that_is_wrong_is_said_at_once(options: Any, tmp_path: Path) -> None:
    report = check(
        options(
            tokens=tmp_path / "tokens",
            model=str(tmp_path / "missing.onnx"),
            store=tmp_path / "nowhere" / "calls.db",
            tls_cert=tmp_path / "cert.pem",
            tls_key=tmp_path / "key.pem",
            idle_timeout_s=-1.0,
        )
    )
    text = "\n".join(report.faults)
    assert len(report.faults) == 5
    for words in ("tokens file", "no model", "is no folder", "cert.pem cannot be read", "idle"):
        assert words in text
    assert "it would not start:" in str(report)


@pytest.mark.parametrize("secret", ["not base64!", "QUJDRA", "clé"])
def test_a_genesys_secret_that_is_none(
    secret: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "server.toml"
    path.write_text(f"[secrets]\ngenesys-api-key = 'k'\ngenesys-client-secret = '{secret}'\n")
    assert main(["check", "--no-store", "--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert "genesys-client-secret: " in said and "expected base64" in said
    assert secret not in said


def test_a_label_that_the_model_does_not_have(options: Any) -> None:
    rule = serve_options(["--alert", "name=a label=bored probability=0.5 duration=5"]).alerts
    (fault,) = check(options(alerts=rule)).faults
    assert "label 'bored': expected one of" in fault


def test_a_store_of_another_program(options: Any, tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    connection.close()
    (fault,) = check(options(store=path)).faults
    assert "another program's database" in fault


def test_a_port_that_is_taken_is_a_warning(options: Any) -> None:
    with create_server(("127.0.0.1", 0)) as listener:
        report = check(options(port=listener.getsockname()[1]))
    assert report.faults == ()
    assert "is taken now, perhaps by this server itself" in report.warnings[0]


@pytest.mark.parametrize("chosen", [{"port": 65536}, {"port": -1}, {"host": "192.0.2.1"}])
def test_an_address_that_cannot_be(options: Any, tokens: Path, chosen: dict[str, Any]) -> None:
    report = check(options(**chosen, tokens=tokens, plaintext_behind_proxy=True))
    assert any("port" in fault and "expected" in fault for fault in report.faults)


def test_files_that_others_may_touch(
    options: Any, tokens: Path, certificate: tuple[Path, Path]
) -> None:
    tokens.chmod(0o666)
    certificate[1].chmod(0o604)
    report = check(options(tokens=tokens, tls_cert=certificate[0], tls_key=certificate[1]))
    certificate[1].chmod(0o600)
    text = "\n".join(report.warnings)
    assert "can write" in text and "can read" in text


# TLS


def test_certificate_and_key(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    context = tls_context(*certificate)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    other = make_certificate(tmp_path)
    load_certificate(context, *other)
    with pytest.raises(ConfigError, match="KEY_VALUES_MISMATCH"):
        load_certificate(context, certificate[0], other[1])
    with pytest.raises(ConfigError, match="expected a PEM chain"):
        tls_context(certificate[1], certificate[1])
    with pytest.raises(ConfigError, match="cannot be read"):
        tls_context(certificate[0], tmp_path / "missing.pem")


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    locked = tmp_path / "locked.pem"
    command = ["openssl", "ec", "-aes256", "-passout", "pass:secret", "-in", certificate[1]]
    subprocess.run([*command, "-out", locked], check=True, capture_output=True, timeout=30)
    with pytest.raises(ConfigError, match="without a passphrase"):
        tls_context(certificate[0], locked)


# The command


def test_exit_codes(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    good = ["check", "--port=0", "--model", model, "--provider=cpu"]
    assert main([*good, "--no-store"]) == 0
    assert capsys.readouterr().out.startswith("ser-serve would:\n  listen on ")
    assert main([*good, "--store", str(tmp_path / "a" / "b")]) == 2
    assert "it would not start:" in capsys.readouterr().out
    assert main([*good, "--config", str(tmp_path / "missing.toml")]) == 2
    assert capsys.readouterr().err.startswith("ser-serve: error: ")
    assert main(["--host=0.0.0.0"]) == 2
    assert "expected tokens" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit:
        main(["check", "--prot=1"])
    assert exit.value.code == 2


def test_a_token_is_shown_once_and_its_line_can_be_appended(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["token", "pbx", "--scope", "send"]) == 0
    output = capsys.readouterr()
    token = output.err.splitlines()[0]
    assert token.startswith("ser_") and token not in output.out
    path = tmp_path / "tokens"
    path.write_text(output.out)
    assert [found.name for found in load_tokens(path)] == ["pbx"]
    assert main(["token", "p b x", "--scope", "send"]) == 2
    assert "token name 'p b x'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["check"], ["token"]])
def test_help_fits_a_terminal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main([*arguments, "--help"])
    assert exit.value.code == 0
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) <= 82


def test_a_folder_that_cannot_be_written(options: Any, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    tmp_path.chmod(0o500)
    try:
        assert "cannot be written" in check(options()).faults[0]
    finally:
        tmp_path.chmod(0o700)
