"""Runs a case: the job it disturbs, the one that goes on from it, and the judgement."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import scipy.sparse as sp

import dmf
from dmf.io.checkpoints import CheckpointStore
from dmf.jobs.exits import Exit
from tests.faults import processes
from tests.faults.state import PHASES, ROLES, WORKERS, Case, Shared
from tests.jobs import job_file
from tests.problems import low_rank

EVERY = 3  # rounds between two checkpoints
ROUNDS = 13
# How many times the transitions of an undisturbed run a disturbed one may take.
BOUND = 20
SECONDS = 90  # without a sign of life, after which a process counts as hanging
OUTPUTS = ("filled.npy", "model.zarr")

# Which phases each fault strikes in.
FAULTS = {
    "worker killed": PHASES,
    "worker frozen": PHASES,
    "worker out of memory": PHASES,
    "slow worker": PHASES[:-1],
    "scheduler killed": PHASES,
    "client killed": PHASES,
    "network cut": PHASES[:-1],
    "store errors": PHASES[:-1],
    "slow store": PHASES[:-1],
    "partial writes": PHASES[1:-1],
    "full disk": PHASES,
    "clock jump": PHASES,
}
# How a run may end that a fault has met, besides being done. A store that fails when X
# has been read costs rounds, and no more.
ENDS = {
    "client killed": {-signal.SIGKILL},
    "scheduler killed": {Exit.CLUSTER_LOST},
    "store errors": {Exit.BAD_INPUT, Exit.BAD_CONFIGURATION},
}


def may_end(case: Case, code: int) -> bool:
    """Return whether a run that a case has struck may end with a code but 0."""
    if case.fault == "store errors" and case.phase != "load":
        return False
    return code in ENDS.get(case.fault, set())


# Where X and checkpoints are in a store that fails.
STORED = ("store errors", "slow store", "partial writes", "full disk")

forked: Any = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(["tests.faults.warm"])


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes
    ----------
    ended : str
        "finished", or the exit code with which a run has stopped.
    lost : int
        Settled rounds that ran again.
    wrong : tuple of str
        What wasn't as it should be; nothing, if all was well.
    """

    case: Case
    ended: str
    lost: int
    wrong: tuple[str, ...]


def draw(seed: int, short: bool) -> Case:
    """Return the case of a seed, still without the event at which it strikes."""
    # All faults by turns, each in all of its phases by turns.
    cycle, k = divmod(seed, len(FAULTS))
    fault, phases = list(FAULTS.items())[k]
    phase = phases[(cycle + k) % len(phases)]
    rng = random.Random(seed)
    # What is in memory is read before the first task.
    form = "zarr" if fault in STORED else rng.choice(["npz", "zarr"])
    chance = rng.randrange(1000)
    return Case(
        seed, fault, phase, form, 0, rng.randrange(2), chance=chance, short=short
    )


class Stage:
    """A folder with what all cases need, made once: versions of X and of outputs.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        problem = low_rank(60, 40, noise=0.3)
        for name, rows in (("old", 50), ("new", 60)):
            X = problem.nan[:rows]
            stored = problem.mask[:rows]
            place = folder / name
            place.mkdir(parents=True)
            sparse = sp.csr_array((X[stored], np.nonzero(stored)), shape=X.shape)
            sp.save_npz(place / "X.npz", sparse)
            da.from_array(X, chunks=(30, 20)).to_zarr(str(place / "X.zarr"))
        self._calm: dict[str, tuple[dict[str, bytes], dict[str, int]]] = {}

    def calm(self, form: str) -> tuple[dict[str, bytes], dict[str, int]]:
        """Return the outputs and the counts of a run that nothing disturbs."""
        if form not in self._calm:
            case = Case(-1, "nothing", "round", form)
            shared = self.prepare(self.folder / f"calm-{form}", case)
            code = run(shared)
            assert code == 0, (shared.folder / "client.log").read_text()
            counts = {name: shared[name] for name in (*PHASES, "transitions")}
            self._calm[form] = read_outputs(shared.folder), counts
        return self._calm[form]

    @cache  # noqa: B019 - as long as the stage
    def old(self, form: str) -> Path:
        """Return a folder with the outputs of a former run."""
        case = Case(-1, "nothing", "round", form)
        shared = Shared.create(self.folder / f"old-{form}", case)
        shutil.copytree(self.folder / "old", shared.folder, dirs_exist_ok=True)
        write_job(shared, cluster={"kind": "threads"})
        with process(processes.run_client, shared.folder) as client:
            client.join(SECONDS)
            assert client.exitcode == 0, (shared.folder / "client.log").read_text()
        return shared.folder

    def prepare(self, folder: Path, case: Case) -> Shared:
        """Return the folder of a case: a new X, beside outputs of the old one."""
        shared = Shared.create(folder, case)
        shutil.copytree(self.folder / "new", folder, dirs_exist_ok=True)
        for name in OUTPUTS:
            place = self.old(case.form) / name
            copy = shutil.copytree if place.is_dir() else shutil.copy2
            copy(place, folder / name)
        return shared


def write_job(shared: Shared, **sections: Any) -> None:
    folder, case = shared.folder, shared.case
    prefix = f"faulty://{folder}/" if case.fault in STORED else ""
    sections = {
        "job": {"mode": "full"},
        "input": {"path": f"{prefix}X.{case.form}"},
        "output": {"matrix": "filled.npy", "mask": None},
        "model": {"validation": None},
        "solver": {"tol": 0, "max_rounds": ROUNDS},
        "checkpoint": {"every": EVERY, "path": f"{prefix}saved"},
        "log": {"level": "debug", "format": "json"},
        **sections,
    }
    job_file(folder, **sections)


@contextmanager
def process(target: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """A process that is gone afterwards."""
    running = forked.Process(target=target, args=arguments)
    running.start()
    try:
        yield running
    finally:
        running.kill()
        running.join()


def run(shared: Shared) -> int | None:
    """Run the job of a case on a cluster of its own.

    Returns
    -------
    int or None
        Its exit code; minus the number of a signal, if one has ended it; None if it
        hangs.
    """
    folder = shared.folder
    with ExitStack() as stack:
        said, says = (stack.enter_context(end) for end in forked.Pipe(duplex=False))
        stack.enter_context(process(processes.run_scheduler, folder, says))
        address = heard(said, shared, "scheduler")
        for role in WORKERS:
            running = process(processes.run_worker, folder, role, address)
            stack.enter_context(running)
            stack.callback(shared.kill, role)
        heard(said, shared, *WORKERS)
        write_job(shared, cluster={"kind": "scheduler", "address": address})
        client = stack.enter_context(process(processes.run_client, folder))
        done = -1
        # However slow the machine is: something must have happened meanwhile.
        while client.exitcode is None and shared.progress() != done:
            done = shared.progress()
            client.join(SECONDS)
        if client.exitcode is None:
            for role in ROLES:  # for the trace of a hang
                shared.signal(role, signal.SIGUSR1)
            client.join(1)
        code: int | None = client.exitcode
        return code


def heard(end: Any, shared: Shared, *roles: str) -> Any:
    """Return what a scheduler says: its address, and then that it has both workers."""
    if end.poll(SECONDS):
        return end.recv()
    logs = [(shared.folder / f"{role}.log").read_text() for role in roles]
    msg = f"{' and '.join(roles)} never came: {logs}"
    raise RuntimeError(msg)


def read_outputs(folder: Path) -> dict[str, bytes]:
    """Return what all readers see of a job's outputs."""
    fit = dmf.load(folder / "model.zarr")
    W, H = np.asarray(fit.W), np.asarray(fit.H)
    return {
        "filled.npy": np.load(folder / "filled.npy").tobytes(),
        "model.zarr": W.tobytes() + H.tobytes(),
    }


def play(stage: Stage, case: Case, folder: Path) -> Outcome:
    """Run a case to its end, and judge it."""
    new, counts = stage.calm(case.form)
    old = read_outputs(stage.old(case.form))
    assert all(old[name] != new[name] for name in OUTPUTS)
    rng = random.Random(case.seed)
    event = rng.randint(1, counts[case.phase])
    case = replace(case, event=event, bound=BOUND * counts["transitions"])
    shared = stage.prepare(folder, case)
    code, wrong = run(shared), []
    lost, ended = shared["lost"], "finished"
    if not shared["fired"]:
        wrong.append("the fault never struck")
    if code is None or shared["bound"]:
        return Outcome(case, "hangs", lost, ("it hangs",))
    if code != 0:
        ended = f"stopped ({Exit(code).name.lower()})" if code > 0 else "killed"
        if not may_end(case, code):
            wrong.append(f"it ended with {code}: {last_line(shared)}")
        wrong += look_at_what_is_left(shared, old, new)
        reached = last_round(shared)
        again = Shared.create(folder, replace(case, fault="nothing"))
        shared.case = again.case
        if run(again) != 0:
            wrong.append(f"the next run failed: {last_line(shared)}")
        ended += ", then finished"
        lost = max(lost, reached - first_round(shared) + 1)
    # Where nothing could be saved, there is nothing to go on from.
    if lost > EVERY and case.fault not in STORED:
        wrong.append(f"{lost} rounds were lost")
    if read_outputs(folder) != new:
        wrong.append("the outputs aren't those of the undisturbed run")
    wrong += [f"{name} is left" for name in left_overs(folder)]
    return Outcome(case, ended, lost, tuple(wrong))


# ---------------------------------------------------------------------------- judgement


def look_at_what_is_left(
    shared: Shared, old: dict[str, bytes], new: dict[str, bytes]
) -> list[str]:
    """Return what is wrong after a run that has stopped, before the next one."""
    wrong, found = [], read_outputs(shared.folder)
    for name in OUTPUTS:
        known = {old[name]}
        if shared.case.phase == "publish":
            known.add(new[name])
        if found[name] not in known:
            wrong.append(f"{name} isn't what it was")
    store = CheckpointStore.at(shared.folder / "saved")
    for version in store.versions()[:1]:
        _, receipts = store.manifest(version)
        for receipt in receipts:
            store.read(version, receipt)
    return wrong


def left_overs(folder: Path) -> list[str]:
    """Return what a finished run should have removed."""
    kept = (".part", ".publishing")
    names = [path.name for path in folder.iterdir() if path.name.endswith(kept)]
    return names + [path.name for path in folder.glob("saved") if any(path.iterdir())]


def _log(shared: Shared) -> list[dict[str, Any]]:
    """Return the log of the last run; warnings of Dask are between its lines."""
    lines = (shared.folder / "client.log").read_text().splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    starts = [k for k, one in enumerate(events) if one["event"] == "started"]
    return events[starts[-1] :] if starts else []


def _rounds(shared: Shared) -> list[int]:
    return [one["round"] for one in _log(shared) if one["event"] == "round"]


def last_round(shared: Shared) -> int:
    return max(_rounds(shared), default=0)


def first_round(shared: Shared) -> int:
    """Return the first round of the last run; the one after all, if it ran none."""
    return min(_rounds(shared), default=ROUNDS + 1)


def last_line(shared: Shared) -> str:
    events = _log(shared)
    return str(events[-1]["event"]) if events else "nothing was logged"
