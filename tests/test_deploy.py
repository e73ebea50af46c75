"""The files of deploy/: they can be read, and name what exists."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from streamer.dialects.registry import DialectSecrets
from streamer.metrics import Metrics
from streamer.server_options import add_options, serve_options
from streamer.tokens import SCOPES

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
METRIC = re.compile(r"\b(?:ser|process)_[a-z_]+\b")


def known_metrics() -> set[str]:
    """Return every name that a query may use, of metrics without a value yet, too."""
    metrics = Metrics()
    metrics.watch_webhooks(lambda: [])
    suffixes = {
        "counter": ["_total"],
        "gauge": [""],
        "histogram": ["_bucket", "_sum", "_count"],
    }
    text = bytes(metrics.response().body).decode()
    return {
        family.name + suffix
        for family in text_string_to_metric_families(text)
        for suffix in suffixes[family.type]
    }


def board() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "grafana" / "ser-stream.json").read_text())
    return found


def test_the_board_asks_for_metrics_that_there_are() -> None:
    known = known_metrics()
    asked = {
        name
        for panel in board()["panels"]
        for target in panel["targets"]
        for name in METRIC.findall(target["expr"])
    }
    assert asked <= known
    ours = {name for name in known if name.startswith("ser_")}
    # Of a histogram its buckets are enough.
    missing = {name for name in ours - asked if not name.endswith(("_sum", "_count"))}
    assert {name for name in missing if not name.endswith("_created")} == set()


def test_the_boards_panels_do_not_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in board()["panels"]:
        at = panel["gridPos"]
        own = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & own and at["x"] + at["w"] <= 24, panel["title"]
        cells |= own
    ids = [panel["id"] for panel in board()["panels"]]
    assert len(set(ids)) == len(ids)


def test_docs_name_metrics_that_there_are() -> None:
    named = set(re.findall(r"`(ser_[a-z_]+)", (ROOT / "docs" / "operations.md").read_text()))
    known = known_metrics()
    bases = {name.removesuffix("_bucket") for name in known}
    assert named and named <= known | bases


def test_docs_tell_every_refusal_and_every_scope() -> None:
    told = (ROOT / "docs" / "operations.md").read_text()
    source = (ROOT / "streamer" / "access.py").read_text()
    codes = re.findall(r'(?:code=|_forbidden\(\s*)"([a-z_]+)"', source)
    assert len(codes) == 7
    assert [code for code in [*codes, *SCOPES] if f"`{code}`" not in told] == []


def test_docs_name_keys_that_there_are() -> None:
    told = (ROOT / "docs" / "operations.md").read_text()
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", help_text()))
    named = set(re.findall(r"`(--[a-z-]+)", told)) - {"--config"}
    keys = set(re.findall(r"`([a-z]+(?:-[a-z]+)+)(?: = [^`]+)?`", told)) - {"ser-serve"}
    secrets = {field.name.replace("_", "-") for field in fields(DialectSecrets)}
    assert secrets <= keys
    assert {f"--{key}" for key in keys - secrets} | named <= flags


def help_text() -> str:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return parser.format_help()


def test_yaml_and_toml_can_be_read() -> None:
    yaml = pytest.importorskip("yaml")
    files = {path: yaml.safe_load(path.read_text()) for path in DEPLOY.rglob("*.y*ml")}
    assert {path.name for path in files} == {
        "compose.yaml", "prometheus.yml", "datasource.yml", "dashboards.yml",
    }  # fmt: skip
    tomllib.loads((ROOT / "samples" / "server.toml").read_text())


def test_compose_mounts_files_and_flags_that_there_are() -> None:
    yaml = pytest.importorskip("yaml")
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    made = {"tokens", "prometheus-token", "grafana-password"}  # by the operator
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists() or Path(source).name in made, source
            else:
                assert source in compose["volumes"]
        for secret in service.get("secrets", []):
            assert Path(compose["secrets"][secret]["file"]).name in made
    command = [
        word.replace("/etc/ser-stream/server.toml", str(ROOT / "samples" / "server.toml"))
        for word in compose["services"]["ser-stream"]["command"]
    ]
    options = serve_options(command)
    assert options.tokens is not None
    grace = compose["services"]["ser-stream"]["stop_grace_period"]
    assert float(grace.removesuffix("s")) >= options.drain_timeout_s + 10


def test_prometheus_and_grafana_meet() -> None:
    yaml = pytest.importorskip("yaml")
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert host in compose and port == str(serve_options([]).port)
    source = yaml.safe_load((DEPLOY / "grafana" / "datasource.yml").read_text())["datasources"][0]
    assert {panel["datasource"]["uid"] for panel in board()["panels"]} == {source["uid"]}


def unit_settings() -> dict[str, str]:
    lines = (DEPLOY / "ser-stream.service").read_text().splitlines()
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return {setting[0]: setting[1] for setting in pairs}


def test_the_unit_waits_longer_than_calls_may_take_to_end() -> None:
    settings = unit_settings()
    options = serve_options(["--config", str(ROOT / "samples" / "server.toml")])
    assert int(settings["TimeoutStopSec"]) >= options.drain_timeout_s + 10
    assert int(settings["LimitNOFILE"]) > options.server().max_connections * 2
    assert settings["RestartPreventExitStatus"] == "2"


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    # It looks for the program, which is not installed here.
    text = (
        (DEPLOY / "ser-stream.service")
        .read_text()
        .replace("/opt/ser-stream/bin/ser-serve", "/bin/true")
    )
    unit = tmp_path / "ser-stream.service"
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    ours = [line for line in done.stderr.splitlines() if "ser-stream" in line]
    assert ours == []


def test_the_image_copies_what_there_is_and_is_not_roots() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    for line in lines:
        if line.startswith("COPY ") and "--from" not in line:
            for name in line.split()[1:-1]:
                assert (ROOT / name).exists(), name
    users = [line for line in lines if line.startswith("USER ")]
    assert users and users[-1] != "USER root"
    assert lines.index(users[-1]) < next(
        number for number, line in enumerate(lines) if line.startswith("ENTRYPOINT")
    )
