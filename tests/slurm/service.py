"""A Slurm of one machine: its configuration, its daemons, and how to ask it."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("slurm-wlm", "munge")
# More than a test may ask of them at once; the machine may have fewer.
CPUS = 4

# cred_expire is also how long a job waits that is put back into the queue.
CONFIGURATION = """
ClusterName=dmf
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=15
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=0
KillWait=5
SchedulerParameters=batch_sched_delay=0,sched_interval=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=65536 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes={host} PriorityTier=10 PreemptMode=OFF
"""


def install() -> None:
    """Install Slurm from Debian's packages, unless it's there."""
    if all(map(shutil.which, ("munged", "slurmctld", "slurmd", "sbatch"))):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        msg = "there is no Slurm; install slurm-wlm and munge, or run this as root"
        raise RuntimeError(msg)
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends"]
    for command in (["apt-get", "update", "-qq"], [*install, *PACKAGES]):
        subprocess.run(command, check=True, env=quiet, capture_output=True)


@dataclass(frozen=True)
class Slurm:
    """A Slurm that runs: what its commands need, and what they say.

    Parameters
    ----------
    folder : Path
        With its configuration and the logs of its daemons.
    """

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def __call__(self, *command: str) -> str:
        """Return what a command prints."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout.strip()

    def submit(self, *arguments: str) -> str:
        """Return the id of a job."""
        return self("sbatch", "--parsable", *arguments)

    def running(self, name: str) -> list[str]:
        """Return the ids of the jobs of a name that run, the oldest first."""
        asked = ("--noheader", "--states=RUNNING", f"--name={name}", "--format=%A")
        return sorted(self("squeue", *asked).split(), key=int)

    def until(self, holds: Callable[[], object], what: str, seconds: int = 120) -> None:
        """Wait for something that happens in the queue."""
        try:
            until(holds, what, seconds)
        except AssertionError as error:
            error.add_note(self("squeue", "--long"))
            raise

    def state(self, job: str) -> str:
        told = self("scontrol", "--oneliner", "show", "job", job)
        words = dict(word.split("=", 1) for word in told.split() if "=" in word)
        return words["JobState"]


@contextmanager
def started(folder: Path) -> Iterator[Slurm]:
    """Start the daemons of a Slurm, and end them afterwards."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    host = socket.gethostname().split(".")[0]
    with free_ports() as (controller, node):
        told = CONFIGURATION.format(
            host=host, controller=controller, node=node, folder=folder, cpus=CPUS
        )
    (folder / "slurm.conf").write_text(told)
    slurm = Slurm(folder)
    munged = ["munged", "--foreground", "--force", f"--key-file={key}"]
    for name in ("socket", "pid", "log", "seed"):
        option = {"pid": "pid-file", "log": "log-file", "seed": "seed-file"}
        munged.append(f"--{option.get(name, name)}={folder}/munge.{name}")
    with ExitStack() as stack:
        for command in (munged, ["slurmctld", "-D"], ["slurmd", "-D", "-N", host]):
            stack.enter_context(daemon(command, slurm))
            if command is munged:
                until(lambda: (folder / "munge.socket").exists(), "munged listens")
        until(lambda: "idle" in slurm("sinfo", "-h", "-o", "%T"), "the node is there")
        yield slurm
        slurm("scancel", "--user=root")
        until(lambda: not slurm("squeue", "--noheader"), "the queue is empty")


@contextmanager
def daemon(command: list[str], slurm: Slurm) -> Iterator[None]:
    with (
        open(slurm.folder / f"{command[0]}.out", "w") as out,
        subprocess.Popen(
            command, env=slurm.environment, stdout=out, stderr=out
        ) as process,
    ):
        try:
            yield
        finally:
            process.terminate()


@contextmanager
def free_ports() -> Iterator[tuple[int, int]]:
    with socket.socket() as one, socket.socket() as other:
        for end in (one, other):
            end.bind(("127.0.0.1", 0))
        yield one.getsockname()[1], other.getsockname()[1]


def until(holds: Callable[[], object], what: str, seconds: float = 120) -> None:
    """Wait for something that only asking again tells."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"waited {seconds:g} s for this: {what}"
        time.sleep(0.2)
