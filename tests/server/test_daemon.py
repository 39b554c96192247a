"""The daemon as its users meet it: a process, a socket, bytes in and answers out."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import msgpack
import pytest

from tests.server.conftest import OCTETS, Daemon, small_genome, until

JSON = ("application/json", "application/problem+json")
MSGPACK = "application/vnd.msgpack"


def test_it_learns_what_is_posted(daemon: Daemon) -> None:
    """The receipt counts bytes and chunks; blank lines move the offset and teach nothing."""
    before = daemon.status()
    message = b"one line\r\n\nanother line\n"
    reply = daemon.ingest(message)
    assert reply.status_code == 200
    receipt = reply.json()
    after = daemon.status()
    assert receipt["chunks"] == 2
    assert receipt["duplicate"] is False
    assert receipt["offset"] == after["offset"] == before["offset"] + len(message)  # type: ignore[operator]
    assert after["steps"] == before["steps"] + 2  # type: ignore[operator]
    assert after["state_sha256"] != before["state_sha256"]
    assert 0 <= receipt["familiarity"] <= 1
    assert 0 <= receipt["entropy"] <= 1
    assert receipt["beta"] == after["beta"]
    assert set(receipt) == {"offset", "chunks", "entropy", "familiarity", "beta", "duplicate"}


def test_blank_lines_alone_teach_nothing(daemon: Daemon) -> None:
    """There is then no mean to tell."""
    receipt = daemon.ingest(b"\n\r\n").json()
    assert receipt["chunks"] == 0
    assert receipt["entropy"] is receipt["familiarity"] is None


def test_recall_finds_what_was_lived(daemon: Daemon) -> None:
    """The match says where its latest occurrence stands, and its bytes, whatever they are."""
    start = daemon.ingest(b"kernel: disk full\n").json()["offset"]
    daemon.ingest(b"raw \x00\xff bytes\n")
    reply = daemon.recall(b"raw \x00\xff byte").json()
    best = reply["matches"][0]
    assert best["offset"] == start
    assert base64.b64decode(best["bytes"]) == b"raw \x00\xff bytes"
    assert best["text"] == "raw \x00\ufffd bytes"
    assert reply["recall_error"] == pytest.approx(1 - best["similarity"])
    assert [m["similarity"] for m in reply["matches"]] == sorted(
        (m["similarity"] for m in reply["matches"]), reverse=True
    )
    assert set(reply) == {"familiarity", "entropy", "recall_error", "matches", "offset"}


def test_recall_changes_nothing(daemon: Daemon) -> None:
    """The state's checksum is the same before and after."""
    before = daemon.status()
    daemon.recall(b"anything at all")
    daemon.client.get("/recall", params={"cue": "anything"})
    assert daemon.status() == before


def test_a_queried_cue_is_a_posted_cue(daemon: Daemon) -> None:
    """Percent-encoded, any byte; a line end is not part of a cue."""
    daemon.ingest(b"a+b=c & \xfe\n")
    posted = daemon.recall(b"a+b=c & \xfe\r\n").json()
    queried = daemon.client.get("/recall?cue=a%2Bb=c+%26%20%FE").json()
    assert posted == queried
    assert posted["recall_error"] == 0


def test_msgpack_in_and_out(daemon: Daemon) -> None:
    """The same contract, without base64."""
    body = msgpack.packb({"data": b"packed line\n"})
    headers = {"Content-Type": MSGPACK, "Accept": MSGPACK}
    reply = daemon.client.post("/ingest", content=body, headers=headers)
    assert reply.headers["content-type"] == MSGPACK
    assert msgpack.unpackb(reply.content)["chunks"] == 1
    cue = msgpack.packb({"cue": b"packed line"})
    answer = msgpack.unpackb(daemon.client.post("/recall", content=cue, headers=headers).content)
    assert answer["matches"][0]["bytes"] == b"packed line"
    status = daemon.client.get("/status", headers={"Accept": MSGPACK})
    assert msgpack.unpackb(status.content) == daemon.status()


def test_a_writer_may_say_where_it_stands(daemon: Daemon) -> None:
    """Right offset: learned. Bytes that stand there already: told so. Else: 409."""
    offset = str(daemon.status()["offset"])
    first = daemon.ingest(b"only once\n", **{"Upload-Offset": offset})
    assert first.json()["chunks"] == 1
    state = daemon.status()
    again = daemon.ingest(b"only once\n", **{"Upload-Offset": offset})
    assert again.status_code == 200
    assert again.json()["duplicate"] is True
    assert again.json()["chunks"] == 0
    assert again.json()["offset"] == first.json()["offset"]
    part = daemon.ingest(b"once\n", **{"Upload-Offset": str(int(offset) + 5)})
    assert part.json()["duplicate"] is True
    for wrong in (b"other bytes\n", b"ONLY once\n", b"only once\nand more"):
        refused = daemon.ingest(wrong, **{"Upload-Offset": offset})
        assert refused.status_code == 409
        assert refused.json()["offset"] == first.json()["offset"]
    assert daemon.ingest(b"gap\n", **{"Upload-Offset": "999999999"}).status_code == 409
    head = daemon.client.head("/ingest")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["upload-offset"] == str(first.json()["offset"])
    assert daemon.status() == state


def test_metrics_follow(daemon: Daemon) -> None:
    """Counters count, gauges show the last chunk, every series is there from the start."""

    def value(series: str) -> float:
        lines = daemon.client.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(series + " ")).split()[-1])

    before = {s: value(f"organism_{s}") for s in ("ingest_bytes_total", "ingest_chunks_total")}
    lived = value("organism_familiarity_count")
    receipt = daemon.ingest(b"metric one\nmetric two\n").json()
    daemon.recall(b"metric one")
    assert value("organism_ingest_bytes_total") == before["ingest_bytes_total"] + 22
    assert value("organism_ingest_chunks_total") == before["ingest_chunks_total"] + 2
    assert value("organism_familiarity_count") == lived + 2
    assert value("organism_metabolic_beta") == pytest.approx(receipt["beta"])
    entropy = value("organism_entropy")
    assert entropy == daemon.status()["entropy"]
    assert value("organism_plasticity_rate") == pytest.approx(0.05 * (1 + 10 * entropy))
    until(lambda: 0 <= value("organism_recall_top1_ratio") <= 1)
    assert 0 <= value("organism_recall_error") <= 1
    assert value("organism_stream_offset_bytes") == receipt["offset"]
    assert value("organism_ingest_queue_bytes") == 0
    for result in ("promoted", "rejected", "failed"):
        value(f'organism_genome_swaps_total{{result="{result}"}}')


def test_the_running_genome_is_shown(daemon: Daemon) -> None:
    """Its checksum, configuration and every number of θ."""
    shown = daemon.client.get("/genome").json()
    genome = small_genome()
    assert shown["sha256"] == genome.sha256 == daemon.status()["genome_sha256"]
    assert shown["parameters"] == genome.parameter_count
    assert shown["config"] == genome.config.model_dump(mode="json")
    assert shown["theta"]["mixing"] == pytest.approx([0.7, 0.2, 0.05])


def test_health_and_documents(daemon: Daemon) -> None:
    """Alive, ready, and described."""
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
        assert daemon.client.get(path).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "status"),
    [
        ("POST", "/ingest", b"", OCTETS, 400),
        ("POST", "/ingest", b"x" * 4097, OCTETS, 413),
        ("POST", "/ingest", b"text", {"Content-Type": "text/plain"}, 415),
        ("POST", "/ingest", b'{"data": 1}', {"Content-Type": "application/json"}, 415),
        ("POST", "/ingest", b"\xc1", {"Content-Type": MSGPACK}, 400),
        ("POST", "/ingest", b"", {"Content-Type": MSGPACK}, 400),
        ("POST", "/ingest", msgpack.packb([1]), {"Content-Type": MSGPACK}, 400),
        ("POST", "/ingest", msgpack.packb({"data": "text"}), {"Content-Type": MSGPACK}, 400),
        ("POST", "/ingest", msgpack.packb({"data": b""}), {"Content-Type": MSGPACK}, 400),
        (
            "POST",
            "/ingest",
            msgpack.packb({"data": b"x", "extra": 1}),
            {"Content-Type": MSGPACK},
            400,
        ),
        ("POST", "/ingest", msgpack.packb({"data": b"x" * 4097}), {"Content-Type": MSGPACK}, 413),
        ("POST", "/ingest", b"\x91" * 3000, {"Content-Type": MSGPACK}, 400),
        ("POST", "/ingest", b"x", {**OCTETS, "Upload-Offset": "-1"}, 400),
        ("POST", "/ingest", b"x", {**OCTETS, "Upload-Offset": "9" * 40}, 400),
        ("POST", "/recall", b"", OCTETS, 400),
        ("POST", "/recall", b"\n", OCTETS, 400),
        ("POST", "/recall", b"two\nlines", OCTETS, 400),
        ("POST", "/recall", b"x" * 65, OCTETS, 413),
        ("POST", "/recall", b"x" * 4000, OCTETS, 413),
        ("POST", "/recall", b"x", {"Content-Type": "text/plain"}, 415),
        ("POST", "/recall", msgpack.packb({"data": b"x"}), {"Content-Type": MSGPACK}, 400),
        ("GET", "/recall", None, {}, 400),
        ("GET", "/recall?cue=", None, {}, 400),
        ("GET", "/recall?cue=a&cue=b", None, {}, 400),
        ("GET", "/recall?cue=a&k=3", None, {}, 400),
        ("POST", "/retrain", b"{", {}, 400),
        ("POST", "/retrain", b'{"outer_steps": 0}', {}, 400),
        ("POST", "/retrain", b'{"colour": "red"}', {}, 400),
        ("POST", "/retrain", b" " * 70000, {}, 413),
        ("GET", "/jobs/none", None, {}, 404),
        ("GET", "/nowhere", None, {}, 404),
        ("GET", "/ingest", None, {}, 405),
        ("DELETE", "/recall", None, {}, 405),
    ],
)
def test_refusals_are_problems_and_change_nothing(
    strict_daemon: Daemon,
    method: str,
    path: str,
    content: bytes | None,
    headers: dict[str, str],
    status: int,
) -> None:
    """RFC 9457: a type, a title, the status, what to do, and the request's id; nothing learned."""
    before = strict_daemon.status()
    reply = strict_daemon.client.request(method, path, content=content, headers=headers)
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json()
    assert problem["type"].startswith("urn:organism:problem:")
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == reply.headers["x-request-id"]
    assert strict_daemon.status() == before


@pytest.fixture(scope="module")
def strict_daemon(tmp_path_factory: pytest.TempPathFactory, genome_path: Path) -> object:
    """A daemon with small limits."""
    settings = {"ORGANISM_BODY_LIMIT_BYTES": "4096", "ORGANISM_CHUNK_BYTES": "64"}
    with Daemon(tmp_path_factory.mktemp("strict"), genome_path, settings) as running:
        yield running


def test_a_body_without_a_length_is_limited_too(strict_daemon: Daemon) -> None:
    """Chunked transfer is cut off at the limit, while reading."""

    def endless() -> object:
        for _ in range(100):
            yield b"x" * 1000

    reply = strict_daemon.client.post("/ingest", content=endless(), headers=OCTETS)  # type: ignore[arg-type]
    assert reply.status_code == 413


def test_a_request_keeps_the_id_it_came_with(daemon: Daemon) -> None:
    """So that logs can be joined; an id that is not one is replaced."""
    for given, kept in (("job-7.a_b", True), ("bad id!", False)):
        reply = daemon.client.get("/status", headers={"X-Request-ID": given})
        assert (reply.headers["x-request-id"] == given) == kept


def test_windows(tmp_path: Path, genome_path: Path) -> None:
    """With windows, line ends are bytes like any other."""
    settings = {"ORGANISM_CHUNKING": "windows", "ORGANISM_CHUNK_BYTES": "4"}
    with Daemon(tmp_path / "state", genome_path, settings) as daemon:
        assert daemon.ingest(b"ab\ncdefgh").json()["chunks"] == 3
        assert daemon.recall(b"ab\nc").json()["recall_error"] == 0


def test_it_wakes_as_it_fell_asleep(tmp_path: Path, genome_path: Path) -> None:
    """A clean stop and start keep cortex, offset, generation, matches and the last receipt."""
    with Daemon(tmp_path / "state", genome_path) as daemon:
        offset = str(daemon.status()["offset"])
        daemon.ingest(b"first life\nsecond line\n", **{"Upload-Offset": offset})
        before, answer = daemon.status(), daemon.recall(b"first life").json()
        daemon.stop()
    with Daemon(tmp_path / "state", genome_path) as daemon:
        assert daemon.status() == before
        assert daemon.recall(b"first life").json() == answer
        again = daemon.ingest(b"first life\nsecond line\n", **{"Upload-Offset": offset})
        assert again.json()["duplicate"] is True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_it_finish(number: signal.Signals, tmp_path: Path, genome_path: Path) -> None:
    """A message under way when the signal comes is learned, answered and kept."""
    message = b"".join(b"line %d\n" % i for i in range(4000))
    with Daemon(tmp_path / "state", genome_path) as daemon, ThreadPoolExecutor() as pool:
        reply = pool.submit(daemon.ingest, message)
        while "ingest_queue_bytes 0.0" in daemon.client.get("/metrics").text:
            assert not reply.done()
        daemon.stop(number)
        assert reply.result(timeout=60).json()["chunks"] == 4000
    with Daemon(tmp_path / "state", genome_path) as daemon:
        assert daemon.status()["steps"] == 4000


def test_a_stop_ends_in_its_time(tmp_path: Path, genome_path: Path) -> None:
    """Whatever is under way: told that it is not taken, or learned by the next start."""
    settings = {"ORGANISM_STOP_TIMEOUT_S": "1", "ORGANISM_CHUNKING": "windows"}
    settings["ORGANISM_CHUNK_BYTES"] = "2"
    message = bytes(range(256)) * 12_000
    state = tmp_path / "state"
    with Daemon(state, genome_path, settings) as daemon, ThreadPoolExecutor() as pool:
        replies = [pool.submit(daemon.ingest, message) for _ in range(4)]
        while "ingest_queue_bytes 0.0" in daemon.client.get("/metrics").text:
            pass
        start = time.monotonic()
        daemon.stop()
        assert time.monotonic() - start < 10
        taken = 0
        for reply in replies:
            with contextlib.suppress(httpx.TransportError):
                answer = reply.result(timeout=30)
                assert answer.headers["content-type"] in JSON
                taken += answer.status_code == 200
    with Daemon(state, genome_path, settings) as daemon:
        whole, rest = divmod(int(str(daemon.status()["offset"])), len(message))
        assert rest == 0
        assert whole >= taken


def test_a_stop_without_its_snapshot_is_told(tmp_path: Path, genome_path: Path) -> None:
    """By the exit status, and what stood in the way."""
    with Daemon(tmp_path / "state", genome_path) as daemon:
        daemon.ingest(b"a line\n")
        shutil.rmtree(tmp_path / "state" / "snapshots")
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(timeout=60) == 1
        assert "cannot write the snapshot" in daemon.log.read_text()


@pytest.mark.parametrize("patience_s", [0.0, 0.01, 0.05, 0.2])
def test_a_signal_while_it_starts_ends_it(
    patience_s: float, tmp_path: Path, genome_path: Path
) -> None:
    """However early: the folder is free again, and whole."""
    state = tmp_path / "state"
    with Daemon(state, genome_path, wait=False) as daemon:
        deadline = time.monotonic() + 30
        while not (state / "lock").exists():
            assert time.monotonic() < deadline
        # Into the start by so much: nothing tells from outside where it is.
        time.sleep(patience_s)
        daemon.stop()
    with Daemon(state, genome_path) as daemon:
        assert daemon.status()["offset"] == 0


def test_an_address_that_is_taken_is_named(daemon: Daemon, tmp_path: Path) -> None:
    """No traceback, and the folder is not touched."""
    environment = {
        "ORGANISM_STATE_DIR": str(tmp_path / "state"),
        "ORGANISM_PORT": str(daemon.port),
    }
    done = subprocess.run(
        [sys.executable, "-m", "server"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{daemon.port}: Address already in use" in done.stderr
    assert not (tmp_path / "state").exists()


def test_a_key_is_asked_of_all_but_health(tmp_path: Path, genome_path: Path) -> None:
    """401 without it, the same with a wrong one; with it, everything works."""
    with Daemon(tmp_path / "state", genome_path, {"ORGANISM_API_KEY": "sésame"}) as daemon:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "sésame"}):
            encoded = {k: v.encode() for k, v in headers.items()}
            reply = daemon.client.get("/status", headers=encoded)  # type: ignore[arg-type]
            assert reply.status_code == 401
            assert reply.headers["www-authenticate"] == "Bearer"
            assert reply.headers["content-type"] == "application/problem+json"
        assert daemon.client.get("/healthz").status_code == 200
        key = {"Authorization": "Bearer sésame".encode()}
        assert daemon.client.get("/status", headers=key).status_code == 200  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8765", 200),
        ("LOCALHOST", 200),
        ("192.168.1.7:80", 200),
        ("[::1]:8765", 200),
        ("evil.example:8765", 421),
        ("localhost.evil.example", 421),
    ],
)
def test_a_name_that_is_not_ours_is_refused(daemon: Daemon, host: str, status: int) -> None:
    """Another site's name may be made to point here; an address cannot."""
    with socket.create_connection(("127.0.0.1", daemon.port)) as connection:
        connection.sendall(f"GET /status HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert int(connection.recv(1 << 16).split()[1]) == status


def test_further_names_can_be_allowed(tmp_path: Path, genome_path: Path) -> None:
    """By commas; nothing else is."""
    names = {"ORGANISM_ALLOWED_HOSTS": "logs.example, Organism.Local"}
    with Daemon(tmp_path / "state", genome_path, names) as daemon:
        for host, status in (("logs.example", 200), ("organism.local:1", 200), ("other", 421)):
            reply = daemon.client.get("/status", headers={"Host": host})
            assert reply.status_code == status
        assert reply.json()["type"] == "urn:organism:problem:unknown-host"
        assert "ORGANISM_ALLOWED_HOSTS" in reply.json()["detail"]


def test_pages_of_other_sites_are_refused(daemon: Daemon) -> None:
    """403, and nothing is learned; the daemon's own pages may ask."""
    before = daemon.status()["offset"]
    own = f"http://127.0.0.1:{daemon.port}"
    for origin in ("https://evil.example", "null", f"{own}0", "http://localhost"):
        reply = daemon.ingest(b"from another site\n", Origin=origin)
        assert reply.status_code == 403
        assert reply.json()["type"] == "urn:organism:problem:cross-origin"
    assert daemon.status()["offset"] == before
    assert daemon.ingest(b"from our own page\n", Origin=own).status_code == 200


def test_no_path_of_a_client_reaches_the_file_system(daemon: Daemon) -> None:
    """What is asked for is a route or nothing; no file comes, none is made."""
    daemon.ingest(b"something\n")
    before = {path for path in daemon.state_dir.rglob("*") if path.suffix != ".snapshot"}
    for path in (
        "/../../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/jobs/..%2f..%2f..%2fetc%2fpasswd",
        "/jobs/%2fetc%2fpasswd",
        "/docs/../../lock",
        "/snapshots/../lock",
    ):
        with socket.create_connection(("127.0.0.1", daemon.port)) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            answer = connection.recv(1 << 16)
            assert answer.split()[1] == b"404", path
            assert b"root:" not in answer
    after = {path for path in daemon.state_dir.rglob("*") if path.suffix != ".snapshot"}
    assert after == before


@pytest.mark.parametrize(
    ("settings", "status", "message"),
    [
        ({"ORGANISM_PORT": "many"}, 2, "ORGANISM_PORT"),
        ({"ORGANISM_PROT": "8765"}, 2, "did you mean ORGANISM_PORT"),
        ({"ORGANISM_HOST": "0.0.0.0"}, 2, "ORGANISM_API_KEY"),
        ({"ORGANISM_HOST": "0.0.0.0", "ORGANISM_API_KEY": ""}, 2, "ORGANISM_API_KEY"),
        ({"ORGANISM_QUEUE_LIMIT_BYTES": "5"}, 2, "could never be taken"),
        ({"ORGANISM_GENOME": "/nowhere/x.genome"}, 1, "cannot read genome"),
        ({"ORGANISM_STATE_DIR": "/dev/null/state"}, 1, "cannot use state folder"),
    ],
)
def test_it_refuses_to_start_with_a_clear_message(
    settings: dict[str, str], status: int, message: str, tmp_path: Path
) -> None:
    """One line that names the setting and the remedy; no traceback."""
    environment = {"ORGANISM_STATE_DIR": str(tmp_path / "state"), **settings}
    done = subprocess.run(
        [sys.executable, "-m", "server"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_one_daemon_a_state_folder(tmp_path: Path, genome_path: Path) -> None:
    """A second one says who is to blame."""
    with Daemon(tmp_path / "state", genome_path):
        environment = {
            "ORGANISM_STATE_DIR": str(tmp_path / "state"),
            "ORGANISM_GENOME": str(genome_path),
        }
        done = subprocess.run(
            [sys.executable, "-m", "server"], env=environment, capture_output=True, text=True
        )
    assert done.returncode == 1
    assert "held by another daemon" in done.stderr


def test_a_recovery_is_told_and_ends_well(tmp_path: Path, genome_path: Path) -> None:
    """Not ready, and how far it is, until all that was acknowledged is learned again."""
    settings = {"ORGANISM_SNAPSHOT_INTERVAL_S": "3600"}
    message = b"".join(b"line %d of a long message\n" % i for i in range(60_000))
    with Daemon(tmp_path / "state", genome_path, settings) as daemon:
        for _ in range(8):
            assert daemon.ingest(message).status_code == 200
        before = daemon.status()
        daemon.kill()
    with Daemon(tmp_path / "state", genome_path, settings, wait=False) as daemon:
        told = set()
        while (reply := answered(daemon, "/readyz")).status_code == 503:
            told.add(reply.json()["recovery_progress"])
            assert daemon.client.get("/healthz").status_code == 200
            # It may have come to its end meanwhile: an offset that is wrong then teaches nothing.
            refused = daemon.ingest(b"x\n", **{"Upload-Offset": "1"})
            assert refused.status_code in (503, 409)
            assert daemon.recall(b"x").status_code in (503, 200)
        assert len(told) > 1
        assert all(0 <= progress <= 1 for progress in told)
        assert daemon.recall(b"line 59999 of a long message").json()["recall_error"] == 0
        assert daemon.status() == before


def answered(daemon: Daemon, path: str) -> httpx.Response:
    """Ask until the port is open."""
    while True:
        try:
            return daemon.client.get(path)
        except httpx.ConnectError:
            assert daemon.process.poll() is None, daemon.log.read_text()


def test_a_damaged_journal_is_refused(tmp_path: Path, genome_path: Path) -> None:
    """Never a guess: file and byte are named, and ``verify`` shows the way forward."""
    state, settings = tmp_path / "state", {"ORGANISM_SNAPSHOT_INTERVAL_S": "3600"}
    with Daemon(state, genome_path, settings) as daemon:
        daemon.ingest(b"first\n")
        daemon.ingest(b"second\n")
        before = daemon.status()
        daemon.stop()
    (segment,) = (state / "journal").iterdir()
    blob = bytearray(segment.read_bytes())
    at = blob.find(b"first")
    blob[at] ^= 1
    segment.write_bytes(blob)

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        environment = {"ORGANISM_STATE_DIR": str(state), "ORGANISM_PORT": "0"}
        command = (sys.executable, "-m", "server", *command)
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    refused = run()
    assert refused.returncode == 1
    assert f"{segment}, byte " in refused.stderr
    assert "python -m server verify" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert run("verify").returncode == 1
    repaired = run("verify", "--repair", "--json")
    assert repaired.returncode == 0, repaired.stderr
    assert json.loads(repaired.stdout)["verdict"] == "good"
    with Daemon(state, genome_path) as daemon:
        assert daemon.status() == before
        assert daemon.recall(b"second").json()["recall_error"] == 0
    assert (state / "damaged-1" / "journal" / segment.name).read_bytes() == blob
