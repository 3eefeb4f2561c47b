"""The processes of a case: a scheduler, two workers, and a client that runs a job."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
from distributed import Nanny, Scheduler, Worker
from distributed.diagnostics.plugin import SchedulerPlugin

from tests.faults import clock, network, store
from tests.faults.state import TASKS, WORKERS, Shared
from tests.faults.strike import Striker, hog

# Of both workers together; a forked one begins with a fourth of it.
MEMORY = 900 * 2**20
CONFIG = {
    "distributed.comm.timeouts.connect": "10s",
    # After so long without an answer a connection counts as lost: the least there is.
    "distributed.comm.timeouts.tcp": "11s",
}


def _enter(folder: Path, role: str) -> Shared:
    """Begin to play a role in a case."""
    shared = Shared(folder)
    _log_to(folder / f"{role}.log")
    shared.enter(role)
    clock.follow(lambda: float(shared[f"jump-{role}"]))
    store.attend(shared)
    if shared.case.fault == "network cut":
        dask.config.set(CONFIG)
    if shared.case.fault == "worker frozen" and shared.case.short:
        dask.config.set({"distributed.scheduler.worker-ttl": "2s"})
    return shared


def _log_to(path: Path) -> None:
    """Send all that this process says to a file; on SIGUSR1, where its threads are."""
    log = open(path, "a", buffering=1)  # noqa: SIM115 - to the end
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    sys.stdout = sys.stderr = log
    faulthandler.register(signal.SIGUSR1, file=log, all_threads=True)


# ---------------------------------------------------------------------------- scheduler


class Watch(SchedulerPlugin):  # type: ignore[misc]
    """Counts what tasks do, and lets the fault strike when its moment has come."""

    name = "faults"

    def __init__(self, shared: Shared, scheduler: Scheduler, says: Any) -> None:
        self.shared, self.says = shared, says
        self.striker = Striker(shared, scheduler)

    def transition(
        self, key: Any, start: str, finish: str, *arguments: Any, **options: Any
    ) -> None:
        shared = self.shared
        if shared.add("transitions") > shared.case.bound:
            shared["bound"] = 1
            shared.kill("client")
            return
        name = str(key[0] if isinstance(key, tuple) else key)
        if finish == "memory" and name.startswith(("update-H", "update-W")):
            shared.add("updates")
        self.striker.slow_down(finish)
        if finish not in ("processing", "memory"):
            return
        for phase, names in TASKS.items():
            if name.startswith(names):
                self.striker.meet(phase)

    def add_worker(self, scheduler: Any, worker: str) -> None:
        if len(scheduler.workers) == len(WORKERS) and self.says is not None:
            self.says.send("complete")
            self.says = None

    def remove_worker(self, scheduler: Any, worker: str, **options: Any) -> None:
        # One that was frozen, and is given up, goes on.
        self.striker.thaw()


def run_scheduler(folder: Path, says: Any) -> None:
    """Run a scheduler that says where it listens, and when it has both workers."""
    shared = _enter(folder, "scheduler")
    host = network.enter(shared, "scheduler")
    asyncio.run(_schedule(shared, host, says))


async def _schedule(shared: Shared, host: str, says: Any) -> None:
    async with Scheduler(host=host, port=0, dashboard=False) as scheduler:
        scheduler.add_plugin(Watch(shared, scheduler, says))
        says.send(scheduler.address)
        await scheduler.finished()


# ------------------------------------------------------------------------------ workers


def run_worker(folder: Path, role: str, address: str) -> None:
    """Run a nanny with a worker; where the network shall be cut, a worker alone.

    That one has a network of its own, which nannies' children wouldn't have.
    """
    shared = Shared(folder)
    own = network.own(shared)
    if own:
        shared = _enter(folder, role)
    else:
        _log_to(folder / f"{role}.log")
    host = network.enter(shared, role)
    asyncio.run(_work(address, shared, role, host, own))


async def _work(address: str, shared: Shared, role: str, host: str, own: bool) -> None:
    options: dict[str, Any] = {
        "name": role,
        "nthreads": 1,
        "host": host,
        "memory_limit": MEMORY,
        "local_directory": str(shared.folder),
    }
    if own:
        async with Worker(address, **options) as worker:
            await worker.finished()
        return
    async with Nanny(
        address,
        preload=[__name__],
        env={"DMF_FAULTS": str(shared.folder)},
        **options,
    ) as nanny:
        await nanny.finished()


def dask_setup(worker: Worker) -> None:
    """Prepare a worker that a nanny has started: Dask calls this."""
    shared = _enter(Path(os.environ["DMF_FAULTS"]), worker.name)
    if shared.case.fault == "network cut":
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR2, network.refuse_others, worker)
    else:
        signal.signal(signal.SIGUSR2, lambda *_: hog(MEMORY))
    shared.report(worker=worker.name, pid=os.getpid())


# ------------------------------------------------------------------------------- client


def run_client(folder: Path) -> None:
    """Run the job of a case, as `dmf run` does, in a process that may be killed."""
    from dmf import cli
    from dmf.engine.loop import Loop
    from dmf.jobs import publish, steps

    shared = _enter(folder, "client")
    network.enter(shared, "client")
    striker = Striker(shared)

    def event(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            striker.meet("publish")
            result = function(*arguments, **options)
            striker.meet("publish")
            return result

        return call

    for name in ("exchange", "write_json", "remove"):
        setattr(publish, name, event(getattr(publish, name)))
    for name in ("beside", "name_run"):
        setattr(steps, name, event(getattr(steps, name)))

    begin = Loop._begin

    def begun(self: Any) -> Any:
        """Note how many settled rounds run again after a loss."""
        reached = max(len(records) for records in self._records)
        state = begin(self)
        if self._losses:
            shared.add("restarts")
            shared["lost"] = max(shared["lost"], reached - state.round)
        return state

    Loop._begin = begun  # type: ignore[method-assign]
    cli.main(["run", str(folder / "job.toml")])
