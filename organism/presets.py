"""Settings of meta-training, and the presets that they start from."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, model_validator

from organism.config import CortexConfig, EncoderConfig, GenomeConfig, RuleConfig, Settings
from organism.tasks.association import AssociationConfig
from organism.tasks.continual import ContinualConfig
from organism.tasks.familiarity import FamiliarityConfig
from organism.tasks.projection import ProjectionConfig
from organism.tasks.streams import StreamConfig

Preset = Literal[
    "original", "original-literal", "dense", "daemon", "continual", "association", "association-mlp"
]
TaskName = Literal["projection", "familiarity", "continual", "association"]
TASKS: tuple[TaskName, ...] = get_args(TaskName)
"""Tasks, each with settings of its own name."""

Part = Literal[
    "rule", "log_alpha", "log_recovery", "log_entropy_gain", "mixing", "readout", "calibration"
]


class MetaTrainConfig(Settings):
    """Everything that decides what a run of meta-training gives, but for the machine it runs on."""

    preset: Preset = Field("daemon", description="where the settings below start from")
    task: TaskName = Field("familiarity", description="what to learn")
    outer_steps: int = Field(100, ge=0, description="outer steps [D26 §8.1: 100]")
    learning_rate: float = Field(1e-3, gt=0, description="Adam's rate η [D26 §6.4: 0.001]")
    schedule: Literal["constant", "cosine"] = Field(
        "constant",
        description="rate over the run; cosine: warmed up over 10 steps, falling to a tenth",
    )
    averaging: float = Field(
        0.0, ge=0, lt=1, description="share of the outer steps, the last, that θ is averaged over"
    )
    clip_norm: float = Field(1.0, gt=0, description="largest norm of the gradient")
    trained: tuple[Part, ...] = Field(
        ("rule",), description="parts of θ that learn [D26 §5.1: the rule]"
    )
    seed: int = Field(0, ge=0, lt=1 << 32, description="seed of θ's start and of every lifetime")
    genome: GenomeConfig = GenomeConfig()
    projection: ProjectionConfig = ProjectionConfig()
    familiarity: FamiliarityConfig = FamiliarityConfig()
    continual: ContinualConfig = ContinualConfig()
    association: AssociationConfig = AssociationConfig()

    @model_validator(mode="after")
    def _trainable(self) -> MetaTrainConfig:
        idle = [part for part in self.trained if not self._takes_part(part, self.genome)]
        if idle:
            raise ValueError(
                f"trained names {', '.join(idle)}, which takes no part in this genome or task: "
                "name other parts, or switch its mechanism on"
            )
        return self

    @model_validator(mode="after")
    def _own_width(self) -> MetaTrainConfig:
        widths, own = self.familiarity.widths, self.genome.cortex.d_hidden
        if self.task == "familiarity" and widths and own not in widths:
            raise ValueError(
                f"familiarity.widths {widths} leave the genome's own d_hidden {own} out: name it "
                "among them"
            )
        return self

    @model_validator(mode="after")
    def _fittable(self) -> MetaTrainConfig:
        fits = self.task == "familiarity" and self.familiarity.fitted_streams > 0
        if (
            fits
            and self.genome.cortex.recruitment
            and not {"readout", "calibration"} <= set(self.trained)
        ):
            raise ValueError(
                "familiarity.fitted_streams fits readout and calibration: name both in trained, "
                "or set it to 0"
            )
        return self

    def with_genome(self, genome: GenomeConfig) -> MetaTrainConfig:
        """Take another genome's configuration, and train what of it there is to train."""
        trained = tuple(part for part in self.trained if self._takes_part(part, genome))
        widths = (
            self.familiarity.widths if genome.cortex.d_hidden in self.familiarity.widths else ()
        )
        familiarity = self.familiarity.model_copy(update={"widths": widths})
        return self.model_copy(
            update={"genome": genome, "trained": trained, "familiarity": familiarity}
        )

    def _takes_part(self, part: Part, genome: GenomeConfig) -> bool:
        return {
            "rule": True,
            "log_alpha": True,
            "log_recovery": genome.cortex.recovery > 0,
            "log_entropy_gain": genome.cortex.modulated,
            "mixing": genome.cortex.memory,
            "readout": self.task in ("familiarity", "continual"),
            "calibration": self.task in ("familiarity", "continual") and genome.cortex.recruitment,
        }[part]


_HEBBIAN = RuleConfig(family="polynomial", scaling="sqrt_d", post_clamp=4.0, initialisation="hebb")
_RECRUITING = CortexConfig(
    d_in=64,
    d_hidden=256,
    innate="silent",
    centring=True,
    memory=False,
    alpha=0.05,
    recruitment=True,
    vigilance=0.85,
    trace_decay=0.999,
    calibration=True,
    calibration_rate=0.05,
    normalisation="column",
)

_ASSOCIATION = MetaTrainConfig(
    preset="association",
    task="association",
    outer_steps=300,
    learning_rate=2e-2,
    schedule="cosine",
    averaging=1 / 3,
    trained=("rule", "log_alpha"),
    genome=GenomeConfig(
        rule=RuleConfig(
            family="polynomial",
            pre_exponent=2,
            scaling="fan_in",
            phases=True,
            initialisation="hebb",
            initialisation_noise=0.02,
        ),
        cortex=CortexConfig(
            d_in=64,
            d_hidden=64,
            memory=False,
            alpha=0.3,
            entropy_modulation=False,
            metabolism=False,
            normalisation="none",
        ),
    ),
)

PRESETS: dict[Preset, MetaTrainConfig] = {
    # Word for word: the whole-matrix norm, unscaled inputs, one pair an outer step, Adam at 1e-3.
    "original-literal": MetaTrainConfig(preset="original-literal", task="projection"),
    # The same sizes, rates, bank and schedule, with what the task needs to be learnable: the row
    # norm, scaled inputs, the whole bank in each outer step, a faster Adam, α₀ learned too.
    # Metabolism is off: the original gives no τ, and [D26 App. D] has no β in its inner loop; at
    # τ = 0.2 β only rises, and |z| outgrows what unit rows can answer.
    "original": MetaTrainConfig(
        preset="original",
        task="projection",
        learning_rate=3e-2,
        trained=("rule", "log_alpha"),
        genome=GenomeConfig(
            rule=RuleConfig(scaling="sqrt_d"),
            cortex=CortexConfig(normalisation="row", metabolism=False),
        ),
        projection=ProjectionConfig(whole_bank=True),
    ),
    # Every column learns from every chunk, and familiarity is the suppression of their response.
    "dense": MetaTrainConfig(
        preset="dense",
        task="familiarity",
        outer_steps=800,
        learning_rate=2e-2,
        schedule="cosine",
        trained=("rule", "log_alpha", "log_recovery", "readout"),
        familiarity=FamiliarityConfig(longest_life=2000, streams=StreamConfig(damaged_streams=0.2)),
        genome=GenomeConfig(
            encoder=EncoderConfig(orders=(3,), buckets=4096, distinct=True, unit_norm=True),
            rule=RuleConfig(
                family="polynomial",
                post_exponent=3,
                weight_exponent=2,
                scaling="sqrt_d",
                post_clamp=4.0,
                initialisation="selective_anti_hebb",
            ),
            cortex=CortexConfig(
                d_in=64,
                d_hidden=256,
                innate="tight_frame",
                centring=True,
                memory=False,
                alpha=0.02,
                recovery=0.003,
                calibration=True,
                normalisation="column",
            ),
        ),
    ),
    # The genome that the daemon ships with: one column learns from each chunk.
    "daemon": MetaTrainConfig(
        preset="daemon",
        task="familiarity",
        outer_steps=100,
        learning_rate=1e-1,
        schedule="cosine",
        trained=("rule", "log_alpha", "log_entropy_gain", "readout", "calibration"),
        familiarity=FamiliarityConfig(
            longest_life=2000,
            streams=StreamConfig(damaged_streams=0.6),
            widths=(256, 128),
            ranking_weight=1.0,
            fitted_streams=256,
        ),
        genome=GenomeConfig(
            encoder=EncoderConfig(
                orders=(1, 2, 3), buckets=8192, distinct=True, unit_norm=True, digit_weight=2.0
            ),
            rule=_HEBBIAN,
            cortex=_RECRUITING,
        ),
    ),
    # The field's protocol: 50 × 32 synapses. An item comes twice at most, so that a match frees its
    # column for another; until it is 40 steps old, the longest lag of training, it is protected.
    "continual": MetaTrainConfig(
        preset="continual",
        task="continual",
        outer_steps=100,
        learning_rate=1e-1,
        schedule="cosine",
        trained=("rule", "log_alpha", "log_entropy_gain", "readout", "calibration"),
        genome=GenomeConfig(
            rule=_HEBBIAN,
            cortex=_RECRUITING.model_copy(
                update={
                    "d_in": 50,
                    "d_hidden": 32,
                    "reuse": -1.0,
                    "trace_decay": 0.99,
                    "protection": 0.67,
                }
            ),
        ),
    ),
    # Pairs remembered, by a rule that sees whether post is clamped or free. Nothing but the rule
    # moves W: no norm that a memory would have to fit, no gain that follows the entropy.
    "association": _ASSOCIATION,
    "association-mlp": _ASSOCIATION.model_copy(
        update={
            "preset": "association-mlp",
            "genome": _ASSOCIATION.genome.model_copy(
                update={
                    "rule": RuleConfig(scaling="fan_in", phases=True, initialisation="torch"),
                }
            ),
        }
    ),
}
