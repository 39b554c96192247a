"""The command line, run as users run it, against real daemons."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import Daemon, free_port, until

ORGANISM = [sys.executable, "-m", "server.cli"]


def environment(daemon: Daemon | None, home: Path) -> dict[str, str]:
    """The environment of a user of this daemon."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ORGANISM_")}
    port = free_port() if daemon is None else daemon.port
    return kept | {
        "ORGANISM_URL": f"http://127.0.0.1:{port}",
        "XDG_STATE_HOME": str(home),
        "COLUMNS": "100",
        "TERM": "dumb",
    }


def organism(
    daemon: Daemon | None, home: Path, *arguments: str, given: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end."""
    return subprocess.run(
        [*ORGANISM, *arguments],
        env=environment(daemon, home),
        input=given,
        capture_output=True,
        timeout=120,
    )


def answer(daemon: Daemon, home: Path, *arguments: str, given: bytes = b"") -> Any:
    """The one JSON object that a command prints, and nothing on stderr."""
    done = organism(daemon, home, *arguments, "--json", given=given)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    return json.loads(done.stdout)


def test_a_file_is_learned_once(daemon: Daemon, tmp_path: Path) -> None:
    """A second run adds what was appended; --again all of it; another file its own."""
    log = tmp_path / "app.log"
    log.write_bytes(b"".join(b"line %d\n" % i for i in range(20_000)) + b"no end")
    size = log.stat().st_size
    before = daemon.status()["offset"]
    first = answer(daemon, tmp_path, "ingest", str(log))
    assert (first["bytes"], first["position"]) == (size, size)
    assert first["offset"] == daemon.status()["offset"] == before + size  # type: ignore[operator]
    assert answer(daemon, tmp_path, "ingest", str(log))["bytes"] == 0
    with log.open("ab") as file:
        file.write(b" of it\n")
    assert answer(daemon, tmp_path, "ingest", str(log))["bytes"] == 7
    assert answer(daemon, tmp_path, "ingest", "--again", str(log))["bytes"] == size + 7
    assert answer(daemon, tmp_path, "ingest", "-", given=b"from a pipe\n")["bytes"] == 12


def test_what_it_says(daemon: Daemon, tmp_path: Path) -> None:
    """Each command tells a person, and with --json a program, the same."""
    organism(daemon, tmp_path, "ingest", "-", given=b"the cue that was lived\n" * 20)
    reply = answer(daemon, tmp_path, "recall", "the cue that was lived")
    assert reply["matches"][0]["text"] == reply["cue"] == "the cue that was lived"
    shown = organism(daemon, tmp_path, "recall", "the cue that was lived").stdout.decode()
    assert f"{reply['familiarity']:.3f}" in shown
    assert "the cue that was lived" in shown
    done = organism(daemon, tmp_path, "recall", "--file", "-", "--json", given=b"one\n\ntwo\n")
    assert [json.loads(line)["cue"] for line in done.stdout.splitlines()] == ["one", "two"]
    status = answer(daemon, tmp_path, "status")
    assert f"{status['offset']:,}" in organism(daemon, tmp_path, "status").stdout.decode()
    pulse = answer(daemon, tmp_path, "watch", "--count", "1")
    assert pulse["offset"] == status["offset"]
    lines = organism(daemon, tmp_path, "watch", "--count", "2").stdout.splitlines()
    assert len(lines) == 2
    assert b"familiarity" in lines[0]


def test_a_genome_is_shown(daemon: Daemon, genome_path: Path, tmp_path: Path) -> None:
    """The file's and the daemon's are the same one, drawn with its terms."""
    of_file = answer(daemon, tmp_path, "inspect", str(genome_path))
    live = answer(daemon, tmp_path, "inspect", "live")
    assert of_file["sha256"] == live["sha256"]
    assert of_file["rule"] == live["rule"]
    shown = organism(daemon, tmp_path, "inspect", "live").stdout.decode()
    assert of_file["rule"]["terms"][0]["name"] in shown
    assert "pre down, post across" in shown


def test_state_and_training_commands_pass_on(daemon: Daemon, tmp_path: Path) -> None:
    """``verify``, ``train`` and ``evaluate`` are the modules' own, with their options."""
    report = answer(daemon, tmp_path, "verify", str(daemon.state_dir))
    assert report["verdict"] in ("good", "torn")
    assert b"--outer-steps" in organism(None, tmp_path, "train", "--help").stdout
    done = organism(None, tmp_path, "evaluate", "--genome", "nowhere")
    assert done.returncode == 2
    assert b"nowhere" in done.stderr


def test_exit_statuses(daemon: Daemon, tmp_path: Path) -> None:
    """3 where nobody answers, with the remedy; 1 refused; 2 wrong usage; never a traceback."""
    for daemon_or_none, arguments, status, word in (
        (None, ["status"], 3, b"organism serve"),
        (None, ["watch"], 3, b"organism serve"),
        (daemon, ["recall", "two\nlines"], 1, b"one line"),
        (daemon, ["ingest", str(tmp_path / "none")], 1, b"no such file"),
        (daemon, ["inspect", str(tmp_path / "none")], 1, b"No such file"),
        (daemon, ["recall"], 2, b"give a cue"),
        (daemon, ["ingest", "-", "--follow"], 2, b"--follow needs a file"),
        (daemon, ["nonsense"], 2, b"No such command"),
        (daemon, ["--url", "nonsense", "status"], 1, b"http://"),
    ):
        done = organism(daemon_or_none, tmp_path, *arguments)
        assert done.returncode == status, (arguments, done.stderr)
        assert word in done.stderr
        assert b"Traceback" not in done.stderr


def test_a_cut_ingest_goes_on(tmp_path: Path, genome_path: Path) -> None:
    """The daemon killed and started again, the command killed and run again: each byte once."""
    log = tmp_path / "big.log"
    log.write_bytes(b"".join(b"entry %d of a long log\n" % i for i in range(400_000)))
    size = log.stat().st_size
    with Daemon(tmp_path / "calm", genome_path) as calm:
        assert answer(calm, tmp_path / "home-1", "ingest", str(log))["offset"] == size
        expected = calm.status()["state_sha256"]
    with Daemon(tmp_path / "state", genome_path) as daemon:
        home = tmp_path / "home-2"

        def begin(command: list[str]) -> subprocess.Popen[bytes]:
            return subprocess.Popen(command, env=environment(daemon, home))

        command = [*ORGANISM, "ingest", str(log)]
        run = begin(command)
        until(lambda: daemon.status()["offset"] > size // 8)  # type: ignore[operator]
        daemon.again()
        until(daemon.ready)
        until(lambda: daemon.status()["offset"] > size // 3)  # type: ignore[operator]
        assert run.poll() is None, "it was to be cut in the midst of it"
        run.kill()
        run.wait()
        done = answer(daemon, home, "ingest", str(log))
        assert 0 < done["bytes"] < size
        assert done["offset"] == done["position"] == size
        assert daemon.status()["state_sha256"] == expected


def test_a_growing_file_is_followed(daemon: Daemon, tmp_path: Path) -> None:
    """Through a rotation, until Ctrl-C, which ends it well."""
    log = tmp_path / "live.log"
    log.write_bytes(b"before\n")
    before = daemon.status()["offset"]
    command = [*ORGANISM, "ingest", "--follow", str(log)]
    run = subprocess.Popen(
        command, env=environment(daemon, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )

    def lived(size: int) -> bool:
        return daemon.status()["offset"] == before + size  # type: ignore[operator]

    until(lambda: lived(7))
    with log.open("ab") as file:
        file.write(b"live\nheld ba")
    until(lambda: lived(12))
    os.rename(log, tmp_path / "live.log.1")
    log.write_bytes(b"rotated\n")
    until(lambda: lived(12 + 7 + 8))
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=30)
    assert run.returncode == 0, err
    assert b"27 bytes learned" in out


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_for_terminals(daemon: Daemon, tmp_path: Path, terminal: bool) -> None:
    """On stderr, and only where it is one."""
    log = tmp_path / "some.log"
    log.write_bytes(b"some line\n" * 1000)
    ours, theirs = pty.openpty()
    run = subprocess.run(
        [*ORGANISM, "ingest", str(log)],
        env=environment(daemon, tmp_path) | {"TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=theirs if terminal else subprocess.PIPE,
    )
    os.close(theirs)
    said = os.read(ours, 65536) if terminal else run.stderr
    os.close(ours)
    assert run.returncode == 0
    assert (b"some.log" in said) == terminal
    assert b"10,000 bytes learned" in run.stdout


def test_the_shell_completes(tmp_path: Path) -> None:
    """The completion script of bash knows the commands."""
    asked = environment(None, tmp_path) | {
        "_ORGANISM_COMPLETE": "complete_bash",
        "COMP_WORDS": "organism in",
        "COMP_CWORD": "1",
    }
    code = "import sys; sys.argv[0] = 'organism'; from server.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=asked, capture_output=True)
    assert {b"ingest", b"inspect"} <= set(done.stdout.split())


def test_asking_does_not_wait_for_the_science(daemon: Daemon, tmp_path: Path) -> None:
    """Commands that only ask never import torch."""
    code = (
        "import sys\nsys.argv = ['organism', 'status']\nfrom server.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "sys.exit('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], env=environment(daemon, tmp_path))
    assert run.returncode == 0


def follow(daemon: Daemon, home: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Begin to ingest what grows."""
    return subprocess.Popen(
        [*ORGANISM, "ingest", *arguments],
        env=environment(daemon, home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def end(run: subprocess.Popen[bytes], number: signal.Signals = signal.SIGINT) -> bytes:
    """Have it end; return what it said."""
    run.send_signal(number)
    out, err = run.communicate(timeout=30)
    assert (run.returncode, err) == (0, b"")
    return out


def reaches(daemon: Daemon, offset: int) -> None:
    """Wait until the stream stands at an offset."""
    until(lambda: daemon.status()["offset"] == offset)


def test_files_in_turn_go_on_where_they_were(daemon: Daemon, tmp_path: Path) -> None:
    """Bytes that others bring after a file was learned to its end do not matter to it."""
    for name, size in (("a", 8), ("b", 8), ("a", 8), ("b", 8), ("a", 8)):
        with (tmp_path / name).open("ab") as file:
            file.write(b"one two\n")
        assert answer(daemon, tmp_path, "ingest", str(tmp_path / name))["bytes"] == size


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_following_goes_on_in_a_rotated_file(
    daemon: Daemon, tmp_path: Path, number: signal.Signals
) -> None:
    """Stopped after a rotation, or a truncation, and begun again: nothing is learned twice."""
    log = tmp_path / "live.log"
    log.write_bytes(b"before\n")
    now = int(str(daemon.status()["offset"]))
    run = follow(daemon, tmp_path, "-f", str(log))
    reaches(daemon, now + 7)
    os.rename(log, tmp_path / "live.log.1")
    log.write_bytes(b"rotated\n")
    reaches(daemon, now + 15)
    assert b"15 bytes learned" in end(run, number)
    with log.open("ab") as file:
        file.write(b"meanwhile\n")
    run = follow(daemon, tmp_path, "-f", str(log))
    reaches(daemon, now + 25)
    log.write_bytes(b"cut\n")
    reaches(daemon, now + 29)
    end(run, number)
    assert answer(daemon, tmp_path, "ingest", str(log))["bytes"] == 0
    assert daemon.status()["offset"] == now + 29


def test_another_writer_behind_a_cut_is_told(tmp_path: Path, genome_path: Path) -> None:
    """Nobody knows what was learned then: it is refused, with two remedies, and both work."""
    log = tmp_path / "log"
    log.write_bytes(b"".join(b"entry %d of a log\n" % i for i in range(150_000)))
    size = log.stat().st_size
    with Daemon(tmp_path / "state", genome_path) as daemon:
        run = follow(daemon, tmp_path, str(log))
        until(lambda: int(str(daemon.status()["offset"])) > size // 4)
        run.kill()
        run.communicate()
        # Frames of the run that was killed may still be learned: the next message comes behind.
        there = int(str(daemon.ingest(b"another writer's\n").json()["offset"]))
        refused = organism(daemon, tmp_path, "ingest", str(log))
        assert refused.returncode == 1
        assert b"--again" in refused.stderr
        found = re.search(rb"from byte (\d+) with --offset (\d+)", refused.stderr)
        assert found
        position, base = map(int, found.groups())
        assert position + base == there == daemon.status()["offset"]
        done = answer(daemon, tmp_path, "ingest", str(log), "--offset", str(base))
        assert done["bytes"] == size - position
        assert done["position"] == size
        wrong = organism(daemon, tmp_path, "ingest", str(log), "--offset", "0")
        assert wrong.returncode == 1
        assert b"the stream is at" in wrong.stderr


def test_a_new_organism_learns_the_whole_file(tmp_path: Path, genome_path: Path) -> None:
    """Born at the address of another, it has lived nothing of what that one had."""
    log = tmp_path / "log"
    log.write_bytes(b"a line\n" * 100)
    with Daemon(tmp_path / "state", genome_path) as daemon:
        assert answer(daemon, tmp_path, "ingest", str(log))["bytes"] == 700
        daemon.state_dir = tmp_path / "other"
        daemon.again()
        until(daemon.ready)
        assert answer(daemon, tmp_path, "ingest", str(log))["bytes"] == 700


def test_windows_come_in_whole_blocks(tmp_path: Path, genome_path: Path) -> None:
    """From a file and from a pipe that dribbles: each window but the last is full."""
    settings = {"ORGANISM_CHUNKING": "windows", "ORGANISM_CHUNK_BYTES": "16"}
    data = bytes(range(256)) * 40 + b"rest"
    (tmp_path / "data").write_bytes(data)
    with Daemon(tmp_path / "state", genome_path, settings) as daemon:
        answer(daemon, tmp_path, "ingest", str(tmp_path / "data"), "--block-bytes", "1024")
        assert daemon.status()["steps"] == 641
        run = follow(daemon, tmp_path, "-", "--block-bytes", "1024")
        assert run.stdin
        run.stdin.write(data[:1500])
        run.stdin.flush()
        reaches(daemon, len(data) + 1024)
        run.communicate(data[1500:], timeout=30)
        assert daemon.status()["steps"] == 1282


def test_a_pipe_is_learned_as_it_comes(daemon: Daemon, tmp_path: Path) -> None:
    """Lines while it is open; at an interrupt what was sent is learned, and the status is 130."""
    now = int(str(daemon.status()["offset"]))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    run = follow(daemon, tmp_path, str(pipe))
    with pipe.open("wb", buffering=0) as writer:
        writer.write(b"one line\nand a ha")
        reaches(daemon, now + 9)
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=30)
    assert (run.returncode, err) == (130, b"")
    assert b"17 bytes learned" in out
    assert daemon.status()["offset"] == now + 17


def test_a_stream_does_not_steer_the_terminal(daemon: Daemon, tmp_path: Path) -> None:
    """Control characters of what was lived, and of cues, are shown as pictures."""
    evil = b"\x1b[31mred\x07 \xc2\x9b alarm\x1b]0;title\x07 of a line"
    assert organism(daemon, tmp_path, "ingest", "-", given=evil + b"\n").returncode == 0
    for arguments in (["recall", "red alarm title of a line"], ["recall", "--file", "-"]):
        done = organism(daemon, tmp_path, *arguments, given=evil + b"\n")
        assert "␛[31mred␇".encode() in done.stdout
        assert not {0x1B, 0x07} & {*done.stdout}
        assert "\x9b" not in done.stdout.decode()


def test_a_reader_that_leaves_is_no_error(daemon: Daemon, tmp_path: Path) -> None:
    """``| head``: nothing is said about it."""
    for arguments in (["inspect", "live"], ["inspect", "live", "--json"], ["watch", "--json"]):
        ours, theirs = os.pipe()
        os.close(ours)
        run = subprocess.run(
            [*ORGANISM, *arguments],
            env=environment(daemon, tmp_path),
            stdout=theirs,
            stderr=subprocess.PIPE,
            timeout=60,
        )
        os.close(theirs)
        assert (run.returncode, run.stderr) == (1, b"")


def test_watching_goes_on_with_a_daemon_that_comes_back(tmp_path: Path, genome_path: Path) -> None:
    """Pulses of both lives; Ctrl-C ends it well."""
    with Daemon(tmp_path / "state", genome_path) as daemon:
        run = subprocess.Popen(
            [*ORGANISM, "watch", "--json"],
            env=environment(daemon, tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert run.stdout
        assert json.loads(run.stdout.readline())["offset"] == 0
        daemon.again()
        until(daemon.ready)
        daemon.ingest(b"after\n")
        while json.loads(run.stdout.readline())["offset"] != 6:
            assert run.poll() is None
        end(run)


@pytest.mark.parametrize("columns", [80, 120])
def test_watching_draws_on_a_terminal(daemon: Daemon, tmp_path: Path, columns: int) -> None:
    """Rates, sparklines, live recall and the novel chunks, nothing wider than the terminal."""
    organism(daemon, tmp_path, "ingest", "-", given=b"something novel\n")
    novel = answer(daemon, tmp_path, "watch", "--count", "1")["novel"][0]["text"]
    ours, theirs = pty.openpty()
    asked = environment(daemon, tmp_path) | {"TERM": "xterm", "COLUMNS": str(columns)}
    command = [*ORGANISM, "watch", "--count", "2"]
    run = subprocess.Popen(command, env=asked, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    with suppress(OSError):  # Linux: how the terminal of a process that ended says so
        while data := os.read(ours, 65536):
            said += data
    os.close(ours)
    assert run.wait(timeout=30) == 0
    # One frame is drawn over the other: by cursor movements, not by line ends.
    frames = said.decode().replace("\x1b[1A", "\n")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", frames).replace("\r", "")
    for word in ("familiarity", "metabolic β", "live recall", novel, "▁"):
        assert word in shown
    assert max(map(len, shown.splitlines())) <= columns


def test_serving_takes_options_before_the_environment(tmp_path: Path, genome_path: Path) -> None:
    """A client's variables do not stop it, a key is asked for, and SIGTERM ends it well."""

    class Served(Daemon):
        def command(self) -> list[str]:
            chosen = ["--state-dir", str(tmp_path / "chosen"), "--genome", str(self.genome)]
            return [*ORGANISM, "--key", "secret", "serve", *chosen]

    ignored = {"ORGANISM_URL": "http://127.0.0.1:1", "ORGANISM_GENOME": str(tmp_path / "none")}
    with Served(tmp_path / "state", genome_path, ignored) as daemon:
        assert daemon.client.get("/status").status_code == 401
        assert answer(daemon, tmp_path, "--key", "secret", "status")["offset"] == 0
        refused = organism(daemon, tmp_path, "--key", "wrong", "status")
        assert refused.returncode == 1
        assert refused.stderr.startswith(b"organism: ")
        daemon.stop()
    assert (tmp_path / "chosen").is_dir()
    assert not (tmp_path / "state").exists()
    asked = environment(None, tmp_path) | {"ORGANISM_NONSENSE": "1"}
    for command in ("serve", "verify"):
        done = subprocess.run([*ORGANISM, command], env=asked, capture_output=True)
        assert done.returncode == 2
        assert b"ORGANISM_NONSENSE" in done.stderr


@pytest.mark.slow
def test_a_retraining_is_waited_for(daemon: Daemon, tmp_path: Path) -> None:
    """Until its verdict; or not, and then a second one is refused while it runs."""
    options = ("retrain", "--outer-steps", "1")
    job = answer(daemon, tmp_path, *options)
    assert job["status"] in ("succeeded", "failed")
    assert answer(daemon, tmp_path, "retrain", "--no-wait")["status"] == "running"
    refused = organism(daemon, tmp_path, *options)
    assert refused.returncode == 1
    assert b"Traceback" not in refused.stderr
    wrong = organism(daemon, tmp_path, "retrain", "--seed", str(1 << 32))
    assert wrong.returncode == 2


def test_what_is_no_organism_is_told(tmp_path: Path) -> None:
    """Another server at that address is named as such, without a traceback."""

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello")

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        done = organism(None, tmp_path, "--url", url, "status")
        server.shutdown()
        thread.join()
    assert done.returncode == 3
    assert b"another server" in done.stderr
    assert b"Traceback" not in done.stderr
