"""What is shipped for Prometheus and Grafana, tried with a real Prometheus."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, cast

import httpx
import pytest
import yaml

from server.metrics import Metrics
from tests.server.conftest import Daemon, free_port, genome_path, until

__all__ = ["genome_path"]  # a fixture, for pytest to find

_ROOT = Path(__file__).resolve().parents[2]
_DEPLOY = _ROOT / "deploy"
_PAGE = _ROOT / "docs" / "metrics.md"
_KEY = "a key of the tests"
_RATE_INTERVAL = "10s"
_ROWS = ["Learning", "Recall", "Ingest", "Durability", "Process"]

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="needs prometheus and promtool: apt-get install prometheus",
)


def _promtool(*arguments: str | Path, given: str | None = None) -> str:
    """Run promtool; what it says, once it is content."""
    done = subprocess.run(
        ["promtool", *map(str, arguments)], input=given, capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def _rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((_DEPLOY / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _alerts() -> list[dict[str, Any]]:
    return [rule for rule in _rules() if "alert" in rule]


def _dashboard() -> dict[str, Any]:
    return cast(dict[str, Any], json.loads((_DEPLOY / "grafana.json").read_text()))


def _panels() -> list[dict[str, Any]]:
    """Panels that show something, in order."""
    return [panel for panel in _dashboard()["panels"] if panel["type"] != "row"]


def _expressions() -> list[tuple[str, str]]:
    """Each panel's title, and an expression of it."""
    return [(panel["title"], target["expr"]) for panel in _panels() for target in panel["targets"]]


def _documented() -> dict[str, str]:
    """Series of docs/metrics.md and their types, from the first two cells of its tables."""
    row = re.compile(r"^\| `([a-z0-9_]+)`[^|]* \| (counter|gauge|histogram) \|", re.M)
    return dict(row.findall(_PAGE.read_text()))


class Watched(NamedTuple):
    """A daemon with a key, and a Prometheus that scrapes it each second."""

    daemon: Daemon
    url: str

    def post(self) -> None:
        """Have the daemon learn lines, old ones and one that is new, and refuse a request."""
        number = next(_numbers)
        lines = [f"a line that comes again, {i % 40}" for i in range(number, number + 20)]
        new = f"{number * 7919 % 10007:x} only {number:b} once {number**3}"
        self.daemon.ingest("\n".join([*lines, new]).encode()).raise_for_status()

    def ask(self, path: str, **parameters: str) -> Any:
        """Ask Prometheus; its data."""
        answer = httpx.get(self.url + path, params=parameters).json()
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def values(self, expression: str) -> list[float]:
        """What an expression is now, of each series that it has."""
        found = self.ask("/api/v1/query", query=expression)["result"]
        return [float(series["value"][1]) for series in found]

    def learn_until(self, expression: str) -> None:
        """Wait, while the daemon learns, for the expression to have a number."""

        def answered() -> bool:
            self.post()
            return any(math.isfinite(value) for value in self.values(expression))

        until(answered)


_numbers = count()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, genome_path: Path) -> Iterator[Watched]:
    """The shipped configuration: its target, key file and interval alone are other ones."""
    folder = tmp_path_factory.mktemp("prometheus")
    settings = {
        "ORGANISM_API_KEY": _KEY,
        "ORGANISM_SNAPSHOT_INTERVAL_S": "1",
        "ORGANISM_PROBE_INTERVAL_S": "0.1",
    }
    # A daemon with a key is not asked before it is told of the key.
    with Daemon(folder / "state", genome_path, settings) as daemon:
        daemon.client.headers["Authorization"] = f"Bearer {_KEY}"
        config = _config_for(folder, daemon.port)
        port = free_port()
        log = folder / "prometheus.log"
        with log.open("w") as out:
            process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={config}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=out,
                stderr=out,
            )
        try:
            yield _once_ready(Watched(daemon, f"http://127.0.0.1:{port}"), process, log)
        finally:
            process.terminate()
            process.wait(timeout=60)


def _config_for(folder: Path, port: int) -> Path:
    config = yaml.safe_load((_DEPLOY / "prometheus.yml").read_text())
    (folder / "key").write_text(_KEY)
    shutil.copy(_DEPLOY / "alerts.yml", folder)
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    job["authorization"]["credentials_file"] = str(folder / "key")
    config["global"] = dict.fromkeys(config["global"], "1s")
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def _once_ready(watched: Watched, process: subprocess.Popen[bytes], log: Path) -> Watched:
    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return httpx.get(watched.url + "/-/ready").is_success
        except httpx.TransportError:
            return False

    until(ready)
    return watched


@needs_prometheus
def test_the_shipped_configuration_is_one() -> None:
    """As it stands in the repository; its key file is where compose will put it."""
    said = _promtool("check", "config", "--syntax-only", _DEPLOY / "prometheus.yml")
    assert "SUCCESS" in said


@needs_prometheus
def test_the_configuration_finds_its_rules_and_its_key(tmp_path: Path) -> None:
    """With a key file that is there, nothing is missing; without it, promtool says so."""
    config = _config_for(tmp_path, 8765)
    assert f"{len(_rules())} rules found" in _promtool("check", "config", config)
    (tmp_path / "key").unlink()
    done = subprocess.run(["promtool", "check", "config", config], capture_output=True)
    assert done.returncode != 0


@needs_prometheus
def test_alerts_fire_when_they_should_and_not_otherwise() -> None:
    """By promtool's own unit tests, on series written by hand."""
    assert "SUCCESS" in _promtool("test", "rules", _DEPLOY / "alerts.test.yml")


def test_each_alert_is_tested_both_ways() -> None:
    """Each fires somewhere in alerts.test.yml, and beside it on another series it does not."""
    tests = yaml.safe_load((_DEPLOY / "alerts.test.yml").read_text())["tests"]
    fires: dict[str, set[str]] = {}
    silent: set[str] = set()
    for test in tests:
        instances = set(re.findall(r'instance="([^"]+)"', str(test["input_series"])))
        for case in test["alert_rule_test"]:
            bad = {alert["exp_labels"].get("instance", "") for alert in case["exp_alerts"]}
            fires.setdefault(case["alertname"], set()).update(bad)
            if instances - bad:
                silent.add(case["alertname"])
    names = {rule["alert"] for rule in _alerts()}
    assert names == silent == {name for name, bad in fires.items() if bad}


@pytest.mark.parametrize("alert", _alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_tells_what_to_do(alert: dict[str, Any]) -> None:
    """It has a summary, a description, a severity, and a section of docs/metrics.md."""
    notes = alert["annotations"]
    assert notes["summary"].strip()
    assert notes["description"].strip()
    assert alert["labels"]["severity"] in ("warning", "critical")
    file, _, anchor = notes["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (_ROOT / file).read_text(), re.M)
    assert anchor in {heading.lower().replace(" ", "-") for heading in headings}


def test_the_document_names_exactly_the_series_there_are() -> None:
    """With their types; when a counter began (``_created``) is no series of its own."""
    text = Metrics().render().decode()
    there = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    assert _documented() == {k: v for k, v in there.items() if not k.endswith("_created")}


def test_a_daemon_has_the_series_of_the_document(watched_or_plain: str) -> None:
    """Over HTTP, as Prometheus reads them."""
    there = set(re.findall(r"^# TYPE (\S+) ", watched_or_plain, re.M))
    assert set(_documented()) == {name for name in there if not name.endswith("_created")}


@pytest.fixture
def watched_or_plain(tmp_path: Path, genome_path: Path) -> str:
    """What a daemon answers at /metrics."""
    with Daemon(tmp_path / "state", genome_path) as daemon:
        return daemon.client.get("/metrics").text


@needs_prometheus
def test_metrics_please_the_linter(watched: Watched) -> None:
    """Names, units, types and help of a living daemon's series."""
    watched.post()
    text = watched.daemon.client.get("/metrics").text
    assert "organism_ingest_bytes_total" in text
    assert not _promtool("check", "metrics", given=text).strip()


@needs_prometheus
def test_the_target_is_up(watched: Watched) -> None:
    """The key in the file lets Prometheus in, and it can read what it gets."""

    def up() -> bool:
        targets = watched.ask("/api/v1/targets")["activeTargets"]
        return [(t["labels"]["job"], t["health"]) for t in targets] == [("organism", "up")]

    until(up)
    assert watched.values('up{job="organism"}') == [1.0]


@needs_prometheus
def test_without_the_key_nothing_is_read(watched: Watched) -> None:
    """It is the key that lets Prometheus in, not an open door."""
    assert httpx.get(str(watched.daemon.client.base_url) + "/metrics").status_code == 401


@needs_prometheus
@pytest.mark.parametrize(("title", "expression"), _expressions())
def test_a_panel_shows_a_number(watched: Watched, title: str, expression: str) -> None:
    """Every expression of the dashboard, for the instance that is scraped."""
    filled = (
        expression.replace("$__rate_interval", _RATE_INTERVAL)
        .replace("$job", "organism")
        .replace("$instance", f"127.0.0.1:{watched.daemon.port}")
    )
    assert "$" not in filled
    watched.learn_until(filled)


@needs_prometheus
@pytest.mark.parametrize("rule", _rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_evaluates(watched: Watched, rule: dict[str, Any]) -> None:
    """On real series, without an error; no alert fires on a daemon that is well."""
    name = rule.get("alert") or rule["record"]

    def evaluated() -> dict[str, Any]:
        groups = watched.ask("/api/v1/rules")["groups"]
        (found,) = (r for group in groups for r in group["rules"] if r["name"] == name)
        return cast(dict[str, Any], found)

    until(lambda: evaluated()["health"] != "unknown")
    assert evaluated()["health"] == "ok", evaluated()
    watched.ask("/api/v1/query", query=rule["expr"])
    until(lambda: evaluated().get("state", "inactive") == "inactive")


def test_the_dashboard_can_be_imported() -> None:
    """Rows in order, panels that do not overlap, each with a description, a unit, a data source."""
    dashboard = _dashboard()
    assert dashboard["uid"]
    assert dashboard["schemaVersion"] >= 39
    rows = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    assert rows == _ROWS
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    for panel in _panels():
        assert len(panel["description"]) > 20, panel["title"]
        unit = panel["fieldConfig"]["defaults"].get("unit") or panel["options"]["yAxis"]["unit"]
        assert unit, panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"


def test_the_dashboard_shows_every_series() -> None:
    """Nothing that the daemon measures is left to be found by chance."""
    shown = " ".join(expression for _, expression in _expressions())
    assert [name for name in _documented() if name not in shown] == []
