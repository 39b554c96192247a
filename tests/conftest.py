"""Shared configurations, small enough that every test of the science takes milliseconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

# One thread a process, before torch is imported: tests measure properties, and servers run beside
# them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

from organism.config import CortexConfig, EncoderConfig, GenomeConfig, RuleConfig
from organism.genome import Genome, new_genome

torch.set_num_threads(1)

_ROOT = Path(__file__).resolve().parents[1]
_WARM = """
from organism.genome import load, new_genome
from server.learner import warm_up
from server.life import Life
from server.settings import ServerSettings
from tests.conftest import recruiting_config, small_config

for make in (small_config, recruiting_config):
    for family in ("polynomial", "mlp"):
        warm_up(Life.born(new_genome(make(family)), 0, 0))
warm_up(Life.born(load(ServerSettings().genome), 0, 0))
"""


def pytest_configure(config: pytest.Config) -> None:
    """Have another process compile the kernels: only what is loaded rounds like a daemon's."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # Started in the background, by a shell: what the tests interrupt would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "workerinput"):
        return  # the first process has
    subprocess.run([sys.executable, "-c", _WARM], check=True, cwd=_ROOT)


# A kernel is loaded, or compiled, at its first call: no deadline for it.
settings.register_profile("kernels", deadline=None)
settings.load_profile("kernels")


def small_config(family: str = "polynomial", **cortex: Any) -> GenomeConfig:
    """A tiny genome's configuration with every mechanism on; keywords change the cortex's."""
    settings: dict[str, object] = {
        "d_in": 8,
        "d_hidden": 24,
        "innate": "tight_frame",
        "centring": True,
        "mixing": (0.7, 0.2, 0.05),
        "alpha": 0.05,
        "recovery": 0.01,
        "normalisation": "column",
    }
    rule = (
        RuleConfig(family="mlp", hidden=4, scaling="sqrt_d", initialisation="torch")
        if family == "mlp"
        else RuleConfig(
            family="polynomial",
            post_exponent=3,
            weight_exponent=2,
            scaling="sqrt_d",
            post_clamp=4.0,
            initialisation="anti_hebb",
            initialisation_noise=0.1,
        )
    )
    return GenomeConfig(
        encoder=EncoderConfig(orders=(3,), buckets=512),
        rule=rule,
        cortex=CortexConfig.model_validate(settings | cortex),
    )


def recruiting_config(family: str = "polynomial", **cortex: Any) -> GenomeConfig:
    """The same with recruitment, and without what does not go with it."""
    settings: dict[str, Any] = {
        "innate": "silent",
        "recovery": 0.0,
        "recruitment": True,
        "vigilance": 0.8,
        "trace_decay": 0.9,
        "calibration": True,
    }
    config = small_config(family, **(settings | cortex))
    if family == "mlp":
        return config
    rule = config.rule.model_copy(update={"initialisation": "hebb"})
    return config.model_copy(update={"rule": rule})


@pytest.fixture(params=["polynomial", "mlp"])
def genome(request: pytest.FixtureRequest) -> Genome:
    """An untrained genome of each rule family."""
    return new_genome(small_config(request.param), seed=1)
