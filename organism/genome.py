"""The genome: θ, the numbers that meta-training learns, and what gives them meaning.

θ holds the rule's parameters, the plasticity rate α₀, the gains of entropy and recovery, the
memory mixing c, and the familiarity readout with its calibration, under 500 numbers in all. Owns
their names and shapes and the genome file; knows nothing of how θ is used or trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from organism import tensorfile
from organism.config import GenomeConfig
from organism.rules import make_rule

SCHEMA = 2
MAX_MEMORY_MIXING = 0.98
"""Bound that training keeps |c₁| + |c₂| under, so that the memories stay bounded."""

_KIND = "genome"
# Before any training: the weaker the response, the more familiar.
_INITIAL_READOUT = (-2.0, 2.0, -2.0)
# With recruitment: the closer, the more familiar.
_INITIAL_EVIDENCE = (1.0, 0.0, 0.0, 0.0)
_INITIAL_CALIBRATION = ((1.0, 0.0, 0.0), (0.0, 0.0, 0.0), (-2.0, 0.0, 0.0))


class GenomeError(ValueError):
    """A genome file that cannot be trusted, or θ that does not fit its configuration."""


@dataclass(frozen=True)
class Genome:
    """A learning rule ready to be lived with.

    Attributes:
        config: sizes, switches and constants.
        theta: ``rule.*`` (see ``organism.rules``), ``log_alpha`` (), ``log_recovery`` () and
            ``log_entropy_gain`` () where on, ``mixing`` (3,) as (c₀, c₁, c₂), and ``readout`` (3,),
            see ``organism.readout``; with recruitment ``readout`` (4,) and ``calibration`` (3, 3),
            see ``organism.recruitment``.
        provenance: where it came from: plain values, shown but never interpreted.
    """

    config: GenomeConfig
    theta: Mapping[str, Tensor]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parameter_count(self) -> int:
        """How many numbers θ has."""
        return sum(tensor.numel() for tensor in self.theta.values())

    @cached_property
    def sha256(self) -> str:
        """Checksum of the genome's file: equal where configuration, θ and provenance are."""
        return to_bytes(self)[-32:].hex()


def new_genome(config: GenomeConfig, seed: int = 0) -> Genome:
    """Draw an untrained genome."""
    generator = torch.Generator().manual_seed(seed)
    theta = make_rule(config.rule).initial(generator)
    theta["log_alpha"] = torch.tensor(math.log(config.cortex.alpha))
    if config.cortex.recovery:
        theta["log_recovery"] = torch.tensor(math.log(config.cortex.recovery))
    if config.cortex.modulated:
        theta["log_entropy_gain"] = torch.tensor(math.log(config.cortex.entropy_gain))
    theta["mixing"] = torch.tensor(config.cortex.mixing)
    if config.cortex.recruitment:
        theta["readout"] = torch.tensor(_INITIAL_EVIDENCE)
        theta["calibration"] = torch.tensor(_INITIAL_CALIBRATION)
    else:
        theta["readout"] = torch.tensor(_INITIAL_READOUT)
    return Genome(config, theta)


def compatible(running: Genome, candidate: Genome) -> bool:
    """Whether a candidate can take over a living cortex: same encoder, shape, state at birth."""

    def body(genome: Genome) -> tuple[object, ...]:
        cortex = genome.config.cortex
        return (
            genome.config.encoder,
            cortex.d_in,
            cortex.d_hidden,
            cortex.innate,
            cortex.innate_std,
            cortex.innate_seed,
            cortex.recruitment,
        )

    return body(running) == body(candidate)


def to_bytes(genome: Genome) -> bytes:
    """Serialise as a tensor file of kind ``genome``."""
    meta = {"config": genome.config.model_dump(mode="json"), "provenance": dict(genome.provenance)}
    return tensorfile.pack(_KIND, SCHEMA, meta, genome.theta)


def from_bytes(blob: bytes) -> Genome:
    """Read a genome.

    Raises:
        GenomeError: truncated, damaged, unknown schema, or numbers that do not fit the
            configuration.
    """
    try:
        content = tensorfile.unpack(blob, _KIND, SCHEMA)
        if set(content.meta) != {"config", "provenance"}:
            raise GenomeError(f"malformed genome file: header has {sorted(content.meta)}")
        config = GenomeConfig.model_validate(content.meta["config"])
        if config.model_dump(mode="json") != content.meta["config"]:
            raise GenomeError("genome file whose configuration is not whole: nothing is filled in")
        genome = Genome(config, content.tensors, content.meta["provenance"])
        _check(genome)
    except ValidationError as error:
        raise GenomeError(f"genome file with an unknown configuration: {error}") from error
    except GenomeError:
        raise
    except ValueError as error:
        raise GenomeError(str(error)) from error
    return genome


def save(genome: Genome, path: Path) -> None:
    """Write a genome file, whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(to_bytes(genome))
    temporary.replace(path)


def load(path: Path) -> Genome:
    """Read a genome file.

    Raises:
        GenomeError: as ``from_bytes``, or the file cannot be read; the message names the file.
    """
    try:
        return from_bytes(path.read_bytes())
    except OSError as error:
        raise GenomeError(f"cannot read genome {path}: {error.strerror}") from error
    except GenomeError as error:
        raise GenomeError(f"{path}: {error}") from error


def _check(genome: Genome) -> None:
    if not isinstance(genome.provenance, dict):
        raise GenomeError(f"genome's provenance is a {type(genome.provenance).__name__}, not a map")
    expected = {
        name: tuple(tensor.shape) for name, tensor in new_genome(genome.config).theta.items()
    }
    found = {name: tuple(tensor.shape) for name, tensor in genome.theta.items()}
    if found != expected:
        raise GenomeError(f"genome has tensors {found}, its configuration needs {expected}")
    for name, tensor in genome.theta.items():
        if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
            raise GenomeError(f"genome tensor {name!r} must hold finite float32 numbers")
    _, c1, c2 = genome.theta["mixing"].tolist()
    if abs(c1) + abs(c2) >= 1:
        raise GenomeError(
            f"genome's mixing needs |c₁| + |c₂| < 1 for bounded memories, got {c1}, {c2}"
        )
