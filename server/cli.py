"""``organism``: the command line. Talks to a daemon, starts one, trains and inspects genomes.

Exit status: 0 done; 1 refused, or failed; 2 wrong usage; 3 no daemon answers; 130 interrupted.
Results go to stdout, progress and errors to stderr; with ``--json`` each result is one JSON object
a line. What needs torch is imported by the command that needs it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console, Group
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from server.client import DEFAULT_URL, Organism, OrganismError, Unreachable
from server.feeding import How, feed_file, feed_pipe
from server.following import Places
from server.watching import line, printable, pulses, watch_live
from server.wire import Job, RecallReply, RetrainRequest, RuleReply

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130

# After a signal: time for what was sent to be acknowledged.
_ENDING_S = 5.0
_PATIENCE_S = 60.0
_FOR_EVER_S = 10 * 365 * 86_400.0
_JOB_EVERY_S = 1.0
_SHADES = " ░▒▓█"
# Where there is no colour, what shrinks is drawn otherwise.
_UNCOLOURED = " .-=#"
_TERMS = 8
_PASS_ON: dict[str, Any] = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A daemon that never stops learning, and what asks it.",
    epilog="Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 no daemon answers, "
    "130 interrupted.",
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]


class Failure(Exception):
    """A command that cannot be done; the message says why, and what to do."""


class _Daemon(BaseModel):
    """Which daemon is meant."""

    url: str
    key: str | None

    def client(self) -> Organism:
        """A client for it."""
        try:
            return Organism(self.url, api_key=self.key)
        except ValueError as error:
            raise Failure(str(error)) from error


def main() -> None:
    """Run the command line, and leave with its exit status."""
    try:
        app()
    except Unreachable as error:
        _say(f"organism: {error}")
        sys.exit(EXIT_UNREACHABLE)
    except (OrganismError, Failure, OSError) as error:
        _say(f"organism: {error}")
        sys.exit(EXIT_FAILED)


@app.callback()
def _common(
    context: typer.Context,
    url: Annotated[
        str, typer.Option(envvar="ORGANISM_URL", help="Where the daemon listens.")
    ] = DEFAULT_URL,
    key: Annotated[
        str | None, typer.Option(envvar="ORGANISM_API_KEY", help="Its key, if it asks for one.")
    ] = None,
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=lambda on: _show_version(on),
            help="Show the version and exit.",
        ),
    ] = False,
) -> None:
    context.obj = _Daemon(url=url, key=key)


def _show_version(on: bool) -> None:
    if on:
        print(f"organism {version('organism')}")
        raise typer.Exit


@app.command()
def serve(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="Folder of what it has learned.")] = None,
    genome: Annotated[Path | None, typer.Option(help="Genome a new organism is born with.")] = None,
) -> None:
    """Run the daemon until Ctrl-C. All other settings are ORGANISM_ variables: see the README.

    Example: organism serve --port 8766 --state-dir /var/lib/organism
    """
    from server.__main__ import serve as run
    from server.settings import SettingsError, load_settings

    key = context.obj.key
    given = {"HOST": host, "PORT": port, "STATE_DIR": state_dir, "GENOME": genome, "API_KEY": key}
    os.environ |= {f"ORGANISM_{k}": str(v) for k, v in given.items() if v is not None}
    try:
        settings = load_settings()
    except SettingsError as error:
        _say(f"organism: {error}")
        raise typer.Exit(EXIT_USAGE) from error
    raise typer.Exit(run(settings))


@app.command()
def ingest(
    context: typer.Context,
    file: Annotated[str, typer.Argument(help="A file, or - for standard input.")],
    following: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as the file grows, or is rotated.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="From the beginning, whatever was learned before.")
    ] = False,
    offset: Annotated[
        int | None,
        typer.Option(min=0, help="Stream offset of the file's first byte: goes on from there."),
    ] = None,
    block_bytes: Annotated[
        int | None,
        typer.Option(min=1, help="Send blocks of so many bytes, not whole lines: for windows."),
    ] = None,
    patience: Annotated[
        float | None,
        typer.Option(
            min=0, help="Seconds to wait for a daemon that is away; 60, or with --follow no end."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Have a file learned, each byte once; run again after a cut, it goes on where it was.

    Example: organism ingest --follow /var/log/nginx/error.log
    """
    if again and offset is not None:
        raise typer.BadParameter("--again and --offset: give one of them")
    daemon: _Daemon = context.obj
    path = Path("/dev/stdin" if file == "-" else file)
    with daemon.client() as organism, _interruptible() as interrupted:
        how = How(following, block_bytes, _patience_s(patience, following), interrupted)
        if file == "-" or _is_pipe(path):
            if following or offset is not None:
                raise typer.BadParameter("--follow needs a file, as does --offset: this is a pipe")
            done = feed_pipe(organism, path, file, how)
        else:
            done = feed_file(organism, Places(daemon.url, path), path, how, again, offset)
    if as_json:
        print(json.dumps({"file": file} | done))
    else:
        print(f"{file}: {done['bytes']:,} bytes learned, the stream is at offset {done['offset']}")
    if interrupted() and not following:
        raise typer.Exit(EXIT_INTERRUPTED)


def _patience_s(given: float | None, following: bool) -> float:
    if given is None:
        return _FOR_EVER_S if following else _PATIENCE_S
    return min(given, _FOR_EVER_S)


def _is_pipe(path: Path) -> bool:
    """Whether it can be read once only; else it must be a file."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise Failure(f"{path}: no such file") from error
    if stat.S_ISDIR(mode):
        raise Failure(f"{path}: a folder; name a file")
    return not stat.S_ISREG(mode)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Let a signal end the work where it can be ended; a second one, or some time, at once."""
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)
        signal.setitimer(signal.ITIMER_REAL, _ENDING_S)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    # What is ignored stays so: a shell's job in the background is not for Ctrl-C.
    before = {n: handler for n in numbers if (handler := signal.getsignal(n)) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: bool(came)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@app.command()
def recall(
    context: typer.Context,
    text: Annotated[str | None, typer.Argument(help="The cue.")] = None,
    file: Annotated[
        str | None, typer.Option("--file", help="Ask about each line of a file, or of - .")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask how familiar a cue is, and what was lived that is like it.

    Example: organism recall 'connection refused'
    """
    if (text is None) == (file is None):
        raise typer.BadParameter("give a cue, or --file, and not both")
    console = Console()
    with context.obj.client() as organism:
        for cue in [os.fsencode(text)] if text is not None else _lines(file or "-"):
            reply = organism.recall(cue)
            if as_json:
                shown = {"cue": cue.decode(errors="replace")}
                print(json.dumps(shown | json.loads(reply.model_dump_json(by_alias=True))))
            elif text is not None:
                console.print(_answer(cue, reply))
            else:
                print(f"{reply.familiarity:.3f}  {printable(cue.decode(errors='replace'))}")


def _lines(name: str) -> Iterator[bytes]:
    with ExitStack() as opened:
        source = sys.stdin.buffer if name == "-" else opened.enter_context(open(name, "rb"))
        for each in source:
            if cue := each.rstrip(b"\r\n"):
                yield cue


def _answer(cue: bytes, reply: RecallReply) -> Group:
    head = Text.assemble(
        ("familiarity ", "dim"),
        (f"{reply.familiarity:.3f}", "bold"),
        ("   entropy ", "dim"),
        f"{reply.entropy:.4f}",
        ("   recall error ", "dim"),
        "none lived" if reply.recall_error is None else f"{reply.recall_error:.3f}",
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("similarity", justify="right")
    table.add_column("offset", justify="right")
    table.add_column("lived chunk, what it shares with the cue in bold", overflow="fold")
    for match in reply.matches:
        runs = [(start, start + length) for _, start, length in match.shared]
        table.add_row(f"{match.similarity:.3f}", str(match.offset), _marked(match.raw, runs))
    return Group(head, table)


def _marked(data: bytes, runs: list[tuple[int, int]]) -> Text:
    """Text of bytes, with some of them in bold."""
    shown, end = Text(), 0
    for first, last in runs:
        first, last = _character(data, first), _character(data, last)
        shown.append(printable(data[end:first].decode(errors="replace")), "dim")
        shown.append(printable(data[first:last].decode(errors="replace")), "bold")
        end = last
    return shown.append(printable(data[end:].decode(errors="replace")), "dim")


def _character(data: bytes, position: int) -> int:
    """Where the UTF-8 character begins that has the byte at a position."""
    start = position
    while 0 < start < len(data) and data[start] & 0xC0 == 0x80 and position - start < 3:
        start -= 1
    return start


@app.command()
def status(context: typer.Context, as_json: AsJson = False) -> None:
    """Show where the organism stands.

    Example: organism status --json
    """
    with context.obj.client() as organism:
        reply = organism.status()
    if as_json:
        print(reply.model_dump_json())
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in (
        ("daemon", context.obj.url),
        ("stream offset", f"{reply.offset:,} bytes"),
        ("chunks lived", f"{reply.steps:,}"),
        ("metabolic β", f"{reply.beta:.4f}"),
        ("entropy", "none yet" if reply.entropy is None else f"{reply.entropy:.4f}"),
        ("genome", f"{reply.genome_sha256[:16]}, generation {reply.genome_generation}"),
        ("state", reply.state_sha256[:16]),
    ):
        table.add_row(Text(name, "dim"), value)
    Console().print(table)


@app.command()
def watch(
    context: typer.Context,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many pulses.")] = None,
    as_json: AsJson = False,
) -> None:
    """Watch the organism live, a pulse a second, until Ctrl-C.

    Example: organism watch
    """
    console = Console()
    with context.obj.client() as organism:
        try:
            if as_json or not console.is_terminal:
                for pulse in pulses(organism, count):
                    if pulse is not None:
                        print(pulse.model_dump_json() if as_json else line(pulse), flush=True)
            else:
                watch_live(organism, count, console)
        except KeyboardInterrupt:
            pass  # that is how watching ends


@app.command(context_settings=_PASS_ON, add_help_option=False)
def train(context: typer.Context) -> None:
    """Train a genome; `organism train --help` lists every setting.

    Example: organism train --preset daemon --out my.genome
    """
    from organism.meta_train import main as run

    raise typer.Exit(run(context.args))


@app.command(context_settings=_PASS_ON, add_help_option=False)
def evaluate(context: typer.Context) -> None:
    """Evaluate a genome on the lines of a file; `organism evaluate --help` lists every option.

    Example: organism evaluate --genome my.genome --lines app.log
    """
    from organism.evaluate import main as run

    raise typer.Exit(run(context.args))


@app.command()
def inspect(
    context: typer.Context,
    genome: Annotated[str, typer.Argument(help="A genome file, or 'live': the daemon's.")],
    as_json: AsJson = False,
) -> None:
    """Show a genome: what it is, its rule drawn, and the terms that make it up.

    Example: organism inspect live
    """
    if genome == "live":
        with context.obj.client() as organism:
            reply, rule = organism.genome(), organism.rule()
        facts = reply.model_dump(exclude={"theta"})
    else:
        facts, rule = _read_genome(Path(genome))
    if as_json:
        print(json.dumps(facts | {"rule": rule.model_dump()}))
        return
    cortex = facts["config"]["cortex"]
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in (
        ("checksum", facts["sha256"]),
        ("parameters", f"{facts['parameters']}"),
        ("rule", f"{rule.family}, inputs scaled: {facts['config']['rule']['scaling']}"),
        ("cortex", f"{cortex['d_in']} × {cortex['d_hidden']} synapses"),
        ("made by", ", ".join(f"{k}: {v}" for k, v in _plain(facts["provenance"]).items())),
    ):
        if value:
            table.add_row(Text(name, "dim"), Text(value))
    console = Console()
    coloured = console.color_system is not None
    console.print(Group(table, "", _terms(rule), "", _heat(rule, coloured)))


def _read_genome(path: Path) -> tuple[dict[str, Any], RuleReply]:
    from organism.genome import GenomeError, load
    from organism.portrait import portrait

    try:
        genome = load(path)
    except GenomeError as error:
        raise Failure(str(error)) from error
    facts = {
        "sha256": genome.sha256,
        "parameters": genome.parameter_count,
        "config": genome.config.model_dump(mode="json"),
        "provenance": dict(genome.provenance),
    }
    return facts, RuleReply(**portrait(genome).plain())


def _plain(provenance: dict[str, Any]) -> dict[str, Any]:
    """What of a provenance fits on a line."""
    return {k: v for k, v in provenance.items() if isinstance(v, str | int | float)}


def _terms(rule: RuleReply) -> Group:
    title = "Δw / α, leading terms in scaled units"
    title += "" if rule.r_squared == 1 else f" (a fit, R² = {rule.r_squared:.3f})"
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("term")
    table.add_column("coefficient", justify="right")
    table.add_column("share", justify="right")
    for term in rule.terms[:_TERMS]:
        table.add_row(term.name, f"{term.coefficient:+.3f}", f"{term.share:.0%}")
    return Group(Text(title, "bold"), table)


def _heat(rule: RuleReply, coloured: bool) -> Table:
    """Draw Δw over pre (down) and post (across), one picture for each w."""
    largest = max(abs(v) for level in rule.delta for row in level for v in row) or 1.0
    table = Table(box=None, pad_edge=False, header_style="dim")
    for w in rule.w:
        table.add_column(f"w = {w:g}", no_wrap=True)
    pictures = []
    for level in rule.delta:
        picture = Text()
        for row in level[::2]:
            for value in row:
                shades = _SHADES if coloured or value > 0 else _UNCOLOURED
                shade = shades[round((abs(value) / largest) ** 0.5 * (len(shades) - 1))]
                picture.append(shade, "red" if value > 0 else "blue")
            picture.append("\n")
        pictures.append(picture)
    table.add_row(*pictures)
    signs = (
        "red grows, blue shrinks" if coloured else f"{_SHADES[1:]} grows, {_UNCOLOURED[1:]} shrinks"
    )
    table.caption = f"pre down, post across; {signs}; full: {largest:.2f}"
    return table


@app.command()
def retrain(
    context: typer.Context,
    outer_steps: Annotated[
        int, typer.Option(min=1, max=10_000, help="Outer steps of meta-training.")
    ] = 200,
    seed: Annotated[
        int, typer.Option(min=0, max=(1 << 32) - 1, help="Of the training streams.")
    ] = 1,
    threads: Annotated[int, typer.Option(min=1, max=64, help="Cores the child may use.")] = 1,
    wait: Annotated[bool, typer.Option(help="Wait for the verdict.")] = True,
    as_json: AsJson = False,
) -> None:
    """Have the daemon train a successor; it takes over if it is no worse.

    Example: organism retrain --outer-steps 500
    """
    request = RetrainRequest(outer_steps=outer_steps, seed=seed, threads=threads)
    with context.obj.client() as organism:
        job = organism.retrain(request)
        if wait:
            job = _verdict(organism, job)
    if as_json:
        print(job.model_dump_json())
    elif job.status == "running":
        print(f"job {job.id} runs: {context.obj.url}/jobs/{job.id}")
    elif job.status == "failed":
        raise Failure(f"job {job.id} failed: {job.error}")
    else:
        outcome = "takes over" if job.promoted else "does not take over"
        print(
            f"the successor {outcome}: held-out score {job.candidate_score:.4f}, "
            f"the running genome's {job.running_score:.4f}"
        )
    if job.status == "failed":
        raise typer.Exit(EXIT_FAILED)


def _verdict(organism: Organism, job: Job) -> Job:
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("training a successor", total=job.outer_steps)
        while job.status == "running":
            time.sleep(_JOB_EVERY_S)
            job = organism.job(job.id)
            progress.update(task, completed=job.step)
    return job


@app.command()
def verify(
    folder: Annotated[
        Path | None, typer.Argument(help="State folder; default: the setting's.")
    ] = None,
    repair: Annotated[bool, typer.Option(help="Make a damaged folder start again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Inspect a state folder: would a daemon start on it?

    Example: organism verify --repair /var/lib/organism
    """
    from server.settings import SettingsError, load_settings
    from server.verify import run

    try:
        settings = load_settings()
    except SettingsError as error:
        _say(f"organism: {error}")
        raise typer.Exit(EXIT_USAGE) from error
    options = argparse.Namespace(folder=folder, repair=repair, json=as_json)
    raise typer.Exit(run(options, settings.state_dir))


def _say(message: str) -> None:
    print(message, file=sys.stderr)


if __name__ == "__main__":
    main()
