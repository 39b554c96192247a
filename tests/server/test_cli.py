"""The command line, run as users run it, against real daemons."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
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
