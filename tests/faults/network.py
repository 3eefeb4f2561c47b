"""A network that can be cut between two workers, and nowhere else.

Each worker has a network namespace of its own, with a cable to that of the scheduler
and the client, which passes on what the workers say to each other until it is told not
to: packets then vanish, as they do when a switch fails. That takes the time of TCP; in
short, and where namespaces aren't allowed, workers refuse to speak to each other.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from tests.faults.state import WORKERS, Shared

NEW_NETWORK = 0x40000000  # CLONE_NEWNET; Python has os.unshare from 3.12
FORWARDING = "/proc/sys/net/ipv4/ip_forward"
REFUSALS = 4
HUB = "10.213.{}.1"
WORKER = "10.213.{}.2"


@cache
def allowed() -> bool:
    """Return whether this process may have networks of its own."""
    if not all(map(shutil.which, ("ip", "nsenter", "unshare"))):
        return False
    tried = ["unshare", "--net", "sh", "-c", f"echo 1 > {FORWARDING} && ip link"]
    return subprocess.run(tried, capture_output=True).returncode == 0


def own(shared: Shared) -> bool:
    """Return whether the processes of a case have networks of their own."""
    case = shared.case
    return case.fault == "network cut" and not case.short and allowed()


def enter(shared: Shared, role: str) -> str:
    """Let this process have its place in the network; return its address there.

    It must not have threads yet: they would stay where they are.
    """
    if not own(shared):
        return "127.0.0.1"
    if role == "client":
        with open(f"/proc/{_hub(shared)}/ns/net") as network:
            _call("setns", network.fileno(), NEW_NETWORK)
        return HUB.format(0)
    _call("unshare", NEW_NETWORK)
    _run("ip link set lo up")
    if role == "scheduler":
        # Both workers reach this address by their cables.
        _run(f"ip address add {HUB.format(0)}/32 dev lo")
        _forward(True)
        return HUB.format(0)
    k, hub = WORKERS.index(role) + 1, _hub(shared)
    here, there = WORKER.format(k), HUB.format(k)
    _run(f"ip link add cable type veth peer name {role} netns {hub}")
    _run(f"ip address add {here}/30 dev cable")
    _run("ip link set cable up")
    _run(f"nsenter --target {hub} --net ip address add {there}/30 dev {role}")
    _run(f"nsenter --target {hub} --net ip link set {role} up")
    _run(f"ip route add default via {there}")
    return here


def cut(shared: Shared) -> None:
    """Cut the network between the workers."""
    if own(shared):
        _forward(False)
    else:
        for role in WORKERS:
            shared.signal(role, signal.SIGUSR2)


def join(shared: Shared) -> None:
    """Mend what `cut` has done; refusals end by themselves."""
    if own(shared):
        _forward(True)


def refuse_others(worker: Any) -> None:
    """Let a worker lose its connections to others, and fail to make so many."""
    connect = worker.rpc.connect
    kept, left = worker.scheduler.address, REFUSALS

    async def refuses(address: str, *arguments: Any, **options: Any) -> Any:
        nonlocal left
        if address != kept and left > 0:
            left -= 1
            msg = f"the network to {address} is cut"
            raise OSError(msg)
        return await connect(address, *arguments, **options)

    worker.rpc.connect = refuses
    for address in {*worker.rpc.available, *worker.rpc.occupied} - {kept}:
        worker.rpc.remove(address)


def _hub(shared: Shared) -> int:
    return int((shared.folder / "scheduler.pid").read_text())


def _forward(on: bool) -> None:
    """Let the network of this process pass on packets of others, or not."""
    Path(FORWARDING).write_text(str(int(on)))


def _call(name: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True)
