"""How each fault strikes, once its moment has come, and by whose hand."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import psutil

from tests.faults import network
from tests.faults.state import ROLES, WORKERS, Shared

FROZEN_SECONDS = 30
# Longer than it takes to notice that nobody answers.
CUT_SECONDS = 20
# A day back would hold up what Dask sends for a day: it goes by the wall clock.
JUMPS = (86_400, -2)
SLOW_SECONDS = 0.03
_hoard: list[bytearray] = []


class Striker:
    """Counts the events of phases, and strikes at the one that a case names.

    Parameters
    ----------
    shared : Shared
    scheduler : Scheduler, optional
        In whose process this is; else it's the client's.
    """

    def __init__(self, shared: Shared, scheduler: Any = None) -> None:
        self._shared, self._scheduler = shared, scheduler

    def meet(self, phase: str) -> None:
        """Count an event of a phase."""
        shared, case = self._shared, self._shared.case
        count = shared.add(phase)
        if phase == case.phase and count == case.event and not shared["fired"]:
            shared["fired"] = 1
            shared.report(fault=case.fault, phase=phase, event=count)
            self._strike()

    def _strike(self) -> None:
        shared, case = self._shared, self._shared.case
        victim = WORKERS[case.victim]
        match case.fault:
            case "worker killed":
                shared.kill(victim)
            case "worker frozen":
                shared.signal(victim, signal.SIGSTOP)
                if not case.short:
                    _later(FROZEN_SECONDS, self.thaw)
            case "worker out of memory":
                shared.signal(victim, signal.SIGUSR2)
            case "scheduler killed":
                shared.kill("scheduler")
            case "client killed":
                shared.kill("client")
            case "network cut":
                network.cut(shared)
                if network.own(shared):
                    _later(CUT_SECONDS, partial(network.join, shared))
            case "clock jump":
                role = ROLES[case.chance % len(ROLES)]
                shared[f"jump-{role}"] = JUMPS[case.chance // 7 % len(JUMPS)]
            case "store errors" | "slow store" | "partial writes" | "full disk":
                shared["store"] = 1
            case _:  # "slow worker", or nothing at all
                pass

    def thaw(self) -> None:
        """Let a frozen worker go on."""
        if self._struck("worker frozen"):
            self._shared.signal(WORKERS[self._shared.case.victim], signal.SIGCONT)

    def slow_down(self, finish: str) -> None:
        """Stop a slow worker for a moment, whenever a task is about to run."""
        if finish == "processing" and self._struck("slow worker"):
            victim = WORKERS[self._shared.case.victim]
            self._shared.signal(victim, signal.SIGSTOP)
            self._scheduler.loop.call_later(
                SLOW_SECONDS, self._shared.signal, victim, signal.SIGCONT
            )

    def _struck(self, fault: str) -> bool:
        return self._shared.case.fault == fault and bool(self._shared["fired"])


def _later(seconds: float, action: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()


def hog(limit: int) -> None:
    """Take more memory than there may be, and keep it."""
    while psutil.Process().memory_info().rss < limit:
        _hoard.append(bytearray(os.urandom(1)) * 2**25)
