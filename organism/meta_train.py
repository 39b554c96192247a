"""The outer loop, gradient descent on θ [D26 §5.3]: ``python -m organism.meta_train``.

Reads top to bottom: a run and its checkpoint, the loop, the command. Owns the optimiser and the
guard against numbers that are not finite; knows nothing of what a task is about.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, pstdev
from types import FrameType
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from organism import tensorfile
from organism.figures import to_json
from organism.fused import set_threads
from organism.genome import (
    MAX_MEMORY_MIXING,
    Genome,
    GenomeError,
    from_bytes,
    load,
    new_genome,
    save,
    to_bytes,
)
from organism.presets import PRESETS, TASKS, MetaTrainConfig
from organism.tasks.association import AssociationTask
from organism.tasks.continual import ContinualTask
from organism.tasks.familiarity import FamiliarityTask
from organism.tasks.projection import ProjectionTask
from organism.tasks.protocol import Metrics, Task

TRAINING_SCHEMA = 3

_KIND = "training"
_WARM_UP_STEPS = 10
_FINAL_RATE = 0.1
# The guard: so many skipped steps in a row take θ back to the last good copy, renewed every so
# many steps, and halve the rate; so many rollbacks end the run.
_SKIPS_BEFORE_ROLLBACK = 3
_STEPS_BETWEEN_COPIES = 10
_ROLLBACKS_BEFORE_FAILURE = 5
_CHECKPOINT_SUFFIX = ".training"
_WITH_RESUME = {
    "--checkpoint-steps",
    "--device",
    "--json",
    "--out",
    "--progress",
    "--resume",
    "--threads",
}
# What selects among seeds: the first of these that a task measures, and which way is better.
_MERITS = (
    ("held_out_score", 1),
    ("held_out_auroc", 1),
    ("held_out_cosine", 1),
    ("fresh_nmse", -1),
)
_EXIT_FAILED = 1
_EXIT_USAGE = 2
_EXIT_INTERRUPTED = 130


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says why and what to try."""


def make_task(config: MetaTrainConfig) -> Task:
    """Build the task that a configuration names."""
    if config.task == "projection":
        return ProjectionTask(config.projection, config.genome, config.seed)
    if config.task == "continual":
        return ContinualTask(config.continual, config.genome, config.seed)
    if config.task == "association":
        return AssociationTask(config.association, config.genome, config.seed)
    return FamiliarityTask(config.familiarity, config.genome, config.seed)


class Run:
    """A run between two outer steps; the one owner of θ and of Adam while it lasts.

    Saved and read again at any step, it ends bit for bit as it would have without the break, on the
    same machine with as many threads. A rival is a genome to be scored beside the result.
    """

    def __init__(
        self, config: MetaTrainConfig, start: Genome, device: str, rival: Genome | None = None
    ) -> None:
        self.config = config
        self.rival = rival
        self.task = make_task(config)
        self.theta = {name: tensor.to(device).clone() for name, tensor in start.theta.items()}
        self.carry = self.task.begin()
        self.index = 0
        self.skipped = 0
        self.rollbacks = 0
        self._skips_in_a_row = 0
        self._mean: dict[str, Tensor] = {}
        self._averaged = 0
        self._learning = {n: t for n, t in self.theta.items() if n.split(".")[0] in config.trained}
        for tensor in self._learning.values():
            tensor.requires_grad_()
        self._adam = torch.optim.Adam(self._learning.values(), lr=config.learning_rate)
        self._good_copy = self._optimisation()

    @property
    def genome(self) -> Genome:
        """The genome as it is now, or on average, cut from the autograd graph, on the CPU."""
        now = self.theta | self._mean
        theta = {name: tensor.detach().cpu().clone() for name, tensor in now.items()}
        others = set(TASKS) - {self.config.task}
        training = self.config.model_dump(mode="json", exclude={"genome", *others})
        return Genome(self.config.genome, theta, {"training": training, "steps_done": self.index})

    def outer_step(self) -> Metrics:
        """Take one outer step: live, descend, or skip what is not finite; return what to show.

        Raises:
            TrainingError: the guard has rolled back too often.
        """
        genome = Genome(self.config.genome, self.theta)
        outcome = self.task.outer_step(genome, self.carry, self.index)
        self._adam.zero_grad()
        torch.autograd.backward(outcome.loss)
        norm = torch.nn.utils.clip_grad_norm_(self._learning.values(), self.config.clip_norm)
        loss = float(outcome.loss.detach())
        if math.isfinite(loss) and math.isfinite(float(norm)):
            self._descend()
            self.carry = outcome.carry
        else:
            self._skip()
        self.index += 1
        shown = {"loss": loss, **outcome.metrics}
        return shown | {"skipped": float(self.skipped)} if self.skipped else shown

    def _descend(self) -> None:
        for group in self._adam.param_groups:
            group["lr"] = self._rate()
        if self.index % _STEPS_BETWEEN_COPIES == 0:
            # Before the update: this θ has just been lived with, the next has not.
            self._good_copy = self._optimisation()
        self._adam.step()
        self._bound()
        self._average()
        self._skips_in_a_row = 0

    @torch.no_grad()
    def _bound(self) -> None:
        """Project a learning c onto |c₁| + |c₂| below 1, so that the memories stay bounded."""
        mixing = self._learning.get("mixing")
        if mixing is not None:
            size = mixing[1:].abs().sum()
            mixing[1:] *= (MAX_MEMORY_MIXING / size).clamp_max(1)

    @torch.no_grad()
    def _average(self) -> None:
        """Take θ into the mean of the last outer steps, which is nearer to where they lead.

        Polyak & Juditsky, "Acceleration of stochastic approximation by averaging" (1992).
        """
        steps = self.config.outer_steps
        if self.index + 1 <= steps - round(self.config.averaging * steps):
            return
        self._averaged += 1
        for name, tensor in self._learning.items():
            mean = self._mean.setdefault(name, tensor.detach().clone())
            mean += (tensor - mean) / self._averaged

    def _skip(self) -> None:
        """Leave θ as it is and start new lives: the old ones may hold what was not finite."""
        self.carry = self.task.begin()
        self.skipped += 1
        self._skips_in_a_row += 1
        if self._skips_in_a_row < _SKIPS_BEFORE_ROLLBACK:
            return
        self._skips_in_a_row = 0
        self.rollbacks += 1
        if self.rollbacks >= _ROLLBACKS_BEFORE_FAILURE:
            raise TrainingError(
                f"loss or gradient not finite at outer step {self.index}, after {self.rollbacks} "
                "rollbacks: lower --learning-rate, --clip-norm or --genome.cortex.alpha"
            )
        self._restore(self._good_copy)

    def _rate(self) -> float:
        config = self.config
        rate = config.learning_rate * 0.5**self.rollbacks
        if config.schedule == "constant":
            return rate
        warm_up = min(1.0, (self.index + 1) / _WARM_UP_STEPS)
        cosine = 0.5 * (1 + math.cos(math.pi * self.index / config.outer_steps))
        return rate * warm_up * (_FINAL_RATE + (1 - _FINAL_RATE) * cosine)

    def _optimisation(self) -> dict[str, Tensor]:
        """Copy θ and Adam's state, by ``theta.`` + name and ``adam.`` + name + key."""
        tensors = {f"theta.{name}": tensor for name, tensor in self.theta.items()}
        for name, parameter in self._learning.items():
            for key, value in self._adam.state[parameter].items():
                tensors[f"adam.{name}:{key}"] = value
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def _restore(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in self.theta.items():
            tensor.copy_(tensors[f"theta.{name}"])
        for name, parameter in self._learning.items():
            prefix = f"adam.{name}:"
            state = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            self._adam.state[parameter] = {k: t.clone() for k, t in state.items()}

    def to_bytes(self) -> bytes:
        """Serialise the run as a tensor file of kind ``training``."""
        carry = {f"carry.{name}": tensor for name, tensor in self.carry.items()}
        copy = {f"copy.{name}": tensor for name, tensor in self._good_copy.items()}
        meta = {
            "config": self.config.model_dump(mode="json"),
            "index": self.index,
            "skipped": self.skipped,
            "rollbacks": self.rollbacks,
            "skips_in_a_row": self._skips_in_a_row,
            "averaged": self._averaged,
            "rival": None if self.rival is None else to_bytes(self.rival),
        }
        mean = {f"mean.{name}": tensor for name, tensor in self._mean.items()}
        tensors = self._optimisation() | carry | copy | mean
        return tensorfile.pack(_KIND, TRAINING_SCHEMA, meta, tensors)

    @classmethod
    def from_bytes(cls, blob: bytes, device: str) -> Run:
        """Read a run.

        Raises:
            TensorFileError: damaged, or of another schema.
            ValidationError: settings that this version does not know.
        """
        content = tensorfile.unpack(blob, _KIND, TRAINING_SCHEMA)
        meta, tensors = content.meta, {n: t.to(device) for n, t in content.tensors.items()}

        def under(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        try:
            config = MetaTrainConfig.model_validate(meta["config"])
            rival = None if meta["rival"] is None else from_bytes(meta["rival"])
            run = cls(config, Genome(config.genome, under("theta.")), device, rival)
            run._restore(tensors)
            run._good_copy = under("copy.")
            run.carry, run._mean = under("carry."), under("mean.")
            run._averaged = meta["averaged"]
            run.index, run.skipped = meta["index"], meta["skipped"]
            run.rollbacks, run._skips_in_a_row = meta["rollbacks"], meta["skips_in_a_row"]
        except KeyError as error:
            raise tensorfile.TensorFileError(f"malformed training file: no {error}") from error
        return run


def train(run: Run, report: Callable[[int, Metrics], None], stop_asked: Callable[[], bool]) -> bool:
    """Take a run's outer steps to its end; False where it was asked to stop before.

    Raises:
        TrainingError: loss or gradient stay other than finite.
    """
    while run.index < run.config.outer_steps:
        if stop_asked():
            return False
        shown = run.outer_step()
        report(run.index, shown)
    return True


class Command(BaseSettings, MetaTrainConfig):
    """Meta-train a genome. Every setting can be given; what is not comes from --preset."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        cli_prog_name="python -m organism.meta_train",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
    )

    out: Path | None = Field(
        None, description="where the genome goes; FILE.training holds a run cut short"
    )
    json_: bool = Field(False, alias="json", description="last line on stdout: one JSON object")
    progress: Literal["bar", "json", "none"] = Field("bar", description="on stderr")
    checkpoint_steps: int = Field(
        50, ge=1, description="outer steps between two copies of FILE.training"
    )
    resume: Path | None = Field(None, description="go on from FILE.training, with its settings")
    initial_genome: Path | None = Field(
        None, description="start from this genome and its configuration, and score it too"
    )
    seeds: int = Field(
        1,
        ge=1,
        le=1000,
        description="train from so many seeds, --seed and up, and keep the best; cut short, "
        "--resume goes on with the seed under way alone",
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="where to train")
    threads: int = Field(os.cpu_count() or 1, ge=1, description="cores that lifetimes share")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the preset and the command line, never the environment."""
        return (init_settings,)

    @property
    def training(self) -> MetaTrainConfig:
        """The settings of the run itself."""
        return MetaTrainConfig.model_validate(
            self.model_dump(include=set(MetaTrainConfig.model_fields))
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 trained, 1 failed, 2 unusable arguments, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        command = _parse(arguments)
        set_threads(command.threads)
        run = _prepare(command, arguments)
    except (ValidationError, GenomeError, tensorfile.TensorFileError, OSError, ValueError) as error:
        print(f"meta_train: {_explain(error)}", file=sys.stderr)
        return _EXIT_USAGE
    try:
        summaries = (
            [_trained(command, run, _out(command))]
            if command.seeds == 1
            else _trained_from_seeds(command, arguments)
        )
    except TrainingError as error:
        print(f"meta_train: {error}", file=sys.stderr)
        return _EXIT_FAILED
    except KeyboardInterrupt as interrupt:
        print(f"meta_train: {interrupt}", file=sys.stderr)
        return _EXIT_INTERRUPTED
    _show(command, summaries)
    return 0


def _trained(command: Command, run: Run, out: Path | None) -> dict[str, Any]:
    """Take a run to its end, and measure and save what it gives.

    Raises:
        TrainingError: it cannot go on.
        KeyboardInterrupt: it was asked to stop before; the message says how to go on.
    """
    started = time.perf_counter()
    checkpoint = out.with_name(out.name + _CHECKPOINT_SUFFIX) if out else None
    with _progress(command, run) as report, _stop_on_interrupt() as stop_asked:
        done = train(run, _saving(run, report, checkpoint, command.checkpoint_steps), stop_asked)
    if not done:
        raise KeyboardInterrupt(_interrupted(run, checkpoint))
    if checkpoint:
        _replace(checkpoint, run.to_bytes())
    try:
        summary = _finish(run, out, time.perf_counter() - started)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(_interrupted(run, checkpoint)) from interrupt
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    return summary


def _trained_from_seeds(command: Command, arguments: list[str]) -> list[dict[str, Any]]:
    """Train from several seeds, each into a file of its own; the best is copied to ``out``."""

    def file_of(seed: int) -> Path | None:
        return command.out and command.out.with_name(f"{command.out.name}.seed{seed}")

    summaries = []
    for seed in range(command.seed, command.seed + command.seeds):
        one = command.model_copy(update={"seed": seed, "out": file_of(seed)})
        summaries.append(_trained(one, _prepare(one, arguments), one.out))
    best = file_of(max(summaries, key=_merit)["seed"])
    if command.out and best:
        _replace(command.out, best.read_bytes())
    return summaries


def _merit(summary: Mapping[str, Any]) -> float:
    """What selects among genomes: held-out lifetimes, never the data that is reported on."""
    for name, sign in _MERITS:
        if name in summary:
            merit = sign * float(summary[name])
            return -math.inf if math.isnan(merit) else merit
    raise KeyError(f"nothing to select by among {sorted(summary)}")


def _parse(arguments: list[str]) -> Command:
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--preset", choices=list(PRESETS), default="daemon")
    preset = first.parse_known_args(arguments)[0].preset
    return CliApp.run(Command, cli_args=arguments, **PRESETS[preset].model_dump())


def _prepare(command: Command, arguments: list[str]) -> Run:
    """Build the run, from its start, from a genome, or from a checkpoint."""
    if command.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device here; use cpu")
    given = {argument.split("=")[0] for argument in arguments if argument.startswith("--")}
    if command.resume:
        extra = sorted(given - _WITH_RESUME)
        if extra:
            raise ValueError(f"--resume goes on with its own settings: leave {' '.join(extra)} out")
        return Run.from_bytes(command.resume.read_bytes(), command.device)
    if command.initial_genome is None:
        start = new_genome(command.genome, command.seed)
        return Run(command.training, start, command.device)
    if any(name.startswith(("--genome.", "--no-genome.")) for name in given):
        raise ValueError("--initial-genome brings its configuration: leave --genome.* out")
    start = load(command.initial_genome)
    config = command.training.with_genome(start.config)
    return Run(config, start, command.device, rival=start)


def _out(command: Command) -> Path | None:
    """Where the genome goes; a resumed run goes where it would have gone."""
    if command.out or not command.resume:
        return command.out
    return command.resume.with_name(command.resume.name.removesuffix(_CHECKPOINT_SUFFIX))


@contextmanager
def _progress(command: Command, run: Run) -> Iterator[Callable[[int, Metrics], None]]:
    """Show each outer step on stderr, as the command asks."""
    total = run.config.outer_steps
    if command.progress == "none":
        yield lambda index, metrics: None
        return
    if command.progress == "json":

        def report_json(index: int, metrics: Metrics) -> None:
            print(to_json({"step": index, "steps": total, **metrics}), file=sys.stderr, flush=True)

        yield report_json
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[shown]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(run.config.preset, total=total, completed=run.index, shown="")

        def report_bar(index: int, metrics: Metrics) -> None:
            shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            bar.update(task, completed=index, shown=shown)

        yield report_bar


@contextmanager
def _stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a wish to stop between two steps; the second acts at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, previous)


def _saving(
    run: Run, report: Callable[[int, Metrics], None], checkpoint: Path | None, every: int
) -> Callable[[int, Metrics], None]:
    def report_and_save(index: int, metrics: Metrics) -> None:
        report(index, metrics)
        if checkpoint and index % every == 0:
            _replace(checkpoint, run.to_bytes())

    return report_and_save


def _interrupted(run: Run, checkpoint: Path | None) -> str:
    """Save a run that is to stop, if there is where; say how to go on."""
    if checkpoint is None:
        return f"interrupted at outer step {run.index}; nothing saved, for want of --out"
    _replace(checkpoint, run.to_bytes())
    return f"interrupted at outer step {run.index}; go on with --resume {checkpoint}"


def _finish(run: Run, out: Path | None, seconds: float) -> dict[str, Any]:
    """Fit what is left, measure on held-out lifetimes, and save; the summary of the run."""
    genome = run.task.finish(run.genome)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in genome.theta.values()):
        raise TrainingError(
            "the readout's fit gave numbers that are not finite: try more "
            "--familiarity.fitted-streams, or 0"
        )
    scores = run.task.held_out(genome)
    if run.rival is not None:
        rival = run.task.held_out(run.rival)
        scores |= {f"initial_{name}": value for name, value in rival.items()}
    genome = Genome(genome.config, genome.theta, {**genome.provenance, "scores": scores})
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        save(genome, out)
    return {
        "preset": run.config.preset,
        "task": run.config.task,
        "seed": run.config.seed,
        "outer_steps": run.index,
        "skipped_steps": run.skipped,
        "rollbacks": run.rollbacks,
        "seconds": round(seconds, 2),
        "parameters": genome.parameter_count,
        "genome_sha256": genome.sha256,
        **scores,
    }


def _show(command: Command, summaries: list[dict[str, Any]]) -> None:
    """Print the best run; of several seeds each one too, with mean and spread."""
    best = max(summaries, key=_merit) if len(summaries) > 1 else summaries[0]
    shown = dict(best)
    if len(summaries) > 1:
        names = [name for name, value in best.items() if isinstance(value, float)]
        values = {name: [float(s[name]) for s in summaries] for name in names}
        shown["selected_seed"] = best["seed"]
        shown["mean"] = {name: fmean(found) for name, found in values.items()}
        shown["spread"] = {name: pstdev(found) for name, found in values.items()}
        shown["runs"] = summaries
    if command.json_:
        print(to_json(shown))
        return
    for name, value in best.items():
        line = f"{name:36} {value:.4f}" if isinstance(value, float) else f"{name:36} {value}"
        if len(summaries) > 1 and isinstance(value, float):
            line += f"   of {len(summaries)} seeds: {shown['mean'][name]:.4f}"
            line += f" ± {shown['spread'][name]:.4f}"
        print(line)


def _replace(path: Path, blob: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(path.suffix + ".new")
    temporary.write_bytes(blob)
    temporary.replace(path)


def _explain(error: Exception) -> str:
    if isinstance(error, ValidationError):
        names = [".".join(map(str, e["loc"])).replace("_", "-") for e in error.errors()]
        messages = [e["msg"] for e in error.errors()]  # without a name: of settings together
        faults = zip(names, messages, strict=True)
        return "; ".join(f"--{name}: {text}" if name else text for name, text in faults)
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
