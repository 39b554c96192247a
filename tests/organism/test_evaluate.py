"""The evaluation of a frozen genome on real lines."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from organism.evaluate import main
from organism.evaluation import evaluate, label
from organism.genome import load, new_genome, save
from organism.peers import PEERS
from tests.conftest import small_config

GENOME = new_genome(small_config(calibration=True), seed=1)
SHIPPED = load(Path(__file__).resolve().parents[2] / "checkpoints" / "default.genome")
_RNG = random.Random(0)
_WORDS = ["".join(_RNG.choices("etaoinshrdlu", k=6)) for _ in range(300)]


def _line() -> bytes:
    return " ".join(_RNG.choices(_WORDS, k=7)).encode()


# Twenty lines that come three times over, then forty that come once.
LINES = [_line() for _ in range(20)] * 3 + [_line() for _ in range(40)]


def test_lines_are_familiar_when_their_text_came_before() -> None:
    """The shipped genome tells them apart, and only by its plasticity."""
    result = evaluate(SHIPPED, LINES)
    assert result.lines == 100
    assert result.familiar_fraction == pytest.approx(0.4)
    assert result.auroc > 0.95
    assert result.familiarity_familiar > result.familiarity_novel + 0.3


def test_damage_comes_after_the_labels() -> None:
    """With every byte replaced, labels stay and nothing can be told apart by text."""
    result = evaluate(SHIPPED, LINES, damaged_fraction=1.0)
    assert result.familiar_fraction == pytest.approx(0.4)
    assert 0.3 < result.auroc < 0.7
    assert evaluate(SHIPPED, LINES, damaged_fraction=1.0) == result
    assert evaluate(SHIPPED, LINES, damaged_fraction=1.0, seed=1) != result


def test_identities_decide_the_labels() -> None:
    """Lines whose text never repeats are familiar by what they are known by."""
    raw = [b"%04d " % i + line for i, line in enumerate(LINES)]
    assert evaluate(GENOME, raw).familiar_fraction == 0
    assert evaluate(GENOME, raw, LINES).familiar_fraction == pytest.approx(0.4)
    with pytest.raises(ValueError, match="100 lines but 99 identities"):
        evaluate(GENOME, raw, LINES[1:])


def test_blank_lines_are_left_out_and_keep_the_others_in_step() -> None:
    """Line t of one file stays line t of the other."""
    raw = [b"first", b"", b"second", b"third"]
    identities = [b"same", b"other", b"other", b"same"]
    result = evaluate(GENOME, raw, identities)
    assert result.lines == 3
    assert result.familiar_fraction == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="every line is blank"):
        evaluate(GENOME, [b"", b""])


def test_without_plasticity_nothing_is_familiar() -> None:
    """Frozen weights answer every chunk as at birth: the AUROC is one half, to the last bit."""
    assert evaluate(SHIPPED, LINES).auroc_frozen == 0.5
    assert evaluate(GENOME, LINES).auroc_frozen == 0.5


def test_all_that_is_carried_is_counted() -> None:
    """W, two memories, the mean, β, the calibration."""
    assert evaluate(GENOME, LINES).state_floats == 8 * 24 + 3 * 8 + 2


def test_labels() -> None:
    """Exact matches, in order."""
    assert label([b"a", b"b", b"a", b"a"]) == [False, False, True, True]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON object with at least the promised figures; a table without --json."""
    save(GENOME, tmp_path / "g.genome")
    (tmp_path / "lines").write_bytes(b"\r\n".join(LINES))
    arguments = ["--genome", str(tmp_path / "g.genome"), "--lines", str(tmp_path / "lines")]
    assert main([*arguments, "--damage", "0.1", "--seed", "3", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    promised = {"auroc", "auroc_frozen", "auroc_entropy", "state_floats", "lines"}
    assert promised | {"familiar_fraction"} <= set(figures)
    assert figures["auroc"] == evaluate(GENOME, LINES, None, 0.1, 3).auroc
    assert main(arguments) == 0
    assert "auroc_frozen" in capsys.readouterr().out


def test_what_one_class_cannot_give_is_null(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """JSON has no NaN."""
    save(GENOME, tmp_path / "g.genome")
    (tmp_path / "lines").write_bytes(b"a\nb\n")
    arguments = ["--genome", str(tmp_path / "g.genome"), "--lines", str(tmp_path / "lines")]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["auroc"] is None


def test_several_rates_and_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row a rate: mean and spread over the seeds; undamaged lines have but one life."""
    save(GENOME, tmp_path / "g.genome")
    (tmp_path / "lines").write_bytes(b"\n".join(LINES))
    arguments = ["--genome", str(tmp_path / "g.genome"), "--lines", str(tmp_path / "lines")]
    assert main([*arguments, "--damage", "0", "0.2", "--seeds", "3", "--json"]) == 0
    plain, damaged = json.loads(capsys.readouterr().out)["rows"]
    found = [evaluate(GENOME, LINES, None, 0.2, seed).auroc for seed in range(3)]
    assert damaged["mean"]["auroc"] == pytest.approx(sum(found) / 3)
    assert damaged["spread"]["auroc"] > 0
    assert plain["spread"]["auroc"] == 0


def test_peers_stand_beside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same lines; the store may carry as much as the cortex does."""
    pytest.importorskip("sklearn")
    monkeypatch.setattr("organism.comparison._PLATT_STEPS", 60)
    own = {name: PEERS[name] for name in ("hash set", "last-k store", "delta rule")}
    monkeypatch.setattr("organism.comparison.PEERS", own)
    save(SHIPPED, tmp_path / "g.genome")
    (tmp_path / "lines").write_bytes(b"\n".join(LINES))
    arguments = ["--genome", str(tmp_path / "g.genome"), "--lines", str(tmp_path / "lines")]
    assert main([*arguments, "--peers", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["peers"]["hash set"][0] == 1
    assert row["peers"]["last-k store"][0] > 0.99
    assert 0 < row["store_brier"] < 1
    assert main([*arguments, "--peers"]) == 0
    assert "last-k store" in capsys.readouterr().out


def test_a_life_is_drawn(tmp_path: Path) -> None:
    """A PNG of ROC curves and of the course of a life."""
    pytest.importorskip("matplotlib")
    save(SHIPPED, tmp_path / "g.genome")
    (tmp_path / "lines").write_bytes(b"\n".join(LINES))
    arguments = ["--genome", str(tmp_path / "g.genome"), "--lines", str(tmp_path / "lines")]
    assert main([*arguments, "--plot", str(tmp_path / "life.png"), "--json"]) == 0
    assert (tmp_path / "life.png").read_bytes().startswith(b"\x89PNG")


def test_the_continual_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped genome at the field's size, as a table and as JSON."""
    genome = str(Path(__file__).resolve().parents[2] / "checkpoints" / "continual.genome")
    assert main(["--genome", genome, "--task", "continual", "--json"]) == 0
    rows = {(r["lag"], r["steps"]): r for r in json.loads(capsys.readouterr().out)["rows"]}
    assert rows[20, 5000]["accuracy"] >= 0.99
    assert rows[40, 5000]["accuracy"] >= 0.97
    assert all(row["false_alarm_rate"] <= 0.012 for row in rows.values())
    flat = [rows[5, steps]["accuracy"] for steps in (200, 1000, 10_000, 50_000)]
    assert max(flat) - min(flat) <= 0.01


def test_one_genome_serves_several_widths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With half the columns, half the synapses; the same θ still tells lived from new."""
    save(SHIPPED, tmp_path / "g.genome")
    (tmp_path / "lines").write_bytes(b"\n".join(LINES))
    arguments = ["--genome", str(tmp_path / "g.genome"), "--lines", str(tmp_path / "lines")]
    assert main([*arguments, "--columns", "128", "--json"]) == 0
    half = json.loads(capsys.readouterr().out)
    assert half["auroc"] > 0.95
    assert half["state_floats"] == evaluate(SHIPPED, LINES).state_floats - 128 * 65


def test_lines_are_needed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """But for the continual task."""
    save(GENOME, tmp_path / "g.genome")
    assert main(["--genome", str(tmp_path / "g.genome")]) == 2
    assert "--lines FILE is needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--genome", "/nowhere", "--lines", "LINES"], "cannot read genome /nowhere"),
        (["--genome", "GENOME", "--lines", "/nowhere"], "No such file"),
        (["--genome", "LINES", "--lines", "LINES"], "not a genome file"),
        (["--genome", "GENOME", "--lines", "LINES", "--identity", "MORE"], "3 identities"),
    ],
)
def test_unusable_files_are_explained(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2 and one line."""
    save(GENOME, tmp_path / "GENOME")
    (tmp_path / "LINES").write_bytes(b"a\nb\n")
    (tmp_path / "MORE").write_bytes(b"a\nb\nc\n")
    paths = [str(tmp_path / a) if a.isupper() else a for a in arguments]
    assert main(paths) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--task", "stationary", "--peers"], "--peers"),
        (["--task", "continual", "--damage", "0.1"], "--damage"),
        (["--task", "continual", "--seeds", "2"], "--seeds"),
        (["--columns", "1", "--task", "continual"], "d_hidden"),
    ],
)
def test_options_that_play_no_part_are_refused(
    options: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rather than passed over."""
    save(GENOME, tmp_path / "g.genome")
    assert main(["--genome", str(tmp_path / "g.genome"), *options]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("value", ["1.5", "-0.1", "half"])
def test_a_fraction_is_from_0_to_1(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused as any command refuses an argument."""
    with pytest.raises(SystemExit):
        main(["--genome", "g", "--lines", "l", "--damage", value])
    assert "--damage" in capsys.readouterr().err
