"""Settings of the science: frozen, typed, saved whole in every genome.

Owns every constant of a cortex step, with the original's value and section. Knows no tensors:
what a setting *does* stands in the module that reads it. Unknown keys are refused everywhere.

References are to the original document by section, e.g. [D26 §4.2].
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

Normalisation = Literal["row", "column", "frobenius", "none"]
"""Axis of the l2 normalisation of W: ``row`` is over d_hidden, ``column`` over d_in."""

InputScaling = Literal["none", "rms", "sqrt_d", "fan_in"]
"""How a rule's inputs are brought to unit size; see ``organism.rules``."""

RuleInitialisation = Literal[
    "appendix_c",
    "torch",
    "hebb",
    "anti_hebb",
    "selective_anti_hebb",
    "oja",
    "bcm",
    "decay",
    "contrastive",
]
"""How a rule's parameters start: at random for the mlp, from a named rule for the polynomial."""


class Settings(BaseModel):
    """An immutable group of settings that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class EncoderConfig(Settings):
    """Bytes to a vector: mean-pooled rows of a frozen random table [D26 §4.1]."""

    orders: tuple[int, ...] = Field(
        (1,),
        description="n-gram orders, 1 to 4, mean-pooled apart and summed; (1,): bytes [D26 §4.1]",
    )
    buckets: int = Field(
        256, ge=2, le=1 << 20, description="rows of the table; 256 for orders (1,): the byte values"
    )
    distinct: bool = Field(
        False, description="pool over a chunk's distinct n-grams, repeats counted once [D26: all]"
    )
    unit_norm: bool = Field(
        False, description="scale each order's mean to unit norm, whatever the length [D26: off]"
    )
    digit_weight: float = Field(
        1.0,
        gt=0,
        le=16,
        description="weight of the bytes 0 to 9 in their n-grams, others count 1 [D26: 1]",
    )
    seed: int = Field(0, ge=0, lt=1 << 32, description="seed the frozen table is drawn from")

    @model_validator(mode="after")
    def _consistent(self) -> EncoderConfig:
        if not self.orders or any(not 1 <= n <= 4 for n in self.orders):
            raise ValueError(f"orders must be n-gram lengths from 1 to 4, got {self.orders}")
        if len(set(self.orders)) != len(self.orders):
            raise ValueError(f"orders must differ from each other, got {self.orders}")
        if self.orders == (1,) and self.buckets != 256:
            raise ValueError(f"orders (1,) reads bytes: buckets must be 256, got {self.buckets}")
        return self


class RuleConfig(Settings):
    """The plasticity rule G(pre, post, w) -> Δw, applied at every synapse [D26 §3.1]."""

    family: Literal["mlp", "polynomial"] = Field("mlp", description="the rule family")
    hidden: int = Field(
        16, ge=1, le=96, description="mlp: hidden units [D26 §6.4: 16]; 96 keeps θ under 500"
    )
    pre_exponent: int = Field(1, ge=0, le=3, description="polynomial: highest power of pre")
    post_exponent: int = Field(2, ge=0, le=3, description="polynomial: highest power of post")
    weight_exponent: int = Field(1, ge=0, le=3, description="polynomial: highest power of w")
    scaling: InputScaling = Field("none", description="scaling of the rule's inputs [D26: none]")
    post_clamp: float = Field(
        0.0, ge=0, description="clamp of the scaled post to ± this; 0: off [D26: off]"
    )
    phases: bool = Field(
        False, description="the rule sees whether post is clamped or free, 2ρ − 1 [D26: no]"
    )
    initialisation: RuleInitialisation = Field(
        "appendix_c", description="start of the rule's parameters [D26 App. C for the mlp]"
    )
    initialisation_noise: float = Field(
        0.0,
        ge=0,
        description="polynomial: standard deviation added to the named rule's coefficients",
    )

    @model_serializer(mode="wrap")
    def _without_phases(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave ``phases`` out where off: genomes from before it keep their bytes, and hashes."""
        fields: dict[str, Any] = whole(self)
        return {name: value for name, value in fields.items() if name != "phases" or value}

    @model_validator(mode="after")
    def _consistent(self) -> RuleConfig:
        random_start = self.initialisation in ("appendix_c", "torch")
        if random_start != (self.family == "mlp"):
            raise ValueError(
                f"initialisation {self.initialisation!r} does not fit the {self.family} family: "
                "the mlp starts from 'appendix_c' or 'torch', the polynomial from a named rule"
            )
        if self.family == "mlp" and self.initialisation_noise:
            raise ValueError(
                "initialisation_noise belongs to the polynomial family; the mlp's start is random"
            )
        return self


class CortexConfig(Settings):
    """Sizes, constants and switches of one step of the cortex."""

    d_in: int = Field(32, ge=2, le=4096, description="width of a chunk's vector [D26 App. B: 32]")
    d_hidden: int = Field(1024, ge=2, le=65536, description="columns of W [D26 App. B: 1024]")

    innate: Literal["gaussian", "tight_frame", "silent"] = Field(
        "gaussian", description="W₀: N(0, innate_std²) [D26 App. C], orthogonal blocks, or zeros"
    )
    innate_std: float = Field(0.01, gt=0, description="gaussian W₀: its deviation [D26 §6.4: 0.01]")
    innate_seed: int = Field(0, ge=0, lt=1 << 32, description="seed W₀ is drawn from")

    centring: bool = Field(
        False, description="inputs centred by a running mean and scaled to unit norm [D26: off]"
    )
    mean_rate: float = Field(
        0.01, gt=0, le=1, description="rate of the running mean once 1/steps has fallen below it"
    )

    memory: bool = Field(
        True, description="mix short- and long-term memory into the input [D26 §4.1]"
    )
    mixing: tuple[float, float, float] = Field(
        (0.6, 0.3, 0.1), description="initial (c₀, c₁, c₂) of the mixing, learnable [D26 §4.1]"
    )
    short_term_decay: float = Field(0.8, ge=0, lt=1, description="λ_ST [D26 §4.1: 0.8]")
    long_term_decay: float = Field(0.999, ge=0, lt=1, description="λ_LT [D26 §4.1: 0.999]")

    alpha: float = Field(
        0.1, gt=0, description="initial plasticity rate α₀, learnable [D26 §6.4: 0.1]"
    )
    entropy_modulation: bool = Field(True, description="α = α₀·(1 + gain·H) [D26 §4.2]")
    entropy_gain: float = Field(
        10.0, ge=0, description="initial gain of the modulation, learnable [D26 §4.2: 10]"
    )

    metabolism: bool = Field(True, description="β follows the entropy [D26 §4.3]; off: β stays 1")
    entropy_threshold: float = Field(
        0.2, ge=0, description="τ, above which β falls; the original gives none"
    )
    beta_fall: float = Field(0.95, gt=0, le=1, description="factor on β above τ [D26 §4.3: 0.95]")
    beta_rise: float = Field(1.05, ge=1, description="factor on β at or below τ [D26 §4.3: 1.05]")
    beta_min: float = Field(0.1, gt=0, description="lower bound of β [D26 §4.3: 0.1]")
    beta_max: float = Field(2.0, gt=0, description="upper bound of β [D26 §4.3: 2.0]")

    recruitment: bool = Field(
        False, description="one column learns: the nearest, or a fresh one for the new [D26: all]"
    )
    vigilance: float = Field(
        0.95, gt=0, lt=1, description="match, as a cosine, below which a fresh column is recruited"
    )
    reuse: float = Field(
        1.0, ge=-1, le=1, description="what a match adds to its column's trace of use"
    )
    protection: float = Field(
        0.0, ge=0, description="trace from which a column is not recruited anew; 0: off"
    )
    trace_decay: float = Field(
        0.998, gt=0, lt=1, description="decay a step of a column's use; the least used is recruited"
    )

    calibration: bool = Field(
        False, description="the readout's level follows the stream [D26: no familiarity]"
    )
    calibration_rate: float = Field(0.03, gt=0, le=1, description="rate of that level")

    recovery: float = Field(
        0.0, ge=0, lt=1, description="initial κ of W ← W + κ·(W₀ − W), learnable; 0: off [D26: off]"
    )
    plasticity: bool = Field(True, description="W learns; off: it stays innate, all else runs on")

    normalisation: Normalisation = Field(
        "frobenius", description="l2 normalisation of W after each step [D26 §3.3: whole matrix]"
    )
    normalisation_epsilon: float = Field(1e-8, gt=0, description="ε of [D26 §3.3]")

    @property
    def modulated(self) -> bool:
        """Whether the entropy modulates plasticity at all."""
        return self.entropy_modulation and self.entropy_gain > 0

    @model_validator(mode="after")
    def _consistent(self) -> CortexConfig:
        if abs(self.mixing[1]) + abs(self.mixing[2]) >= 1:
            raise ValueError(
                f"mixing needs |c₁| + |c₂| < 1 for bounded memories, got {self.mixing}"
            )
        if not self.beta_min <= 1 <= self.beta_max:
            raise ValueError(
                f"β starts at 1: need beta_min <= 1 <= beta_max, "
                f"got {self.beta_min}, {self.beta_max}"
            )
        if self.recruitment and not (
            self.innate == "silent" and self.centring and self.normalisation == "column"
        ):
            raise ValueError(
                "recruitment compares unit inputs with unit columns, or silent ones: it needs "
                "centring, normalisation 'column' and innate 'silent'"
            )
        if self.recruitment and self.recovery:
            raise ValueError("recruitment knows no recovery: what is not used is recruited anew")
        return self


class GenomeConfig(Settings):
    """Everything that fixes what a genome's numbers mean."""

    encoder: EncoderConfig = EncoderConfig()
    rule: RuleConfig = RuleConfig()
    cortex: CortexConfig = CortexConfig()

    @model_validator(mode="after")
    def _consistent(self) -> GenomeConfig:
        if self.cortex.recruitment and self.rule.scaling == "rms":
            raise ValueError(
                "recruitment starts from silent columns, which have no root mean square: "
                "choose rule scaling 'sqrt_d' or 'none'"
            )
        return self
