"""Retraining: a job in a child process, a verdict, and a successor that takes over or does not."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from organism.genome import Genome, new_genome, save
from server.engine import Engine
from server.errors import Problem
from server.metrics import Metrics
from server.retrain import Retrainer
from server.settings import load_settings
from server.wire import Job, RetrainRequest
from tests.conftest import small_config
from tests.server.conftest import Daemon, small_genome


def wait_for(daemon: Daemon, job_id: str, step: int | None = None) -> dict[str, Any]:
    """The job once it has ended, or has come to a step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        job: dict[str, Any] = daemon.client.get(f"/jobs/{job_id}").json()
        if job["status"] != "running" or (step is not None and job["step"] >= step):
            return job
    raise AssertionError("the job did not end within 120 s")


def test_a_successor_is_trained_beside_the_learning(tmp_path: Path, genome_path: Path) -> None:
    """202 and a job with progress; the child is nice; learning goes on; the verdict is acted on."""
    with Daemon(tmp_path / "state", genome_path) as daemon:
        before = daemon.status()
        accepted = daemon.client.post("/retrain", content=b'{"outer_steps": 12, "seed": 2}')
        assert accepted.status_code == 202
        job_id = accepted.json()["id"]
        running = wait_for(daemon, job_id, step=1)
        assert running["status"] == "running"
        assert running["loss"] > 0
        assert [c.nice() for c in psutil.Process(daemon.process.pid).children()] == [19]
        assert daemon.client.post("/retrain").status_code == 409
        assert daemon.ingest(b"learning goes on\n").json()["chunks"] == 1
        job = wait_for(daemon, job_id)
        assert job["status"] == "succeeded", job
        assert job["step"] == job["outer_steps"] == 12
        assert job["promoted"] == (job["candidate_score"] >= job["running_score"])
        after = daemon.status()
        metrics = daemon.client.get("/metrics").text
    assert after["genome_generation"] == int(job["promoted"])
    expected = job["genome_sha256"] if job["promoted"] else before["genome_sha256"]
    assert after["genome_sha256"] == expected
    result = "promoted" if job["promoted"] else "rejected"
    assert f'organism_genome_swaps_total{{result="{result}"}} 1.0' in metrics
    assert "organism_retrain_in_progress 0.0" in metrics


def test_a_stop_ends_the_child(tmp_path: Path, genome_path: Path) -> None:
    """A daemon that is asked to stop does not wait for a training, and leaves none behind."""
    with Daemon(tmp_path / "state", genome_path) as daemon:
        job = daemon.client.post("/retrain", content=b'{"outer_steps": 10000}').json()
        wait_for(daemon, job["id"], step=1)
        children = psutil.Process(daemon.process.pid).children()
        daemon.stop()
        assert len(children) == 1
        assert not children[0].is_running()


def judged(tmp_path: Path, running_score: float, candidate_score: float, body: Genome) -> Job:
    """A job whose child is replaced by a given successor and given scores."""

    class Judge(Retrainer):
        async def _train(
            self, job_id: str, request: RetrainRequest, running: Path, candidate: Path
        ) -> dict[str, Any]:
            save(body, candidate)
            return {
                "initial_held_out_score": running_score,
                "held_out_score": candidate_score,
            }

    async def run() -> Job:
        metrics = Metrics()
        engine = Engine(load_settings({"ORGANISM_STATE_DIR": str(tmp_path)}), metrics, small_genome)
        engine.start().result(timeout=60)
        try:
            retrainer = Judge(engine, metrics)
            job = retrainer.start(RetrainRequest())
            async with asyncio.timeout(60):
                while retrainer.job(job.id).status == "running":
                    await asyncio.sleep(0.01)
            job = retrainer.job(job.id)
            generation = engine.life.generation
            assert generation == int(bool(job.promoted))
            return job
        finally:
            engine.stop()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("running_score", "candidate_score", "promoted"),
    [(0.8, 0.9, True), (0.8, 0.8, True), (0.8, 0.79, False), (0.8, float("nan"), False)],
)
def test_a_successor_takes_over_when_it_is_no_worse(
    running_score: float, candidate_score: float, promoted: bool, tmp_path: Path
) -> None:
    """Equal is good enough; worse, or not a number, is not."""
    job = judged(tmp_path, running_score, candidate_score, new_genome(small_config(), 9))
    assert (job.status, job.promoted) == ("succeeded", promoted)


def test_a_successor_that_does_not_fit_fails_the_job(tmp_path: Path) -> None:
    """The running genome stays, the job says why."""
    job = judged(tmp_path, 0.5, 0.9, new_genome(small_config(d_hidden=16), 9))
    assert (job.status, job.promoted) == ("failed", None)
    assert "train it from the running genome" in str(job.error)


def test_a_child_that_fails_says_why(tmp_path: Path) -> None:
    """Its last words are the job's error."""
    broken = new_genome(small_config(calibration=True), 1)

    async def run() -> Job:
        metrics = Metrics()
        engine = Engine(
            load_settings({"ORGANISM_STATE_DIR": str(tmp_path)}), metrics, lambda: broken
        )
        engine.start().result(timeout=60)
        try:
            retrainer = Retrainer(engine, metrics)
            # A request that no client can make: the child refuses it.
            job = retrainer.start(RetrainRequest.model_construct(outer_steps=-1, seed=0, threads=1))
            async with asyncio.timeout(60):
                while retrainer.job(job.id).status == "running":
                    await asyncio.sleep(0.01)
            return retrainer.job(job.id)
        finally:
            engine.stop()

    job = asyncio.run(run())
    assert job.status == "failed"
    assert "--outer-steps" in str(job.error)


def test_an_unknown_job_is_a_problem(tmp_path: Path) -> None:
    """404, with the id."""
    engine = Engine(load_settings({"ORGANISM_STATE_DIR": str(tmp_path)}), Metrics(), small_genome)
    with pytest.raises(Problem, match="no job 'none'"):
        Retrainer(engine, Metrics()).job("none")
