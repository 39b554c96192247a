"""Pulses over server-sent events, and the files of the dashboard."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server import page
from server.wire import Pulse
from tests.server.conftest import Daemon


def pulses(client: httpx.Client) -> Iterator[Pulse]:
    """The pulses of a daemon, as they come."""
    with client.stream("GET", "/events") as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        event = ""
        for line in response.iter_lines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            elif line.startswith("data: "):
                assert event == "pulse"
                yield Pulse.model_validate_json(line.removeprefix("data: "))


def test_a_pulse_tells_of_what_came_since_the_one_before(daemon: Daemon) -> None:
    """Rates and means are of the chunks in between; the rest is as /status and the receipt say."""
    coming = pulses(daemon.client)
    first = next(coming)
    assert first.ready
    assert (first.chunks_per_s, first.bytes_per_s) == (None, None)
    assert (first.familiarity, first.entropy) == (None, None)
    with httpx.Client(base_url=daemon.client.base_url) as other:
        message = b"a pulse is told\nof what has come\n"
        headers = {"Content-Type": "application/octet-stream"}
        receipt = other.post("/ingest", content=message, headers=headers).json()
        second = next(pulse for pulse in coming if pulse.familiarity is not None)
        status = other.get("/status").json()
    assert second.offset == receipt["offset"] == status["offset"]
    assert second.steps == status["steps"]
    assert second.familiarity == pytest.approx(receipt["familiarity"])
    assert second.entropy == pytest.approx(receipt["entropy"])
    assert second.beta == receipt["beta"]
    assert second.genome_sha256 == status["genome_sha256"]
    assert second.chunks_per_s is not None
    assert 0 < second.chunks_per_s <= 2.5
    assert second.bytes_per_s == pytest.approx(second.chunks_per_s * len(message) / 2)
    coming.close()  # type: ignore[attr-defined]


def test_the_novel_chunks_are_told_with_their_place(tmp_path: Path, genome_path: Path) -> None:
    """A chunk never seen is among them, at its offset, as text."""
    with Daemon(tmp_path / "state", genome_path) as daemon:
        daemon.ingest(b"first\n")
        daemon.ingest(b"quite new \xff\n")
        daemon.ingest(b"first\n" * 50)
        found = {item.offset: item.text for item in next(pulses(daemon.client)).novel}
        assert found[6] == "quite new \ufffd"


def test_those_who_watch_do_not_hold_up_a_stop(tmp_path: Path, genome_path: Path) -> None:
    """An open stream of events ends at once, and the daemon with it."""
    with Daemon(tmp_path / "state", genome_path, {"ORGANISM_STOP_TIMEOUT_S": "30"}) as daemon:
        coming = pulses(daemon.client)
        next(coming)
        began = time.monotonic()
        daemon.process.terminate()
        assert list(coming) is not None
        daemon.process.wait(timeout=60)
        assert time.monotonic() - began < 15
        assert daemon.process.returncode == 0


def test_events_need_the_key_and_the_page_does_not(tmp_path: Path, genome_path: Path) -> None:
    """The page holds no data, and cannot ask for the key if it is not let out."""
    with Daemon(tmp_path / "state", genome_path, {"ORGANISM_API_KEY": "secret"}) as daemon:
        assert daemon.client.get("/events").status_code == 401
        assert daemon.client.get("/genome/rule").status_code == 401
        for path in page.PATHS:
            assert daemon.client.get(path).status_code == 200


@pytest.mark.parametrize("path", page.PATHS)
def test_the_page_may_ask_nobody_else(daemon: Daemon, path: str) -> None:
    """Each file comes with a policy that allows this daemon alone, no inline script, no frame."""
    headers = daemon.client.get(path).headers
    parts = headers["content-security-policy"].split(";")
    policy = dict(part.strip().split(" ", 1) for part in parts)
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert headers["x-content-type-options"] == "nosniff"


def test_the_rule_is_drawn(daemon: Daemon) -> None:
    """On its grid, with its terms; what is drawn is what the genome has."""
    drawn = daemon.client.get("/genome/rule").json()
    levels, rows, columns = len(drawn["w"]), len(drawn["pre"]), len(drawn["post"])
    assert [len(drawn["delta"]), len(drawn["delta"][0]), len(drawn["delta"][0][0])] == [
        levels,
        rows,
        columns,
    ]
    coefficients = daemon.client.get("/genome").json()["theta"]["rule.coefficients"]
    named = {term["name"]: term["coefficient"] for term in drawn["terms"]}
    assert named["pre·post³"] == pytest.approx(coefficients[1][3][0])


def test_matches_show_what_they_share_with_the_cue(daemon: Daemon) -> None:
    """As runs of equal bytes, in order, at the places that are named."""
    daemon.ingest("überall session 4711 closed\n".encode())
    cue = "überall session 17 closed".encode()
    reply = daemon.recall(cue).json()
    (match,) = (m for m in reply["matches"] if "4711" in m["text"])
    chunk = "überall session 4711 closed".encode()
    assert [chunk[b : b + n] for _, b, n in match["shared"]] == [
        cue[a : a + n] for a, _, n in match["shared"]
    ]
    assert sum(n for *_, n in match["shared"]) >= len("überall session closed".encode())
    assert json.dumps(match["shared"]) == json.dumps(sorted(match["shared"]))
