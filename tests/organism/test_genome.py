"""The genome and its file: never a guess."""

from __future__ import annotations

from pathlib import Path

import msgpack
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from organism import tensorfile
from organism.config import CortexConfig, GenomeConfig
from organism.genome import (
    SCHEMA,
    Genome,
    GenomeError,
    compatible,
    from_bytes,
    load,
    new_genome,
    save,
    to_bytes,
)
from tests.conftest import small_config

BLOB = to_bytes(new_genome(small_config(), seed=1))


TOO_FEW_POWERS = GenomeConfig.model_validate(
    {"rule": {"family": "polynomial", "initialisation": "selective_anti_hebb"}}
).model_dump(mode="json")


def packed(**changes: object) -> bytes:
    """A whole, checksummed genome file with parts of its content replaced."""
    genome = from_bytes(BLOB)
    content: dict[str, object] = {
        "config": genome.config.model_dump(mode="json"),
        "provenance": {},
        "theta": dict(genome.theta),
        "schema": SCHEMA,
        "kind": "genome",
    }
    content |= changes
    meta = {k: content[k] for k in ("config", "provenance") if content[k] is not None}
    return tensorfile.pack(content["kind"], content["schema"], meta, content["theta"])  # type: ignore[arg-type]


def test_round_trip(genome: Genome, tmp_path: Path) -> None:
    """Saved and read again: the same configuration, provenance and bits."""
    genome = Genome(genome.config, genome.theta, {"seed": 3, "scores": {"auroc": 0.5}})
    save(genome, tmp_path / "g.genome")
    again = load(tmp_path / "g.genome")
    assert again.config == genome.config
    assert again.provenance == genome.provenance
    assert again.sha256 == genome.sha256
    assert all(torch.equal(genome.theta[name], again.theta[name]) for name in genome.theta)


@given(st.integers(0, len(BLOB) - 1), st.integers(1, 255))
def test_one_changed_byte_is_refused(position: int, flip: int) -> None:
    """Wherever it is, whatever it becomes."""
    blob = bytearray(BLOB)
    blob[position] ^= flip
    with pytest.raises(GenomeError):
        from_bytes(bytes(blob))


@settings(max_examples=200)
@given(st.integers(0, len(BLOB) - 1))
def test_a_truncated_file_is_refused(length: int) -> None:
    """At every length."""
    with pytest.raises(GenomeError):
        from_bytes(BLOB[:length])


def test_a_longer_file_is_refused() -> None:
    """Nothing may follow the checksum."""
    with pytest.raises(GenomeError, match="sha256"):
        from_bytes(BLOB + b"\0")


def test_an_unknown_schema_is_refused() -> None:
    """The message says which version reads it."""
    with pytest.raises(GenomeError, match=r"schema 99.*reads schema 2"):
        from_bytes(packed(schema=99))


def test_another_kind_is_refused() -> None:
    """A training checkpoint is not a genome."""
    with pytest.raises(GenomeError, match="expected a genome file, this is a training file"):
        from_bytes(packed(kind="training"))


def theta(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """θ of the small genome, with tensors replaced or taken out."""
    changed = {**from_bytes(BLOB).theta, **changes}
    return {name: tensor for name, tensor in changed.items() if tensor is not None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"theta": theta(readout=torch.zeros(4))}, "its configuration needs"),
        ({"theta": theta(readout=None)}, "its configuration needs"),
        ({"theta": theta(extra=torch.zeros(1))}, "its configuration needs"),
        ({"theta": theta(log_alpha=torch.tensor(float("nan")))}, "finite float32"),
        ({"theta": theta(log_alpha=torch.zeros((), dtype=torch.float64))}, "finite float32"),
        ({"theta": theta(mixing=torch.tensor([1.0, 0.6, -0.5]))}, "bounded memories"),
        ({"config": {"colour": "red"}}, "configuration"),
        ({"config": {}}, "nothing is filled in"),
        ({"config": TOO_FEW_POWERS}, "raise them"),
        ({"config": None}, "header has"),
        ({"provenance": None}, "header has"),
        ({"provenance": [1]}, "not a map"),
    ],
)
def test_whole_files_that_make_no_sense_are_refused(
    content: dict[str, object], message: str
) -> None:
    """The checksum is right, the content is not: wrong shapes, types, values, settings."""
    with pytest.raises(GenomeError, match=message):
        from_bytes(packed(**content))


def checksummed(body: bytes) -> bytes:
    """A body with the checksum that it asks for."""
    import hashlib

    return body + hashlib.sha256(body).digest()


def header(content: object) -> bytes:
    """A whole file of a header alone."""
    blob = msgpack.packb(content)
    return checksummed(b"ORGANISM" + len(blob).to_bytes(4, "little") + blob)


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"\x80\x04pickle",
        b"ORGANISM",
        checksummed(b"ORGANISM\xff\xff\xff\xff"),
        checksummed(b"ORGANISM\x01\x00\x00\x00\xc1"),
        header([1, 2]),
        header({"kind": "genome"}),
        header({"kind": "genome", "schema": SCHEMA, "meta": {}, "tensors": [["a", "<f4"]]}),
        header({"kind": "genome", "schema": SCHEMA, "meta": {}, "tensors": [["a", "<f4", [-1]]]}),
        header({"kind": "genome", "schema": SCHEMA, "meta": {}, "tensors": [["a", "<f4", [9]]]}),
        header({"kind": "genome", "schema": SCHEMA, "meta": {}, "tensors": [["a", "|O", []]]}),
        header(
            {"kind": "genome", "schema": SCHEMA, "meta": {}, "tensors": [["a", "<f4", [1] * 70]]}
        ),
        header(
            {"kind": "genome", "schema": SCHEMA, "meta": {}, "tensors": [["a", "<f4", [1 << 63]]]}
        ),
        header(
            {"kind": "genome", "schema": SCHEMA, "meta": {}, "tensors": [["a", "<f4", [0]]] * 2}
        ),
        header({"kind": "genome", "schema": "1", "meta": {}, "tensors": []}),
        header({"kind": "genome", "schema": SCHEMA, "meta": 3, "tensors": []}),
        checksummed(
            header({"kind": "genome", "schema": SCHEMA, "meta": {}, "tensors": []})[:-32] + b"x"
        ),
    ],
)
def test_what_is_not_a_genome_is_refused(blob: bytes) -> None:
    """Other files, and headers that lie, give a clear error and nothing else."""
    with pytest.raises(GenomeError):
        from_bytes(blob)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The message names the path."""
    with pytest.raises(GenomeError, match=r"cannot read genome .*nowhere"):
        load(tmp_path / "nowhere.genome")


def test_seeds_decide_the_start() -> None:
    """Equal seeds give equal genomes, others do not."""
    config = small_config("mlp")
    assert new_genome(config, 4).sha256 == new_genome(config, 4).sha256
    assert new_genome(config, 4).sha256 != new_genome(config, 5).sha256


def test_a_genome_stays_small() -> None:
    """The largest that can be configured has under 500 numbers."""
    mlp = GenomeConfig.model_validate({"rule": {"hidden": 96}})
    assert new_genome(mlp).parameter_count == 489
    with pytest.raises(ValueError, match="less than or equal to 96"):
        GenomeConfig.model_validate({"rule": {"hidden": 97}})
    exponents = {"pre_exponent": 3, "post_exponent": 3, "weight_exponent": 3}
    rule = {"family": "polynomial", "initialisation": "hebb", **exponents}
    polynomial = GenomeConfig.model_validate({"rule": rule})
    assert new_genome(polynomial).parameter_count == 64 + 8


def test_only_a_genome_of_the_same_body_can_take_over() -> None:
    """Another rule may; another encoder, shape or innate weights may not."""
    running = new_genome(small_config())
    assert compatible(running, new_genome(small_config("mlp"), 3))
    assert not compatible(running, new_genome(small_config(d_hidden=16)))
    assert not compatible(running, new_genome(small_config(innate_seed=1)))
    other = running.config.encoder.model_copy(update={"seed": 9})
    assert not compatible(running, new_genome(running.config.model_copy(update={"encoder": other})))


@pytest.mark.parametrize(
    "settings",
    [
        {"mixing": (0.5, 0.6, -0.5)},
        {"beta_min": 1.5},
        {"beta_max": 0.5},
        {"d_in": 1},
        {"alpha": 0},
        {"volume": 11},
    ],
)
def test_cortex_settings_that_mean_nothing_are_refused(settings: dict[str, object]) -> None:
    """Unbounded memories, β that cannot start at 1, no size, no rate, unknown keys."""
    with pytest.raises(ValueError, match="validation error"):
        CortexConfig.model_validate(settings)
