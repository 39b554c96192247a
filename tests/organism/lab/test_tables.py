"""The original's tables: what is run, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from organism.lab import ablations, adaptation, costs, tables
from organism.lab.__main__ import main
from organism.lab.tables import changed, trained
from organism.presets import PRESETS, MetaTrainConfig

TINY = {"genome": {"cortex": {"d_in": 8, "d_hidden": 16}}}


def _tiny(way: str, change: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings in a cortex of 8 × 16."""
    settings = changed(way, change)
    settings["genome"]["cortex"] |= TINY["genome"]["cortex"]
    return settings


def test_a_change_reaches_into_groups() -> None:
    """What is not named stays as the preset has it."""
    settings = MetaTrainConfig.model_validate(changed("original", TINY))
    original = PRESETS["original"]
    assert (settings.genome.cortex.d_in, settings.genome.cortex.d_hidden) == (8, 16)
    assert settings.genome.rule == original.genome.rule
    assert settings.projection == original.projection


def test_training_is_measured_on_its_way() -> None:
    """At each of the episodes; less error at the end than at the start."""
    found = trained(_tiny("original", {}), 0, [0, 50])
    assert list(found["course"]) == ["0", "50", "100"]
    assert found["failed"] is None
    errors = [figures["bank_nmse"] for figures in found["course"].values()]
    assert errors[0] > 0.9
    assert errors[2] < 0.5 * errors[0]


def test_without_a_teacher_nothing_is_learned_of_the_target() -> None:
    """The rule sees no target: no better than answering zero, whatever is trained."""
    settings = _tiny("original", {"projection": {"teacher_forcing": False}})
    end = trained(settings, 0, [])["course"]["100"]
    assert end["bank_nmse"] > 0.95


def test_costs_are_counted() -> None:
    """Forward, five steps: four multiply-adds a hidden unit and synapse, and the activation."""
    rows = {row[0]: row[1:] for row in costs.table().rows}
    synapses = 32 * 1024
    whole = 5 * (2 * synapses * (3 * 16 + 16) + 2 * synapses)
    assert rows["operations forward"][2] == f"{whole / 1e6:.1f} M"
    assert rows["operations forward"][1] == f"{5 * 2 * synapses * 16 / 1e6:.2f} M"


@pytest.mark.slow
def test_the_command_writes_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a small cortex: every row of the original's tables, its claim and a verdict."""
    monkeypatch.setattr(tables, "changed", _tiny)
    monkeypatch.setattr(adaptation, "changed", _tiny)
    monkeypatch.setattr(adaptation, "TUNING_SEEDS", (1000,))
    out = tmp_path / "tables"
    command = ["tables", "--seeds", "2", "--processes", "2", "--out", str(out), "--json"]
    assert main(command) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["report"] == str(out / "report.html")
    assert printed["bank_nmse"] > 0
    page = (out / "report.html").read_text()
    for claim in ("0.8523 / 0.9124", "0.0342 / 0.0891", "diverged", "0.7892 / 0.8124", "655 KB"):
        assert claim in page
    for row in ("no weight normalisation", "no teacher forcing", "random genome", "hidden 64"):
        assert row in page
    before = (out / "trials.jsonl").read_text()
    assert main(command) == 0
    assert (out / "trials.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.5, 0.6, 0.7], "no measurable difference"),
        ([0.6, 0.7, 0.81], "worse"),
        ([0.4, 0.5, 0.59], "better"),
        ([0.5, 0.6, float("nan")], "worse: 1 of 3 runs gave no number"),
    ],
)
def test_a_difference_is_compared_with_its_noise(values: list[float], verdict: str) -> None:
    """On the projection task less is better; a run without a number is worse than any."""
    full = [0.5, 0.6, 0.7]
    assert ablations._verdict("projection", values, full).startswith(verdict)


def test_every_ablation_is_a_genome_that_can_be_trained() -> None:
    """Each change gives settings that hold, and differ from the full model's."""
    asked = ablations.trials(1)
    settings = [MetaTrainConfig.model_validate(trial.arguments["settings"]) for trial in asked]
    assert len({one.model_dump_json() for one in settings}) == len(asked) >= 20


def test_unusable_arguments_are_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A spread needs two seeds; a genome must be one."""
    with pytest.raises(SystemExit):
        main(["tables", "--seeds", "1"])
    assert "2 seeds" in capsys.readouterr().err
    (tmp_path / "none.genome").write_bytes(b"nothing")
    assert main(["anatomy", str(tmp_path / "none.genome"), "--out", str(tmp_path)]) == 2
    assert "none.genome" in capsys.readouterr().err
