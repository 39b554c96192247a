"""What the daemon says of itself: logs without anybody's bytes, and metrics."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from websockets.sync.client import connect

from tests.server.conftest import OCTETS, Daemon

SECRET = "s3cr3t-payload"
KEY = "the-key-itself"


def lines(daemon: Daemon) -> list[dict[str, object]]:
    """The log, line by line."""
    return [json.loads(line) for line in daemon.log.read_text().splitlines()]


def test_logs_are_json_and_carry_no_bytes_of_anybody(tmp_path: Path, genome_path: Path) -> None:
    """Not of a stream, a cue, a query or a key, even at debug level; refusals are named."""
    settings = {
        "ORGANISM_LOG_LEVEL": "debug",
        "ORGANISM_API_KEY": KEY,
        "ORGANISM_BODY_LIMIT_BYTES": "1000",
    }
    with Daemon(tmp_path / "state", genome_path, settings) as daemon:
        key = {"Authorization": f"Bearer {KEY}"}
        body = SECRET.encode()
        daemon.client.get("/recall", params={"cue": SECRET})
        daemon.client.get("/status", headers={"Authorization": f"Bearer {SECRET}"})
        daemon.client.headers.update(key)
        assert daemon.ingest(body + b"\n").status_code == 200
        assert daemon.recall(body).status_code == 200
        assert daemon.ingest(body * 100).status_code == 413
        assert daemon.ingest(body, **{"Upload-Offset": "7"}).status_code == 409
        plain = {"Content-Type": "text/plain"}
        assert daemon.client.post("/ingest", content=body, headers=plain).status_code == 415
        assert daemon.client.get("/recall", params={"cue": SECRET, "x": SECRET}).status_code == 400
        named = daemon.client.get("/recall", headers={"X-Request-ID": "job-7"})
        assert named.status_code == 400
        with connect(
            f"ws://127.0.0.1:{daemon.port}/ingest/ws?offset=5", additional_headers=key
        ) as ws:
            ws.send(body)
        daemon.stop()
    text = daemon.log.read_text()
    assert SECRET not in text
    assert KEY not in text
    for line in lines(daemon):
        assert {"time", "level", "logger", "message"} <= line.keys()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}", str(line["time"]))
    (refused,) = [line for line in lines(daemon) if line.get("request_id") == "job-7"]
    assert (refused["method"], refused["path"], refused["status"]) == ("GET", "/recall", 400)


def test_refusals_do_not_flood_the_log(tmp_path: Path, genome_path: Path) -> None:
    """They are counted, by status; a line each only at debug level."""
    with Daemon(tmp_path / "state", genome_path) as daemon:
        before = len(daemon.log.read_text())
        for _ in range(50):
            assert daemon.client.post("/ingest", content=b"", headers=OCTETS).status_code == 400
        assert len(daemon.log.read_text()) == before
        assert daemon.refused(400) == 50
        assert daemon.refused(413) == 0


def test_metrics_of_what_is_kept(tmp_path: Path, genome_path: Path) -> None:
    """Syncs and their time, the journal, the last snapshot, and how far a recovery is."""
    with Daemon(tmp_path / "state", genome_path) as daemon:
        assert daemon.metric("organism_snapshot_last_success_timestamp_seconds") == 0
        for _ in range(3):
            daemon.ingest(b"a line\n")
        name = "organism_journal_fsync_duration_seconds"
        assert daemon.metric(f"{name}_count") == 3
        assert 0 < daemon.metric(f"{name}_sum") < 3
        assert daemon.metric("organism_journal_offset_bytes") == 21
        assert daemon.metric("organism_journal_size_bytes") > 21
        assert daemon.metric("organism_recovery_progress_ratio") == 1
        assert daemon.client.post("/snapshots").json()["offset"] == 21
        assert daemon.metric("organism_snapshot_last_success_timestamp_seconds") > 1.7e9


@pytest.mark.parametrize(("setting", "status"), [("false", 401), ("true", 200)])
def test_metrics_are_open_by_setting(
    tmp_path: Path, genome_path: Path, setting: str, status: int
) -> None:
    """Else they ask for the key like everything but health."""
    settings = {"ORGANISM_API_KEY": KEY, "ORGANISM_METRICS_OPEN": setting}
    with Daemon(tmp_path / "state", genome_path, settings) as daemon:
        assert daemon.client.get("/metrics").status_code == status
        assert daemon.client.get("/status").status_code == 401
