"""The PlasticCortex: one step of reading and learning, as pure functions of an immutable state.

The one reference step for meta-training, evaluation and the daemon: state in, state out,
gradients flow through everything. Owns the equations of a step; knows nothing of bytes, tasks or
time.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from organism import recruitment, tensorfile
from organism.config import CortexConfig, Normalisation
from organism.genome import Genome
from organism.readout import deviation, log_response, logit, next_level
from organism.rules import CLAMPED, FREE, Rule, make_rule, scaled_delta

STATE_SCHEMA = 2

_KIND = "cortex"
# A vector this short is rounding error of the centring, not a direction: it must not be blown up
# to unit norm.
_UNIT_NORM_FLOOR = 1e-6


@dataclass(frozen=True)
class CortexState:
    """Everything a cortex carries from one chunk to the next, for a batch of lifetimes.

    Attributes:
        w: synapses W, ``(batch, d_in, d_hidden)``.
        short_term: m_ST, ``(batch, d_in)``.
        long_term: m_LT, ``(batch, d_in)``.
        mean: running mean μ of the inputs, ``(batch, d_in)``.
        trace: decaying count of each column's uses, ``(batch, d_hidden)``; without recruitment
            ``(batch, 0)``.
        beta: metabolic gain β, ``(batch,)``.
        level: calibration of the readout, ``(batch,)``: the response of novel chunks, or, with
            recruitment, the match of familiar ones.
        steps: steps lived, ``(batch,)`` int64.
    """

    w: Tensor
    short_term: Tensor
    long_term: Tensor
    mean: Tensor
    trace: Tensor
    beta: Tensor
    level: Tensor
    steps: Tensor

    @property
    def float_count(self) -> int:
        """Floats carried by one lifetime: all but the count of its steps."""
        return sum(getattr(self, f.name)[0].numel() for f in fields(self) if f.name != "steps")

    def detach(self) -> CortexState:
        """Return the same state cut from the autograd graph."""
        return CortexState(**{f.name: getattr(self, f.name).detach() for f in fields(self)})

    def to_bytes(self) -> bytes:
        """Serialise; equal states give equal bytes."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return tensorfile.pack(_KIND, STATE_SCHEMA, {}, tensors)

    @classmethod
    def from_bytes(cls, blob: bytes) -> CortexState:
        """Read a serialised state.

        Raises:
            TensorFileError: damaged, of another schema, or tensors that are not a state's.
        """
        tensors = tensorfile.unpack(blob, _KIND, STATE_SCHEMA).tensors
        w = tensors.get("w", torch.zeros(0))
        batch, d_in, d_hidden = (*w.shape, 0, 0, 0)[:3]
        used = tensors.get("trace", torch.zeros(0)).numel() > 0
        vectors = {name: (batch, d_in) for name in ("short_term", "long_term", "mean")}
        scalars = {name: (batch,) for name in ("beta", "level", "steps")}
        traces = {"trace": (batch, d_hidden if used else 0)}
        expected = {"w": tuple(w.shape), **vectors, **traces, **scalars}
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        types = {tensor.dtype for name, tensor in tensors.items() if name != "steps"}
        if found != expected or w.dim() != 3 or types != {torch.float32}:
            raise tensorfile.TensorFileError(f"not the tensors of a cortex state: {found}")
        return cls(**tensors)


@dataclass(frozen=True)
class Reading:
    """What the reading half of a step sees.

    Attributes:
        mixed: z̃, input and memories mixed, ``(batch, d_in)``.
        z: β·z̃, the pre-synaptic activity, ``(batch, d_in)``.
        drive: zW, ``(batch, d_hidden)``.
        h: hidden activity tanh(zW), ``(batch, d_hidden)``, in (−1, 1).
        entropy: H = std(h), the original's proxy, ``(batch,)``.
        response: what the readout sees, ``(batch,)``: log(std(h) / std(h₀)), or, with
            recruitment, the evidence.
        logit: log-odds of familiarity, ``(batch,)``.
    """

    mixed: Tensor
    z: Tensor
    drive: Tensor
    h: Tensor
    entropy: Tensor
    response: Tensor
    logit: Tensor

    @property
    def familiarity(self) -> Tensor:
        """Probability that the chunk was lived through, ``(batch,)``."""
        return torch.sigmoid(self.logit)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # shared with training too
def innate_weights(config: CortexConfig) -> Tensor:
    """W₀, ``(d_in, d_hidden)`` float32, drawn from the stored seed; shared, never written to.

    ``gaussian`` is N(0, innate_std²) as in [D26 App. C]. ``tight_frame`` sets random orthogonal
    blocks side by side: unit columns with W₀W₀ᵀ = (d_hidden/d_in)·I, so that before any learning
    every unit input gets the same ‖zW₀‖, and a difference in response is a memory, not an
    accident of the draw. ``silent`` is zero: columns that hold nothing answer nothing.
    """
    if config.innate == "silent":
        return torch.zeros(config.d_in, config.d_hidden)
    draws = np.random.RandomState(config.innate_seed)
    d_in, d_hidden = config.d_in, config.d_hidden
    if config.innate == "gaussian":
        return (
            torch.from_numpy(draws.standard_normal((d_in, d_hidden)).astype(np.float32))
            * config.innate_std
        )
    blocks = []
    for _ in range(-(-d_hidden // d_in)):
        q, r = np.linalg.qr(draws.standard_normal((d_in, d_in)))
        blocks.append(q * np.sign(np.diag(r)))
    return torch.from_numpy(np.concatenate(blocks, axis=1)[:, :d_hidden].astype(np.float32))


def newborn(genome: Genome, batch: int = 1) -> CortexState:
    """State at birth: innate weights, empty memories, β = 1; on θ's device, of its type.

    Shared, never written to.
    """
    like = genome.theta["log_alpha"]
    return _newborn(genome.config.cortex, batch, like.dtype, like.device)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # shared with training too
def _newborn(
    cortex: CortexConfig, batch: int, dtype: torch.dtype, device: torch.device
) -> CortexState:
    like = torch.zeros((), dtype=dtype, device=device)
    w = innate_weights(cortex).to(like).expand(batch, -1, -1)
    zeros = like.new_zeros(batch, cortex.d_in)
    level = recruitment.LEVEL_AT_BIRTH if cortex.recruitment else 0.0
    return CortexState(
        w=w,
        short_term=zeros,
        long_term=zeros,
        mean=zeros,
        trace=like.new_zeros(batch, cortex.d_hidden if cortex.recruitment else 0),
        beta=like.new_ones(batch),
        level=like.new_full((batch,), level),
        steps=torch.zeros(batch, dtype=torch.int64, device=device),
    )


def respond(genome: Genome, state: CortexState, e: Tensor) -> Tensor:
    """Read a cue for h alone, without H and familiarity; arguments as ``recall``'s."""
    return _responded(genome, state, e)[-1]


def recall(genome: Genome, state: CortexState, e: Tensor) -> Reading:
    """Read a cue: z, h, H and familiarity. Changes nothing.

    Mixing and activation are [D26 §4.1], H is [D26 §4.2], β is [D26 §4.3].

    Args:
        genome: the rule and its configuration.
        state: a batch of cortices.
        e: encoded chunks, ``(batch, d_in)``, or many a cortex, ``(cues, batch, d_in)``; the
            reading has their leading axes.
    """
    config = genome.config.cortex
    mixed, z, drive, h = _responded(genome, state, e)
    entropy = deviation(h)
    if config.recruitment:
        seen = recruitment.features(drive / state.beta.unsqueeze(1), state.trace)
        response = recruitment.evidence(genome.theta["readout"], seen)
        odds = recruitment.log_odds(genome.theta["calibration"], response, state.level)
    else:
        innate = torch.tanh(_drive(z, innate_weights(config).to(z).expand_as(state.w)))
        response = log_response(entropy, deviation(innate))
        odds = logit(genome.theta["readout"], response, state.level)
    return Reading(mixed, z, drive, h, entropy, response, odds)


def _responded(
    genome: Genome, state: CortexState, e: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first four of a reading."""
    config = genome.config.cortex
    x = _centred(e, state) if config.centring else e
    if config.memory:
        c0, c1, c2 = genome.theta["mixing"].unbind()
        mixed = c0 * x + c1 * state.short_term + c2 * state.long_term
    else:
        mixed = x
    z = state.beta.unsqueeze(1) * mixed
    drive = _drive(z, state.w)
    return mixed, z, drive, torch.tanh(drive)


def centred_inputs(genome: Genome, inputs: Tensor) -> Tensor:
    """What a newborn's cortex sees of a sequence, ``(steps, batch, d_in)``: before β and memories.

    With centring, each input less the mean of those before it, at unit norm; else the inputs.
    """
    config = genome.config.cortex
    if not config.centring:
        return inputs
    state, seen = newborn(genome, inputs.shape[1]), []
    for e in inputs:
        seen.append(_centred(e, state))
        state = replace(state, mean=_next_mean(config, state, e), steps=state.steps + 1)
    return torch.stack(seen)


def step(
    genome: Genome,
    state: CortexState,
    e: Tensor,
    target: Tensor | None = None,
    teacher_ratio: float = 0.0,
    rule: Rule | None = None,
) -> tuple[CortexState, Reading]:
    """Read a chunk, then learn from it. Everything is read before it is updated.

    Plasticity and its normalisation are [D26 §3.3], entropy modulation [D26 §4.2], metabolism
    [D26 §4.3], memories [D26 §4.1], teacher forcing [D26 §5.2]; a rule with phases sees 2ρ − 1.

    Args:
        genome: the rule and its configuration.
        state: a batch of cortices.
        e: encoded chunks, ``(batch, d_in)``.
        target: y of teacher forcing, ``(batch, d_hidden)``; needed where ``teacher_ratio`` is not
            0.
        teacher_ratio: ρ in [0, 1]; the daemon's is always 0.
        rule: in place of the genome's family, with the same θ; None: that.

    Returns:
        The next state, and the reading from *before* the learning.

    Raises:
        ValueError: a teacher ratio without a target, or with recruitment.
    """
    config = genome.config.cortex
    reading = recall(genome, state, e)
    post = reading.h
    if teacher_ratio:
        target = check_teacher(genome, target, teacher_ratio)
        post = teacher_ratio * target + (1 - teacher_ratio) * post
    phase = FREE + (CLAMPED - FREE) * teacher_ratio
    rule = rule or make_rule(genome.config.rule)
    w, trace = _learned(genome, rule, state, reading, post, phase)
    next_state = CortexState(
        w=w,
        short_term=_next_memory(config, state.short_term, reading.mixed, config.short_term_decay),
        long_term=_next_memory(config, state.long_term, reading.mixed, config.long_term_decay),
        mean=_next_mean(config, state, e),
        trace=trace,
        beta=_next_beta(config, state.beta, reading.entropy),
        level=_next_level(config, state, reading),
        steps=state.steps + 1,
    )
    return next_state, reading


def check_teacher(genome: Genome, target: Tensor | None, ratio: float) -> Tensor:
    """Return a target that can be taught at a ratio above 0.

    Raises:
        ValueError: there is none, or the cortex recruits.
    """
    if genome.config.cortex.recruitment:
        raise ValueError("recruitment chooses who learns: it takes no teacher, ρ must be 0")
    if target is None:
        raise ValueError(f"teacher_ratio {ratio} needs a target; pass one, or ρ = 0")
    return target


def plasticity_rate(genome: Genome, entropy: Tensor) -> Tensor:
    """α = α₀·(1 + gain·H) [D26 §4.2], or α₀ where modulation is off; ``(batch,)``."""
    alpha = genome.theta["log_alpha"].exp().expand_as(entropy)
    if not genome.config.cortex.modulated:
        return alpha
    return alpha * (1 + genome.theta["log_entropy_gain"].exp() * entropy)


def normalise(w: Tensor, normalisation: Normalisation, epsilon: float) -> Tensor:
    """Divide by the l2 norm, plus ε, over rows, columns or the whole matrix [D26 §3.3]."""
    dims = {"row": (2,), "column": (1,), "frobenius": (1, 2), "none": ()}[normalisation]
    if not dims:
        return w
    norm: Tensor = torch.linalg.vector_norm(w, dim=dims, keepdim=True)
    return w / (norm + epsilon)


def _drive(z: Tensor, w: Tensor) -> Tensor:
    """zW; equal weights give equal bits, whichever tensor holds them."""
    if z.dim() == 2:
        return torch.bmm(z.unsqueeze(1), w).squeeze(1)
    return torch.bmm(z.transpose(0, 1), w).transpose(0, 1)


def _learned(
    genome: Genome, rule: Rule, state: CortexState, reading: Reading, post: Tensor, phase: float
) -> tuple[Tensor, Tensor]:
    """W and the traces after learning."""
    if not genome.config.cortex.plasticity:
        return state.w, state.trace
    if genome.config.cortex.recruitment:
        return _one_learns(genome, rule, state, reading)
    return _all_learn(genome, rule, state, reading, post, phase), state.trace


def _one_learns(
    genome: Genome, rule: Rule, state: CortexState, reading: Reading
) -> tuple[Tensor, Tensor]:
    """Apply the rule to the winner alone; a recruited column is silent, and driven as by itself."""
    config = genome.config
    match = reading.drive / state.beta.unsqueeze(1)
    cortex = config.cortex
    choice = recruitment.choose(match, state.trace, cortex.vigilance, cortex.protection)
    place, fresh = choice.column.unsqueeze(1), choice.recruited.unsqueeze(1)
    across = place.unsqueeze(1).expand(-1, cortex.d_in, 1)
    before = state.w.gather(2, across)
    w = before * ~fresh.unsqueeze(1)
    post = torch.where(fresh, torch.tanh(state.beta).unsqueeze(1), reading.h.gather(1, place))
    delta = scaled_delta(rule, genome.theta, config.rule, cortex, reading.z, post, w, state.beta)
    moved = w + plasticity_rate(genome, reading.entropy).view(-1, 1, 1) * delta
    moved = normalise(moved, cortex.normalisation, cortex.normalisation_epsilon)
    moved = torch.where(choice.learns.view(-1, 1, 1), moved, before)
    trace = recruitment.next_trace(state.trace, choice, cortex.trace_decay, cortex.reuse)
    return state.w.scatter(2, across, moved), trace


def _all_learn(
    genome: Genome, rule: Rule, state: CortexState, reading: Reading, post: Tensor, phase: float
) -> Tensor:
    config, w = genome.config, state.w
    delta = scaled_delta(
        rule, genome.theta, config.rule, config.cortex, reading.z, post, w, state.beta, phase
    )
    moved = w + plasticity_rate(genome, reading.entropy).view(-1, 1, 1) * delta
    if config.cortex.recovery:
        moved = moved + genome.theta["log_recovery"].exp() * (
            innate_weights(config.cortex).to(w) - w
        )
    return normalise(moved, config.cortex.normalisation, config.cortex.normalisation_epsilon)


def _centred(e: Tensor, state: CortexState) -> Tensor:
    centred = e - state.mean
    norm: Tensor = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    return centred / norm.clamp_min(_UNIT_NORM_FLOOR)


def _next_mean(config: CortexConfig, state: CortexState, e: Tensor) -> Tensor:
    """Plain average while 1/steps exceeds the rate, then exponential: no bias at birth."""
    if not config.centring:
        return state.mean
    rate = (1 / (state.steps + 1).to(e)).clamp_min(config.mean_rate).unsqueeze(1)
    return torch.lerp(state.mean, e, rate)


def _next_beta(config: CortexConfig, beta: Tensor, entropy: Tensor) -> Tensor:
    if not config.metabolism:
        return beta
    moved = torch.where(
        entropy > config.entropy_threshold, beta * config.beta_fall, beta * config.beta_rise
    )
    return moved.clamp(config.beta_min, config.beta_max)


def _next_level(config: CortexConfig, state: CortexState, reading: Reading) -> Tensor:
    level = state.level
    if not config.calibration:
        return level
    if config.recruitment:
        best = reading.drive.amax(-1) / state.beta
        return recruitment.next_level(level, best, config.calibration_rate)
    return next_level(level, reading.response, reading.familiarity, config.calibration_rate)


def _next_memory(config: CortexConfig, memory: Tensor, mixed: Tensor, decay: float) -> Tensor:
    return decay * memory + (1 - decay) * mixed if config.memory else memory
