"""A life: all that the organism is after a whole record of the journal, and its snapshot."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from organism import tensorfile
from organism.chunking import Spans
from organism.cortex import CortexState, newborn, plasticity_rate
from organism.genome import Genome, from_bytes, to_bytes
from organism.kernels import BETA, State
from organism.living import as_cortex, as_state

SNAPSHOT_SCHEMA = 2

_KIND = "snapshot"
_LEGACY_SCHEMA = 1


@dataclass(frozen=True)
class Life:
    """All that the organism is after a whole record; replaced whole, never changed.

    Attributes:
        genome: the running genome.
        kept: the state of the cortex.
        offset: bytes of the stream lived.
        sequence: of the last record of the journal that was lived.
        generation: genomes swapped in since birth.
        entropy: H of the last chunk; None before the first.
    """

    genome: Genome
    kept: State
    offset: int = 0
    sequence: int = 0
    generation: int = 0
    entropy: float | None = None

    @classmethod
    def born(cls, genome: Genome, sequence: int, offset: int) -> Life:
        """Begin, with a genome that the journal has."""
        return cls(genome, as_state(newborn(genome)), offset, sequence)

    @property
    def beta(self) -> float:
        """Metabolic β."""
        return float(self.kept.gains[BETA])

    @property
    def cortex(self) -> CortexState:
        """The state as others read it, a batch of one."""
        return as_cortex(self.kept)

    @property
    def plasticity_rate(self) -> float:
        """α of the last chunk; α₀ before the first."""
        entropy = torch.tensor([self.entropy or 0.0])
        return float(plasticity_rate(self.genome, entropy))

    @property
    def state_sha256(self) -> str:
        """Checksum of cortex (calibration included) and offset, never of time."""
        return hashlib.sha256(
            self.cortex.to_bytes() + self.offset.to_bytes(8, "little")
        ).hexdigest()

    def to_snapshot(self) -> bytes:
        """Serialise, with a checksum; equal lives give equal bytes."""
        meta = {
            "genome": to_bytes(self.genome),
            "cortex": self.cortex.to_bytes(),
            "offset": self.offset,
            "sequence": self.sequence,
            "generation": self.generation,
            "entropy": self.entropy,
        }
        return tensorfile.pack(_KIND, SNAPSHOT_SCHEMA, meta, {})

    @classmethod
    def from_snapshot(cls, blob: bytes) -> Life:
        """Read a snapshot.

        Raises:
            TensorFileError, GenomeError: damaged, or of a schema that is not read.
        """
        return cls._from_meta(tensorfile.unpack(blob, _KIND, SNAPSHOT_SCHEMA).meta)

    @classmethod
    def _from_meta(cls, meta: dict[str, Any]) -> Life:
        return cls(
            genome=from_bytes(meta["genome"]),
            kept=as_state(CortexState.from_bytes(meta["cortex"])),
            offset=meta["offset"],
            sequence=meta.get("sequence", 0),
            generation=meta["generation"],
            entropy=meta["entropy"],
        )


@dataclass(frozen=True)
class LegacySnapshot:
    """A snapshot of the schema before the journal: a life, and the chunks it remembers.

    Attributes:
        life: before any record.
        chunks: the episodes' bytes, one behind the other.
        spans: where each starts and ends in them, ``(episodes, 2)``.
        offsets: where each starts in the stream, ``(episodes,)``.
    """

    life: Life
    chunks: bytes
    spans: Spans
    offsets: np.ndarray[Any, np.dtype[np.int64]]

    @classmethod
    def from_bytes(cls, blob: bytes) -> LegacySnapshot:
        """Read one.

        Raises:
            TensorFileError, GenomeError: damaged, or of another schema.
        """
        content = tensorfile.unpack(blob, _KIND, _LEGACY_SCHEMA)
        tensors = {name: tensor.numpy() for name, tensor in content.tensors.items()}
        ends = tensors["episode_ends"]
        spans = np.stack([np.concatenate([[0], ends])[:-1], ends], axis=1)
        life = Life._from_meta(content.meta)
        return cls(life, tensors["episodes"].tobytes(), spans, tensors["episode_offsets"])
