"""Runs a study's jobs: one after the other in this process, or several at once, a process each."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grrcoca_cli.commands.ablate_runs import Job, run_job
from grrcoca_cli.console import say
from grrcoca_cli.errors import ExitCode, GrrcocaError, StoppedAndSaved
from grrcoca_cli.signals import StopRequest

LOG = "log.txt"
_POLL = 0.2  # seconds


class WorkerFailed(GrrcocaError):
    """A run in a process of its own ended with an error; its exit code is the study's."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        known = {int(each) for each in ExitCode} - {int(ExitCode.OK)}
        self.exit_code = ExitCode(code) if code in known else ExitCode.OUT_OF_RESOURCES


def run_jobs(jobs: Sequence[Job], at_once: int, devices: Sequence[str]) -> None:
    """Run what is not done.

    Args:
        jobs: In the order to run them.
        at_once: Above 1, every run has a process of its own, on a CPU with a single thread.
        devices: Shared out in turn.

    Raises:
        StoppedAndSaved: A signal came; everything is saved, and the same call goes on.
        WorkerFailed: A run failed; those beside it were stopped and saved.
    """
    waiting = [job for job in jobs if not job.is_done()]
    if len(waiting) < len(jobs):
        say(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are done already")
    with StopRequest() as should_stop:
        if at_once > 1:
            _side_by_side(waiting, at_once, devices, should_stop)
            return
        for number, job in enumerate(waiting, start=1):
            say(f"run {number}/{len(waiting)}: {job.label}")
            run_job(job, devices[0])
            if should_stop():
                raise _stopped()


def _stopped() -> StoppedAndSaved:
    return StoppedAndSaved("stopped, everything is saved: run the same command to go on")


@dataclass(frozen=True)
class _Worker:
    job: Job
    process: "subprocess.Popen[bytes]"
    device: str


def _side_by_side(waiting: Sequence[Job], at_once: int, devices: Sequence[str], should_stop: StopRequest) -> None:
    queue, running = list(waiting), list[_Worker]()
    failed: _Worker | None = None
    try:
        while running or (queue and failed is None and not should_stop()):
            while queue and len(running) < at_once and failed is None and not should_stop():
                job = queue.pop(0)
                say(f"run {len(waiting) - len(queue)}/{len(waiting)}: {job.label}, see {job.folder / LOG}")
                busy = [worker.device for worker in running]
                device = min(devices, key=busy.count)
                running.append(_Worker(job, _start(job, device), device))
            time.sleep(_POLL)
            ended = [worker for worker in running if worker.process.poll() is not None]
            running = [worker for worker in running if worker not in ended]
            failed = failed or next((worker for worker in ended if worker.process.returncode), None)
            if failed is not None or should_stop():
                _terminate(running)
    finally:
        _terminate(running)
        for worker in running:
            worker.process.wait()
    if should_stop():
        raise _stopped()
    if failed is not None:
        code = failed.process.returncode
        raise WorkerFailed(
            f"{failed.job.label} ended with exit code {code}: {_last_line(failed.job.folder / LOG)}", code
        )


def _start(job: Job, device: str) -> "subprocess.Popen[bytes]":
    threads = {} if device.startswith(("cuda", "mps")) else {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "grrcoca_cli.commands.ablate_runs", str(job.write()), device]
    with (job.folder / LOG).open("ab") as log:
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | threads)


def _terminate(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.send_signal(signal.SIGTERM)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else "it said nothing"
