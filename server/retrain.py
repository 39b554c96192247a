"""Retraining: a successor is trained in a low-priority child, judged, and may take over.

Owns the jobs and their child process. Training itself is ``python -m organism.meta_train``:
starting from the running genome, on fresh synthetic streams, judged on held-out ones beside the
running genome.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import tempfile
import uuid
from collections import OrderedDict
from pathlib import Path
from typing import Any

from organism.genome import load, save
from server.engine import Engine
from server.errors import Problem
from server.metrics import Metrics
from server.wire import Job, RetrainRequest

_NICENESS = 19
_KEPT_JOBS = 32
_TAIL_LINES = 20

_log = logging.getLogger("organism.retrain")


class Retrainer:
    """Runs one job at a time beside the engine."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._task: asyncio.Task[None] | None = None

    def start(self, request: RetrainRequest) -> Job:
        """Begin a job.

        Raises:
            Problem: 409 while another runs.
        """
        if self._task and not self._task.done():
            running = next(reversed(self._jobs))
            raise Problem(
                409,
                "retrain-running",
                "Retraining already runs",
                f"wait for job {running} to end",
                job=running,
            )
        job = Job(id=uuid.uuid4().hex, outer_steps=request.outer_steps)
        self._jobs[job.id] = job
        while len(self._jobs) > _KEPT_JOBS:
            self._jobs.popitem(last=False)
        self._task = asyncio.create_task(self._run(job.id, request))
        return job

    @property
    def last(self) -> Job | None:
        """The job under way, or else the last one that was."""
        return next(reversed(self._jobs.values()), None)

    def job(self, job_id: str) -> Job:
        """Look a job up.

        Raises:
            Problem: 404 where there is none of that id.
        """
        if job_id not in self._jobs:
            raise Problem(
                404,
                "no-such-job",
                "No such job",
                f"no job {job_id!r}; the last {_KEPT_JOBS} are kept",
            )
        return self._jobs[job_id]

    async def stop(self) -> None:
        """End the job under way, and its child."""
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def _note(self, job_id: str, **changes: Any) -> None:
        self._jobs[job_id] = self._jobs[job_id].model_copy(update=changes)

    async def _run(self, job_id: str, request: RetrainRequest) -> None:
        self._metrics.retrain_in_progress.set(1)
        result = "failed"
        try:
            with tempfile.TemporaryDirectory(prefix="organism-retrain-") as folder:
                result = await self._retrain(job_id, request, Path(folder))
        except asyncio.CancelledError:
            self._note(job_id, status="failed", error="the daemon stopped")
            raise
        except Exception as error:  # the job's edge: whatever went wrong is the job's outcome
            _log.exception("retraining %s failed", job_id)
            self._note(job_id, status="failed", error=str(error) or type(error).__name__)
        finally:
            self._metrics.retrain_in_progress.set(0)
            self._metrics.genome_swaps.labels(result).inc()

    async def _retrain(self, job_id: str, request: RetrainRequest, folder: Path) -> str:
        running, candidate = folder / "running.genome", folder / "candidate.genome"
        await asyncio.to_thread(save, self._engine.life.genome, running)
        verdict = await self._train(job_id, request, running, candidate)
        scores = verdict["initial_held_out_score"], verdict["held_out_score"]
        if None in scores:
            raise RuntimeError(
                f"a held-out score is not a number: {scores}; the running genome stays"
            )
        successor = await asyncio.to_thread(load, candidate)
        promoted = scores[1] >= scores[0]
        if promoted:
            await asyncio.wrap_future(self._engine.swap(successor))
        _log.info(
            "retraining %s: held-out %.4f against %.4f, promoted: %s",
            job_id,
            scores[1],
            scores[0],
            promoted,
        )
        self._note(
            job_id,
            status="succeeded",
            running_score=scores[0],
            candidate_score=scores[1],
            promoted=promoted,
            genome_sha256=successor.sha256,
        )
        return "promoted" if promoted else "rejected"

    async def _train(
        self, job_id: str, request: RetrainRequest, running: Path, candidate: Path
    ) -> dict[str, Any]:
        """Run the child to its end; its progress goes to the job, its last line is the verdict."""
        options = {
            "preset": "daemon",
            "progress": "json",
            "outer-steps": request.outer_steps,
            "seed": request.seed,
            "threads": request.threads,
            "initial-genome": running,
            "out": candidate,
        }
        command = [sys.executable, "-m", "organism.meta_train", "--json"]
        child = await asyncio.create_subprocess_exec(
            *command,
            *(f"--{name}={value}" for name, value in options.items()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            os.setpriority(os.PRIO_PROCESS, child.pid, _NICENESS)
            assert child.stdout is not None
            output, tail = await asyncio.gather(child.stdout.read(), self._follow(job_id, child))
            if await child.wait():
                raise RuntimeError(
                    f"meta-training ended with status {child.returncode}: {' '.join(tail)}"
                )
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        verdict: dict[str, Any] = json.loads(output.splitlines()[-1])
        return verdict

    async def _follow(self, job_id: str, child: asyncio.subprocess.Process) -> list[str]:
        """Read progress lines; return the last of what else the child said."""
        tail: list[str] = []
        assert child.stderr is not None
        async for raw in child.stderr:
            line = raw.decode(errors="replace").strip()
            if line.startswith('{"step"'):
                progress = json.loads(line)
                self._note(
                    job_id, step=progress["step"], loss=progress["loss"], auroc=progress["auroc"]
                )
            else:
                tail = [*tail, line][-_TAIL_LINES:]
        return tail
