"""The results as Markdown, and the machine that they were measured on."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.peers.catalog import CATALOG
from benchmarks.peers.comparison import CLOSE, Comparison
from benchmarks.peers.environments import ROOT
from benchmarks.peers.processes import Place
from benchmarks.peers.settings import problem_key

HOW = """\
How it is measured: `benchmarks/peers/compare.py` tells. A time is that of a whole fit,
in a process of its own, from triplets in memory to the model. It counts the conversion
to a system's own format, but no imports, no compilation, no start of Java, and no
predictions (but SMURFF's, which it makes as it samples). Peak memory is that of the
whole process, with its imports and the ratings, up to the end of its first whole fit
(Spark: with Java's). Parameters are tuned on a tenth of the training part by
`benchmarks/peers/tune.py`, for every system in the same way; the iterations of a whole
fit are the fewest that came within 0.1% of the lowest RMSE there.
"""


def machine(place: Place) -> str:
    """Describe the machine, with the BLAS kernel that the fits of dmf use."""
    code = "from benchmarks.common import print_machine; print_machine()"
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=place.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return f"{processor()}; {said.stdout.strip()}; {place.threads} threads"


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    return next(named, platform.processor() or "unknown processor")


def report(done: list[Comparison], where: str, stem: str) -> str:
    today = datetime.now(UTC).date().isoformat()
    parts = ["# dmf and its peers", f"{today}. {where}.", versions(done), HOW]
    for found in done:
        key = problem_key(found.data, found.rank)
        parts += [
            f"## {found.data}, rank {found.rank}",
            sizes(found),
            time_to_accuracy(found),
            f"![RMSE against seconds]({stem}-{key}.png)",
            whole_fits(found),
        ]
        reasons: dict[str, list[str]] = {}
        for name, why in found.left_out.items():
            reasons.setdefault(why, []).append(name)
        parts += [f"Left out: {', '.join(of)}: {why}." for why, of in reasons.items()]
    parts += ["## Systems", notes(done)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def versions(done: list[Comparison]) -> str:
    known = {
        CATALOG[name].package: measured.curve[0].version
        for found in done
        for name, measured in found.systems.items()
    }
    return "Versions: " + ", ".join(f"{k} {v}" for k, v in known.items()) + "."


def sizes(found: Comparison) -> str:
    file = np.load(found.path)
    m, n = file["shape"]
    train, test = (len(file[f"{part}_values"]) for part in ("train", "test"))
    return f"{m} × {n}, {train} ratings to train on and {test} held out."


def time_to_accuracy(found: Comparison) -> str:
    """The table that the bounds are about."""
    rows = [
        [
            "system",
            "lowest RMSE",
            "iterations to target",
            "seconds to target",
            "dmf / it",
            "at most",
            "its own lowest + 0.1%: it, s",
            "dmf, s",
            "dmf / it",
        ]
    ]
    for name, measured in found.systems.items():
        if not np.isfinite(measured.best):
            continue
        own = CLOSE * measured.best
        rows.append(
            [
                name,
                f"{measured.best:.4f}",
                str(measured.iterations_to(found.target) or "not reached"),
                seconds(found.seconds_to(name, found.target)),
                ratio(found.ratio(name, found.target)),
                verdict(found, name),
                seconds(found.seconds_to(name, own)),
                seconds(found.seconds_to("dmf", own)),
                ratio(found.ratio(name, own)),
            ]
        )
    head = (
        f"Time to the target, RMSE {found.target:.4f} (the lowest of the fast peers "
        f"{', '.join(n for n in found.systems if CATALOG[n].fast)}, + 0.1%):"
    )
    return f"{head}\n\n{table(rows)}"


def verdict(found: Comparison, name: str) -> str:
    """Return the bound on dmf's share of a system's time, and whether it is kept."""
    bound = CATALOG[name].bound
    if bound is None:
        return ""
    reached = {
        one: found.systems[one].iterations_to(found.target) is not None
        for one in ("dmf", name)
    }
    kept = reached["dmf"] and (
        not reached[name] or found.ratio(name, found.target) <= bound
    )
    return f"{bound} {'✓' if kept else '✗'}"


def whole_fits(found: Comparison) -> str:
    rows = [["system", "iterations", "seconds", "dmf / it", "RMSE", "peak MB"]]
    for name, measured in found.systems.items():
        fits = measured.whole()
        if not fits:
            continue
        rmse = float(np.median([fit.rmse for fit in fits]))
        rows.append(
            [
                name,
                str(measured.settings.iterations),
                seconds([fit.seconds for fit in fits]),
                ratio(found.whole_ratio(name)),
                f"{rmse:.4f}" if np.isfinite(rmse) else "–",
                f"{np.median([fit.peak_mb for fit in fits]):.0f}",
            ]
        )
    return f"Whole fits, as tuned:\n\n{table(rows)}"


def notes(done: list[Comparison]) -> str:
    """What each system is, and its parameters on each problem."""
    rows = [["system", "what it is", *(problem_key(f.data, f.rank) for f in done)]]
    for name, system in CATALOG.items():
        parameters = [
            ", ".join(f"{k} {v}" for k, v in found.systems[name].settings.own.items())
            if name in found.systems
            else "–"
            for found in done
        ]
        rows.append([name, system.note, *parameters])
    return table(rows)


def seconds(times: list[float]) -> str:
    known = [time for time in times if np.isfinite(time)]
    return f"{np.median(known):.3g}" if known else "–"


def ratio(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "–"


def table(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
