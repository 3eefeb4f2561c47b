"""Jobs of workers that have ended early, started again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LOOK_SECONDS = 1.0
# A job counts as ended when none of its workers was there at so many looks in a row: a
# connection may be lost for a moment. By then Dask too has given it up, after
# distributed.deploy.lost-worker-timeout; a new job of the same name would go as well.
LOOKS = 20


class Replacements:
    """Sees which jobs of a cluster have come to have no workers any more.

    Those that never had one aren't among them: they wait, or would fail again.

    Parameters
    ----------
    cluster : dask_jobqueue.JobQueueCluster
    jobs : int
        How many there shall be.
    """

    def __init__(self, cluster: Any, jobs: int) -> None:
        self._cluster, self._jobs = cluster, jobs
        # How often in a row those that had workers were seen without.
        self._missed: dict[Any, int] = {}

    async def look(self) -> None:
        """Give up jobs that have ended, and start as many others."""
        for job in self._cluster.worker_spec:
            if self._has_workers(job):
                self._missed[job] = 0
            elif job in self._missed:
                self._missed[job] += 1
        gone = [job for job, looks in self._missed.items() if looks >= LOOKS]
        if gone:
            for job in gone:
                del self._missed[job]
            await self._cluster.scale_down(gone)
            self._cluster.scale(jobs=self._jobs)

    def _has_workers(self, job: Any) -> bool:
        suffixes = self._cluster.worker_spec[job].get("group", [""])
        return not self._cluster.observed.isdisjoint(f"{job}{one}" for one in suffixes)


@contextmanager
def lost_jobs_replaced(cluster: Any, jobs: int) -> Iterator[None]:
    """Start jobs of workers again that are cancelled, or whose time is over."""
    from tornado.ioloop import PeriodicCallback

    looking = PeriodicCallback(Replacements(cluster, jobs).look, 1000 * LOOK_SECONDS)
    cluster.loop.add_callback(looking.start)
    try:
        yield
    finally:
        cluster.loop.add_callback(looking.stop)
