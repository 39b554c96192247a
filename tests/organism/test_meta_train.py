"""The outer loop: repeatable, resumable, guarded; and its command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from organism.genome import Genome, load, new_genome, save, to_bytes
from organism.meta_train import Run, TrainingError, _merit, main, train
from organism.presets import PRESETS, MetaTrainConfig
from organism.tasks.familiarity import FamiliarityConfig
from organism.tasks.projection import ProjectionConfig
from organism.tasks.protocol import Metrics, Outcome
from tests.conftest import small_config

SMALL_FAMILIARITY = MetaTrainConfig(
    outer_steps=8,
    learning_rate=1e-2,
    schedule="cosine",
    trained=("rule", "log_alpha", "mixing", "readout"),
    genome=small_config(calibration=True),
    familiarity=FamiliarityConfig(
        batch=3,
        segment_steps=5,
        longest_life=15,
        probes=2,
        held_out_streams=2,
        held_out_steps=20,
    ),
)
SMALL_PROJECTION = PRESETS["original"].model_copy(
    update={
        "outer_steps": 6,
        "averaging": 0.5,
        "genome": small_config("mlp", normalisation="row", centring=False),
        "projection": ProjectionConfig(bank=3, fresh=3, whole_bank=True),
    }
)
# Options that make a preset small enough to run in a moment.
SMALL_ARGUMENTS = [
    *("--preset", "daemon", "--outer-steps", "6", "--threads", "1", "--progress", "none"),
    *("--genome.cortex.d-in", "8", "--genome.cortex.d-hidden", "16"),
    *("--familiarity.batch", "4", "--familiarity.segment-steps", "4"),
    *("--familiarity.widths", "16,8", "--familiarity.fitted-streams", "2"),
    *("--familiarity.fitted-steps", "20"),
    *("--familiarity.longest-life", "8", "--familiarity.probes", "1"),
    *("--familiarity.held-out-streams", "2", "--familiarity.held-out-steps", "30"),
]


def fresh(config: MetaTrainConfig) -> Run:
    """A run at its start."""
    return Run(config, new_genome(config.genome, config.seed), "cpu")


def losses(run: Run, stop_after: int | None = None) -> list[float]:
    """Train, to the end or for some steps, and return each loss."""
    found: list[float] = []
    train(
        run,
        lambda _, metrics: found.append(metrics["loss"]),
        lambda: stop_after is not None and len(found) >= stop_after,
    )
    return found


CONFIGS = pytest.mark.parametrize("config", [SMALL_FAMILIARITY, SMALL_PROJECTION])


@CONFIGS
def test_a_seed_is_a_run(config: MetaTrainConfig) -> None:
    """Equal seeds give equal losses and bits; another seed does not."""
    one, two = fresh(config), fresh(config)
    assert losses(one) == losses(two)
    assert one.genome.sha256 == two.genome.sha256
    assert losses(fresh(config.model_copy(update={"seed": 1}))) != losses(fresh(config))


@CONFIGS
@pytest.mark.parametrize("at", [0, 1, 5])
def test_a_resumed_run_ends_as_an_unbroken_one(config: MetaTrainConfig, at: int) -> None:
    """Saved, read again and gone on with at any step: the same losses and bits."""
    unbroken = fresh(config)
    expected = losses(unbroken)
    broken = fresh(config)
    first = losses(broken, stop_after=at)
    resumed = Run.from_bytes(broken.to_bytes(), "cpu")
    assert first + losses(resumed) == expected
    assert resumed.genome.sha256 == unbroken.genome.sha256


@CONFIGS
def test_training_lowers_the_loss(config: MetaTrainConfig) -> None:
    """The outer loop descends: the genome is better on held-out lifetimes than it was."""
    run = fresh(config.model_copy(update={"outer_steps": 60, "learning_rate": 2e-2}))
    key = "held_out_trained_cross_entropy" if config.task == "familiarity" else "bank_mse"
    before = run.task.held_out(run.genome)[key]
    losses(run)
    assert run.task.held_out(run.genome)[key] < before


def test_the_last_steps_are_averaged() -> None:
    """The genome is the mean over the share asked for, and until then the last θ."""
    run, courses = fresh(SMALL_PROJECTION), []
    for _ in range(SMALL_PROJECTION.outer_steps):
        run.outer_step()
        courses.append({name: tensor.detach().clone() for name, tensor in run.theta.items()})
        if len(courses) <= 3:
            assert all(torch.equal(run.genome.theta[n], t) for n, t in courses[-1].items())
    for name, tensor in run.genome.theta.items():
        expected = torch.stack([theta[name] for theta in courses[3:]]).mean(0)
        torch.testing.assert_close(tensor, expected)
    assert not torch.equal(run.genome.theta["rule.w1"], courses[-1]["rule.w1"])


def test_only_the_trained_parts_learn() -> None:
    """What is not named in ``trained`` keeps its bits."""
    run = fresh(SMALL_FAMILIARITY.model_copy(update={"trained": ("readout",)}))
    before = run.genome.theta
    losses(run)
    after = run.genome.theta
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"readout"}


def test_memories_stay_bounded() -> None:
    """An update that would take |c₁| + |c₂| to 1 or beyond is projected back, its ratio kept."""
    run = fresh(SMALL_FAMILIARITY.model_copy(update={"learning_rate": 0.5}))
    with torch.no_grad():
        run.theta["mixing"].copy_(torch.tensor([0.7, 1.2, -0.6]))
    run._bound()
    assert run.theta["mixing"].detach().tolist() == pytest.approx([0.7, 0.98 * 2 / 3, -0.98 / 3])
    for _ in range(8):
        run.outer_step()
        assert float(run.theta["mixing"].detach()[1:].abs().sum()) <= 0.98 + 1e-6


class Poisoned:
    """A task whose loss is not finite at chosen outer steps."""

    def __init__(self, run: Run, at: set[int]) -> None:
        self._task = run.task
        self._at = at

    def begin(self) -> dict[str, torch.Tensor]:
        """As the task."""
        return dict(self._task.begin())

    def outer_step(self, genome: object, carry: object, index: int) -> Outcome:
        """As the task, or spoilt."""
        outcome = self._task.outer_step(genome, carry, index)  # type: ignore[arg-type]
        factor = float("nan") if index in self._at else 1.0
        return Outcome(outcome.loss * factor, outcome.metrics, outcome.carry)

    def held_out(self, genome: Genome) -> Metrics:
        """As the task."""
        return self._task.held_out(genome)

    def finish(self, genome: Genome) -> Genome:
        """As the task."""
        return self._task.finish(genome)


def test_a_step_that_is_not_finite_is_skipped() -> None:
    """θ keeps its bits over it, the run goes on, and the skip is counted."""
    run = fresh(SMALL_FAMILIARITY)
    run.task = Poisoned(run, {2})
    for _ in range(2):
        run.outer_step()
    before = run.genome.theta
    assert run.outer_step()["skipped"] == 1
    assert all(torch.equal(before[name], run.genome.theta[name]) for name in before)
    run.outer_step()
    assert not torch.equal(before["readout"], run.genome.theta["readout"])
    assert (run.skipped, run.rollbacks) == (1, 0)


@pytest.mark.parametrize("broken_at", [8, 10, 11])
def test_a_theta_that_breaks_is_taken_back(broken_at: int) -> None:
    """Whichever update breaks θ, the run goes back to one that was lived with, at half the rate."""
    run = fresh(SMALL_FAMILIARITY.model_copy(update={"outer_steps": 40}))
    while run.index <= broken_at:
        run.outer_step()
    with torch.no_grad():
        run.theta["log_alpha"].fill_(float("nan"))
    for _ in range(3):
        run.outer_step()
    assert (run.skipped, run.rollbacks) == (3, 1)
    assert all(torch.isfinite(torch.tensor(run.outer_step()["loss"])) for _ in range(3))
    assert run.skipped == 3


def test_a_run_that_cannot_recover_says_so() -> None:
    """With the settings to change."""
    run = fresh(SMALL_FAMILIARITY.model_copy(update={"outer_steps": 100}))
    run.task = Poisoned(run, set(range(100)))
    with pytest.raises(TrainingError, match="--learning-rate"):
        losses(run)


def test_the_presets_are_what_they_say() -> None:
    """The original's numbers [D26 §6.4, §8.1, App. B], and what ``original`` changes of them."""
    literal, original = PRESETS["original-literal"], PRESETS["original"]
    for preset in (literal, original):
        cortex = preset.genome.cortex
        assert (cortex.d_in, cortex.d_hidden, cortex.alpha) == (32, 1024, 0.1)
        assert (preset.genome.rule.family, preset.genome.rule.hidden) == ("mlp", 16)
        assert (preset.projection.bank, preset.projection.inner_steps) == (10, 5)
        assert preset.outer_steps == 100
    assert literal == MetaTrainConfig(preset="original-literal", task="projection")
    assert original.genome.cortex.normalisation == "row"
    assert original.genome.rule.scaling != "none"
    assert original.projection.whole_bank
    assert original.learning_rate == 3e-2


def test_the_command_trains_and_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last line on stdout is the verdict; the file is a genome with its scores."""
    out = tmp_path / "new" / "g.genome"
    assert main([*SMALL_ARGUMENTS, "--json", "--out", str(out)]) == 0
    verdict = json.loads(capsys.readouterr().out.splitlines()[-1])
    genome = load(out)
    assert verdict["genome_sha256"] == genome.sha256
    assert verdict["outer_steps"] == 6
    assert genome.provenance["scores"]["held_out_auroc"] == verdict["held_out_auroc"]
    assert genome.config.cortex.d_in == 8
    assert list(out.parent.iterdir()) == [out]


def test_the_command_without_json_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """For people."""
    assert main(SMALL_ARGUMENTS) == 0
    printed = capsys.readouterr().out
    assert "held_out_auroc" in printed
    assert "{" not in printed


def test_progress_can_be_read_by_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON object an outer step, on stderr."""
    assert main([*SMALL_ARGUMENTS, "--progress", "json"]) == 0
    steps = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [s["step"] for s in steps] == [1, 2, 3, 4, 5, 6]
    assert all({"steps", "loss", "auroc"} <= set(s) for s in steps)


def test_the_bar_shows_loss_and_score(capsys: pytest.CaptureFixture[str]) -> None:
    """With the time left."""
    assert main([*SMALL_ARGUMENTS, "--progress", "bar"]) == 0
    shown = capsys.readouterr().err
    assert "loss" in shown
    assert "auroc" in shown
    assert "6/6" in shown


def test_an_initial_genome_brings_its_configuration_and_is_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that a retraining can be judged beside the genome it came from."""
    initial = tmp_path / "initial.genome"
    save(new_genome(small_config(calibration=True), 3), initial)
    arguments = list(SMALL_ARGUMENTS)
    i = arguments.index("--genome.cortex.d-in")
    del arguments[i : i + 4]
    i = arguments.index("--familiarity.widths")
    del arguments[i : i + 2]
    out = tmp_path / "out.genome"
    command = [*arguments, "--json", "--initial-genome", str(initial), "--out", str(out)]
    assert main(command) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert load(out).config == load(initial).config
    assert 0 <= verdict["initial_held_out_auroc"] <= 1
    assert main([*command, "--genome.cortex.alpha", "0.2"]) == 2
    assert "leave --genome.* out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--outer-steps", "-1"], "--outer-steps"),
        (["--genome.cortex.mixing", "1,0.9,0.9"], "bounded memories"),
        (["--genome.rule.hidden", "1000"], "--genome.rule.hidden"),
        (["--initial-genome", "/nowhere"], "leave --genome.* out"),
        (["--resume", "x"], "--resume goes on with its own settings"),
        (["--trained", "mixing"], "mixing, which takes no part"),
        (["--familiarity.streams.repeat", "0.5,1.5"], "a range of shares"),
        (["--device", "abacus"], "'cpu' or 'cuda'"),
    ],
)
def test_unusable_arguments_are_explained(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2, one line, the option named."""
    assert main([*SMALL_ARGUMENTS, *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_checkpoint_that_is_none_is_refused(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing or damaged: status 2 and one line."""
    checkpoint = tmp_path / "x.training"
    if content is not None:
        checkpoint.write_bytes(content)
    assert main(["--resume", str(checkpoint)]) == 2
    assert capsys.readouterr().err.startswith("meta_train: ")


def test_a_resumed_retraining_still_knows_its_rival() -> None:
    """The genome to be scored beside the result is part of the run."""
    rival = new_genome(SMALL_FAMILIARITY.genome, 7)
    run = Run(SMALL_FAMILIARITY, rival, "cpu", rival)
    again = Run.from_bytes(run.to_bytes(), "cpu")
    assert again.rival is not None
    assert again.rival.sha256 == rival.sha256


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_original_task_is_learned(seed: int) -> None:
    """100 outer steps of ``original``: NMSE at most 0.03 on the bank and 0.05 on fresh pairs."""
    run = fresh(PRESETS["original"].model_copy(update={"seed": seed}))
    losses(run)
    scores = run.task.held_out(run.genome)
    assert scores["bank_nmse"] <= 0.03
    assert scores["fresh_nmse"] <= 0.05


def test_unknown_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """As any command does."""
    with pytest.raises(SystemExit) as caught:
        main(["--outersteps", "3"])
    assert caught.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


def test_the_environment_is_not_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A variable named like a setting changes nothing."""
    monkeypatch.setenv("SEED", "99")
    monkeypatch.setenv("OUTER_STEPS", "0")
    assert main([*SMALL_ARGUMENTS, "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert (verdict["seed"], verdict["outer_steps"]) == (0, 6)


def test_interrupted_and_resumed_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Ctrl-C ends between two steps with status 130; --resume ends with the very same genome."""
    whole, broken = tmp_path / "whole.genome", tmp_path / "broken.genome"
    arguments = [*SMALL_ARGUMENTS, "--outer-steps", "200"]
    command = [sys.executable, "-m", "organism.meta_train", *arguments, "--progress", "json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--out", str(broken)], stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stderr is not None
    for line in process.stderr:
        if json.loads(line)["step"] == 5:
            break
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "--resume" in rest.splitlines()[-1]
    assert not broken.exists()
    checkpoint = tmp_path / "broken.genome.training"
    assert 5 <= Run.from_bytes(checkpoint.read_bytes(), "cpu").index < 200
    resume = ["--resume", str(checkpoint), "--threads", "1", "--progress", "none"]
    assert main([*resume, "--outer-steps", "9"]) == 2
    assert main(resume) == 0
    assert main([*arguments, "--out", str(whole)]) == 0
    assert broken.read_bytes() == whole.read_bytes()
    assert not checkpoint.exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@CONFIGS
def test_it_trains_on_cuda(config: MetaTrainConfig) -> None:
    """The device is a setting: the losses are those of the CPU, to rounding."""
    cpu, cuda = fresh(config), Run(config, new_genome(config.genome, config.seed), "cuda")
    assert losses(cuda, 3) == pytest.approx(losses(cpu, 3), rel=1e-3)


def test_several_seeds_and_the_best_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each in a file of its own; mean and spread of every figure; held-out lifetimes select."""
    out = tmp_path / "best.genome"
    options = ["--preset", "continual", "--outer-steps", "2", "--continual.steps", "30"]
    options += ["--seed", "5", "--seeds", "3", "--threads", "1", "--progress", "none"]
    assert main([*options, "--out", str(out), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert [run["seed"] for run in summary["runs"]] == [5, 6, 7]
    scores = [run["held_out_auroc"] for run in summary["runs"]]
    assert summary["held_out_auroc"] == max(scores)
    assert summary["mean"]["held_out_auroc"] == pytest.approx(sum(scores) / 3)
    selected = tmp_path / f"best.genome.seed{summary['selected_seed']}"
    assert out.read_bytes() == selected.read_bytes()
    assert load(out).sha256 == summary["genome_sha256"]
    assert main([*options]) == 0
    assert "of 3 seeds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--genome.cortex.d-hidden", "512"], "leave the genome's own d_hidden 512 out"),
        (["--trained", "rule"], "fits readout and calibration"),
        (["--familiarity.batch", "3"], "batch 3 is too small for 2 widths"),
        (["--familiarity.widths", "256,1"], "at least 2 columns"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the remedy, before anything is trained."""
    assert main(["--preset", "daemon", "--outer-steps", "1", *options]) == 2
    assert message in capsys.readouterr().err


def test_an_interrupt_while_measuring_loses_no_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All outer steps are in the checkpoint, and going on from it only measures."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "g.genome"
    options = ["--preset", "continual", "--outer-steps", "2", "--continual.steps", "30"]
    options += ["--threads", "1", "--progress", "none", "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr("organism.tasks.continual.ContinualTask.held_out", interrupt)
        assert main(options) == 130
    assert "interrupted at outer step 2; go on with --resume" in capsys.readouterr().err
    resume = ["--resume", str(out) + ".training", "--threads", "1", "--progress", "none"]
    assert main(resume) == 0
    resumed = out.read_bytes()
    out.unlink()
    assert main(options) == 0
    assert out.read_bytes() == resumed


def test_what_is_not_a_number_is_never_the_best() -> None:
    """A genome that could not be measured is not selected."""
    assert _merit({"held_out_auroc": float("nan")}) < _merit({"held_out_auroc": 0.1})


def test_provenance_holds_the_settings_of_its_own_task_alone() -> None:
    """What another task's settings are changes no byte of a genome."""
    config = PRESETS["original"]
    elsewhere = config.association.model_copy(update={"batch": 5})
    changed = config.model_copy(update={"association": elsewhere})
    genomes = [Run(c, new_genome(c.genome), "cpu").genome for c in (config, changed)]
    assert to_bytes(genomes[0]) == to_bytes(genomes[1])
    training = genomes[0].provenance["training"]
    assert training["projection"]["bank"] == config.projection.bank
    assert not {"familiarity", "continual", "association"} & set(training)
