"""``organism``: the command line. Talks to a daemon, starts one, trains and inspects genomes.

Exit status: 0 done; 1 refused, or failed; 2 wrong usage; 3 no daemon answers; 130 interrupted.
Results go to stdout, progress and errors to stderr; with ``--json`` each result is one JSON object
a line. What needs torch is imported by the command that needs it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer
from pydantic import BaseModel
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from server.client import DEFAULT_URL, Organism, OrganismError, Refused, Stream, Unreachable
from server.following import Piece, Places, follow, pieces
from server.wire import Job, Pulse, RecallReply, RetrainRequest, RuleReply

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3

_SAVE_EVERY_S = 1.0
_JOB_EVERY_S = 1.0
_RECONNECT_EVERY_S = 1.0
_SPARKS = "▁▂▃▄▅▆▇█"
_HISTORY = 60
_SHADES = " ░▒▓█"
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
        typer.Option("--version", is_eager=True, callback=lambda on: _show_version(on)),
    ] = False,
) -> None:
    context.obj = _Daemon(url=url, key=key)


def _show_version(on: bool) -> None:
    if on:
        print(f"organism {version('organism')}")
        raise typer.Exit


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="Folder of what it has learned.")] = None,
    genome: Annotated[Path | None, typer.Option(help="Genome a new organism is born with.")] = None,
) -> None:
    """Run the daemon until Ctrl-C. All other settings are ORGANISM_ variables: see the README."""
    from server.__main__ import serve as run
    from server.settings import SettingsError, load_settings

    given = {"HOST": host, "PORT": port, "STATE_DIR": state_dir, "GENOME": genome}
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
        bool, typer.Option(help="From the beginning, though a part was learned before.")
    ] = False,
    block_bytes: Annotated[
        int | None,
        typer.Option(min=1, help="Send blocks of so many bytes, not whole lines: for windows."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Have a file learned, each byte once; run again after a cut, it goes on where it was.

    Example: organism ingest --follow /var/log/nginx/error.log
    """
    daemon: _Daemon = context.obj
    with daemon.client() as organism:
        if file == "-":
            if following:
                raise typer.BadParameter("--follow needs a file: standard input is followed anyhow")
            done = _ingest_input(organism, sys.stdin.buffer, block_bytes)
        else:
            done = _ingest_file(organism, daemon.url, Path(file), following, again, block_bytes)
    if as_json:
        print(json.dumps(done))
    else:
        print(f"{file}: {done['bytes']:,} bytes learned, the stream is at offset {done['offset']}")


def _ingest_input(organism: Organism, source: BinaryIO, block: int | None) -> dict[str, Any]:
    with organism.stream() as stream:
        start = stream.offset
        for piece in pieces(_Ready(source), 0, block):  # type: ignore[arg-type]
            stream.send(piece.data)
    return {"file": "-", "bytes": stream.offset - start, "offset": stream.offset}


class _Ready:
    """Standard input, read as it comes."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source

    def read(self, size: int) -> bytes:
        """Return what is there, at most ``size`` bytes; wait for the first."""
        data: bytes = self._source.read1(size)  # type: ignore[attr-defined]
        return data


def _ingest_file(
    organism: Organism, url: str, path: Path, following: bool, again: bool, block: int | None
) -> dict[str, Any]:
    if not path.is_file():
        raise Failure(f"{path}: no such file")
    places = Places(url, path)
    place = None if again else places.recall()
    known = 0
    if place is None:
        place = places.begin(0, organism.offset())
    else:  # what was learned after the last word about it is known by its bytes
        known = min(organism.offset() - place.offset, path.stat().st_size - place.position)
    start, began = place.position, time.monotonic()
    with organism.stream(place.offset) as stream, _progress(path, start, following) as show:
        sent: deque[tuple[int, int]] = deque()  # ends in the file and in the stream
        end, said = place.offset, 0.0
        position = start
        try:
            for piece in _of_file(path, start, following, block, max(known, 0)):
                stream.send(piece.data)
                end += len(piece.data)
                sent.append((piece.position, end))
                position = _acknowledged(sent, stream, position)
                show(position)
                if time.monotonic() > said + _SAVE_EVERY_S:
                    said = time.monotonic()
                    places.move(place, position, stream.offset)
            stream.flush()
        except KeyboardInterrupt:
            if not following:
                raise
            stream.flush()
        except Refused as refusal:
            raise Failure(f"{path}, byte {position}: {refusal.detail}") from refusal
        finally:
            position = _acknowledged(sent, stream, position)
            show(position)
            places.move(place, position, stream.offset)
    return {
        "file": str(path),
        "bytes": stream.offset - place.offset,
        "offset": stream.offset,
        "position": position,
        "seconds": round(time.monotonic() - began, 3),
    }


def _of_file(
    path: Path, position: int, following: bool, block: int | None, known: int
) -> Iterator[Piece]:
    """Pieces of a file; one ends where the stream does, so that none straddles its end."""
    with path.open("rb") as file:
        file.seek(position)
        for piece in pieces(file, position, block, known):
            if following and not block and not piece.data.endswith(b"\n"):
                break
            yield piece
            position = piece.position
    if following:
        yield from follow(path, position, block)


def _acknowledged(sent: deque[tuple[int, int]], stream: Stream, position: int) -> int:
    """Move on past what is acknowledged; return where that ends in the file."""
    while sent and sent[0][1] <= stream.offset:
        position, _ = sent.popleft()
    return position


@contextmanager
def _progress(path: Path, start: int, following: bool) -> Iterator[Any]:
    """Show how much is acknowledged, on a terminal; yields what takes the position."""
    if not sys.stderr.isatty():
        yield lambda position: None
        return
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    ]
    total = None if following else path.stat().st_size
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(path.name, total=total, completed=start)
        yield lambda position: progress.update(task, completed=position)


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
                line = cue.decode(errors="replace")
                print(f"{reply.familiarity:.3f}  {line}")


def _lines(name: str) -> Iterator[bytes]:
    with ExitStack() as closing:
        source = sys.stdin.buffer if name == "-" else closing.enter_context(open(name, "rb"))
        for line in source:
            if cue := line.rstrip(b"\r\n"):
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
        shown.append(data[end:first].decode(errors="replace"), "dim")
        shown.append(data[first:last].decode(errors="replace"), "bold")
        end = last
    return shown.append(data[end:].decode(errors="replace"), "dim")


@app.command()
def status(context: typer.Context, as_json: AsJson = False) -> None:
    """Show where the organism stands."""
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
    """Watch the organism live, a pulse a second, until Ctrl-C."""
    console = Console()
    with context.obj.client() as organism:
        try:
            if as_json or not console.is_terminal:
                for pulse in _pulses(organism, count):
                    print(pulse.model_dump_json() if as_json else _line(pulse), flush=True)
            else:
                _watch(organism, count, console)
        except KeyboardInterrupt:
            pass  # that is how watching ends


def _pulses(organism: Organism, count: int | None) -> Iterator[Pulse]:
    """Pulses, also of a daemon that comes back; the first time it must be there."""
    seen = 0
    while True:
        try:
            for pulse in organism.events():
                yield pulse
                seen += 1
                if seen == count:
                    return
        except Unreachable:
            if not seen:
                raise
        time.sleep(_RECONNECT_EVERY_S)


def _line(pulse: Pulse) -> str:
    return (
        f"offset {pulse.offset}  chunks/s {pulse.chunks_per_s:.0f}  "
        f"familiarity {_number(pulse.familiarity)}  entropy {_number(pulse.entropy)}  "
        f"β {_number(pulse.beta)}  recall AUROC {_number(pulse.recall.auroc)}"
    )


def _watch(organism: Organism, count: int | None, console: Console) -> None:
    past: deque[Pulse] = deque(maxlen=_HISTORY)
    with Live(console=console, auto_refresh=False, transient=False) as live:
        for pulse in _pulses(organism, count):
            past.append(pulse)
            live.update(_view([*past], console.width), refresh=True)


def _view(past: list[Pulse], width: int) -> Group:
    pulse = past[-1]
    state = "learning" if pulse.ready else f"recovering, {pulse.recovery:.0%}"
    head = Text(f"{state}   offset {pulse.offset:,}   chunks {pulse.steps:,}", "bold")
    rows = Table(box=None, show_header=False, pad_edge=False)
    for name, now, values in (
        ("chunks a second", f"{pulse.chunks_per_s:.0f}", [p.chunks_per_s for p in past]),
        ("familiarity", _number(pulse.familiarity), [p.familiarity for p in past]),
        ("entropy std(h)", _number(pulse.entropy), [p.entropy for p in past]),
        ("metabolic β", _number(pulse.beta), [p.beta for p in past]),
    ):
        rows.add_row(Text(name, "dim"), f"{now:>8}", sparkline(values, max(width - 30, 8)))
    found = pulse.recall
    live = Text(
        f"live recall   AUROC {_number(found.auroc)}   top-1 {_number(found.top1)}   "
        f"error {_number(found.error)}"
    )
    novel = Table(box=None, pad_edge=False, header_style="dim")
    novel.add_column("familiarity", justify="right")
    novel.add_column("ago", justify="right")
    novel.add_column("most novel of the last minutes", overflow="ellipsis", no_wrap=True)
    for item in pulse.novel[:_TERMS]:
        novel.add_row(f"{item.familiarity:.3f}", f"{item.age_s:.0f} s", Text(item.text))
    return Group(head, rows, live, novel)


def sparkline(values: Sequence[float | None], width: int) -> str:
    """Draw the last values as bars from their least to their greatest; a gap where there is none.

    >>> sparkline([0.0, None, 1.0], 3)
    '▁ █'
    """
    shown = values[-width:]
    known = [value for value in shown if value is not None]
    low, span = min(known, default=0.0), (max(known, default=0.0) - min(known, default=0.0)) or 1
    return "".join(
        " " if value is None else _SPARKS[round((value - low) / span * (len(_SPARKS) - 1))]
        for value in shown
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


@app.command(context_settings=_PASS_ON, add_help_option=False)
def train(context: typer.Context) -> None:
    """Train a genome; `organism train --help` lists every setting."""
    from organism.meta_train import main as run

    raise typer.Exit(run(context.args))


@app.command(context_settings=_PASS_ON, add_help_option=False)
def evaluate(context: typer.Context) -> None:
    """Evaluate a genome on the lines of a file; `organism evaluate --help` lists every option."""
    from organism.evaluate import main as run

    raise typer.Exit(run(context.args))


@app.command()
def inspect(
    context: typer.Context,
    genome: Annotated[str, typer.Argument(help="A genome file, or 'live': the daemon's.")],
    as_json: AsJson = False,
) -> None:
    """Show a genome: what it is, its rule drawn, and the terms that make it up."""
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
        table.add_row(Text(name, "dim"), value)
    Console().print(Group(table, _terms(rule), _heat(rule)))


def _read_genome(path: Path) -> tuple[dict[str, Any], RuleReply]:
    from organism.genome import GenomeError, load
    from organism.portrait import portrait
    from server.wire import Term

    try:
        genome = load(path)
    except GenomeError as error:
        raise Failure(str(error)) from error
    drawn = portrait(genome)
    facts = {
        "sha256": genome.sha256,
        "parameters": genome.parameter_count,
        "config": genome.config.model_dump(mode="json"),
        "provenance": dict(genome.provenance),
    }
    return facts, RuleReply(
        family=drawn.family,
        pre=drawn.pre.tolist(),
        post=drawn.post.tolist(),
        w=drawn.w.tolist(),
        delta=drawn.delta.tolist(),
        terms=[Term(**vars(term)) for term in drawn.terms],
        r_squared=drawn.r_squared,
    )


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


def _heat(rule: RuleReply) -> Table:
    """Draw Δw over pre (down) and post (across), one picture for each w."""
    largest = max(abs(v) for level in rule.delta for row in level for v in row) or 1.0
    table = Table(box=None, pad_edge=False, header_style="dim")
    for w in rule.w:
        table.add_column(f"w = {w:g}; pre down, post across", no_wrap=True)
    pictures = []
    for level in rule.delta:
        picture = Text()
        for row in level[::2]:
            for value in row:
                strength = abs(value) / largest
                shade = _SHADES[min(round(strength**0.5 * (len(_SHADES) - 1)), len(_SHADES) - 1)]
                picture.append(shade, "red" if value > 0 else "blue")
            picture.append("\n")
        pictures.append(picture)
    table.add_row(*pictures)
    table.caption = f"red grows, blue shrinks; full: {largest:.2f}"
    return table


@app.command()
def retrain(
    context: typer.Context,
    outer_steps: Annotated[int, typer.Option(min=1, max=10_000)] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of the training streams.")] = 1,
    threads: Annotated[int, typer.Option(min=1, max=64, help="Cores the child may use.")] = 1,
    wait: Annotated[bool, typer.Option(help="Wait for the verdict.")] = True,
    as_json: AsJson = False,
) -> None:
    """Have the daemon train a successor; it takes over if it is no worse."""
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
    """Inspect a state folder: would a daemon start on it?"""
    from server.settings import SettingsError, load_settings
    from server.verify import run

    try:
        settings = load_settings()
    except SettingsError as error:
        raise Failure(str(error)) from error
    options = argparse.Namespace(folder=folder, repair=repair, json=as_json)
    raise typer.Exit(run(options, settings.state_dir))


def _say(message: str) -> None:
    print(message, file=sys.stderr)


if __name__ == "__main__":
    main()
