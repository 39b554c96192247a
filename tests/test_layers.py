"""Imports point one way: a file imports only what stands above it here."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FOLDERS = ("organism", "server", "examples", "benchmarks")
LAYERS = [
    "organism.config",
    "organism.jit",
    "organism.simd",
    "organism.chunking",
    "organism.auroc",
    "organism.calibration",
    "organism.figures",
    "organism.tensorfile",
    "organism.encoder",
    "organism.rules",
    "organism.readout",
    "organism.recruitment",
    "organism.recruiting",
    "organism.kernels",
    "organism.adjoint",
    "organism.genome",
    "organism.portrait",
    "organism.cortex",
    "organism.program",
    "organism.fused",
    "organism.living",
    "organism.lifetime",
    "organism.tasks.protocol",
    "organism.tasks.grammar",
    "organism.tasks.streams",
    "organism.tasks.projection",
    "organism.tasks.familiarity",
    "organism.tasks.association",
    "organism.tasks.continual",
    "organism.evaluation",
    "organism.peers",
    "organism.comparison",
    "organism.plots",
    "organism.evaluate",
    "organism.presets",
    "organism.meta_train",
    "organism.lab.trials",
    "organism.lab.report",
    "organism.lab.drawing",
    "organism.lab.tables",
    "organism.lab.adaptation",
    "organism.lab.costs",
    "organism.lab.ablations",
    "organism.lab.protocols",
    "organism.lab.memory",
    "organism.lab.recovery",
    "organism.lab.anatomy",
    "organism.lab.atlas",
    "organism.lab.__main__",
    "server.settings",
    "server.errors",
    "server.observer",
    "server.metrics",
    "server.page",
    "server.door",
    "server.logs",
    "server.wire",
    "server.storage.disk",
    "server.storage.segment",
    "server.storage.journal",
    "server.storage.snapshot",
    "server.storage.statedir",
    "server.episodes",
    "server.life",
    "server.waking",
    "server.learner",
    "server.probe",
    "server.intake",
    "server.engine",
    "server.replies",
    "server.ingest",
    "server.express",
    "server.heads",
    "server.retrain",
    "server.events",
    "server.routes",
    "server.stream",
    "server.app",
    "server.frames",
    "server.patience",
    "server.verify",
    "server.__main__",
    "server.client",
    "server.following",
    "server.watching",
    "server.feeding",
    "server.cli",
    "examples.demo",
    "examples.service",
    "benchmarks.measure",
    "benchmarks.eager",
    "benchmarks.clients",
    "benchmarks.bare",
    "benchmarks.processes",
    "benchmarks.step",
    "benchmarks.meta_step",
    "benchmarks.ingest",
    "benchmarks.recall",
    "benchmarks.retrieval",
    "benchmarks.startup",
    "benchmarks.scaling",
    "benchmarks.chaos",
]


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import; name the module"
            module = node.module or ""
            inner = {f"{module}.{alias.name}" for alias in node.names}
            found.update(inner & set(LAYERS) or {module})
    return {name for name in found if name.split(".")[0] in FOLDERS}


def module_path(module: str) -> Path:
    """The file of a module."""
    return ROOT / (module.replace(".", "/") + ".py")


@pytest.mark.parametrize("module", LAYERS)
def test_a_module_imports_only_what_stands_above_it(module: str) -> None:
    """In particular, the science never imports the daemon."""
    above = LAYERS[: LAYERS.index(module)]
    assert imports(module_path(module)) <= set(above)


def test_every_module_has_its_place() -> None:
    """A file that is not in the list would escape the rule."""
    files = [p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py")]
    modules = {str(p.relative_to(ROOT).with_suffix("")).replace("/", ".") for p in files}
    assert {m for m in modules if not m.endswith("__init__")} == set(LAYERS)


def test_storage_is_bytes_in_bytes_out() -> None:
    """No torch where durability is decided."""
    for path in (ROOT / "server" / "storage").rglob("*.py"):
        assert "torch" not in path.read_text().replace("no torch", "")
