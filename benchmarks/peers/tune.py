"""Choose the parameters of every system, with the same care for each.

    python -m benchmarks.peers.tune [--data NAME] [--rank R] [--system NAME] …

A random tenth of the *training* part is held out for it; what the comparison holds out
is not looked at. One group of parameters after the other (`catalog.py` lists what is
tried) is set to what reaches the lowest RMSE at any number of iterations. The number of
iterations of a whole fit is the smallest that comes within 0.1% of that. What was found
is written to `settings.toml` beside this file; what isn't asked for stays as it is.
"""

from __future__ import annotations

import argparse
from itertools import chain
from pathlib import Path

import numpy as np

from benchmarks.peers import processes
from benchmarks.peers.catalog import CATALOG, RANKS, Variant
from benchmarks.peers.data import DATA, validation_split
from benchmarks.peers.environments import UnavailableError
from benchmarks.peers.fit import Point
from benchmarks.peers.processes import FailedError, Place
from benchmarks.peers.settings import (
    Settings,
    problem_key,
    read_settings,
    write_settings,
)

COUNTS = [5, 7, 10, 14, 20, 40, 80]
SECONDS = 40.0  # of fitting, for a combination of parameters
CLOSE = 1.001


def tune(name: str, data: Path, rank: int, place: Place) -> Settings:
    """Return the best settings of a system on the validation part."""
    spread = float(np.load(data)["train_values"].std())
    stages = CATALOG[name].stages
    chosen: Variant = dict(chain.from_iterable(stage[0].items() for stage in stages))
    tried: dict[str, list[Point]] = {}

    def curve(own: Variant) -> list[Point]:
        scaled = own | ({"ridge": own["ridge"] * spread} if "ridge" in own else {})
        if str(own) not in tried:
            tried[str(own)] = fit_curve(name, data, rank, scaled, place)
        return tried[str(own)]

    for stage in stages:
        chosen = min(
            (chosen | variant for variant in stage), key=lambda own: lowest(curve(own))
        )
    best = curve(chosen)
    if not best:
        msg = "it failed with all parameters"
        raise FailedError(msg)
    goal = CLOSE * lowest(best)
    # Where the speed alone is of interest there is no RMSE, and the default has to do.
    iterations = next((p.iterations for p in best if p.rmse <= goal), 15)
    if "ridge" in chosen:
        chosen["ridge"] = float(f"{chosen['ridge'] * spread:.3g}")
    print(f"  {name:<14} {lowest(best):.4f} after {iterations:3}  {chosen}", flush=True)
    return Settings(iterations, chosen)


def fit_curve(
    name: str, data: Path, rank: int, own: Variant, place: Place
) -> list[Point]:
    """Return a curve; none for parameters with which the system fails."""
    try:
        return processes.fit(
            name, data, rank, own, COUNTS, place, patience=1, seconds=SECONDS
        )
    except FailedError as error:
        print(f"  {name:<14} {own}: {error}", flush=True)
        return []


def lowest(points: list[Point]) -> float:
    return min((p.rmse for p in points if np.isfinite(p.rmse)), default=np.inf)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what tuning and comparing have in common."""
    every = {"data": DATA, "rank": RANKS, "system": CATALOG}
    for name, choices in every.items():
        parser.add_argument(
            f"--{name}",
            action="append",
            choices=list(choices),
            type=int if name == "rank" else str,
            help="may be repeated; default: all",
        )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--lock", type=Path, help="a file to lock while something is timed"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Choose the parameters of systems.")
    add_options(parser)
    asked = parser.parse_args()
    place = Place(asked.threads, asked.lock)
    settings = read_settings()
    for data in asked.data or DATA:
        for rank in asked.rank or RANKS:
            problem = settings.setdefault(problem_key(data, rank), {})
            print(f"{data}, rank {rank}: lowest validation RMSE", flush=True)
            for name in asked.system or CATALOG:
                try:
                    path = validation_split(data)
                    with place.alone():
                        problem[name] = tune(name, path, rank, place)
                except (UnavailableError, FailedError) as error:
                    print(f"  {name:<14} left out: {error}", flush=True)
                write_settings(settings)


if __name__ == "__main__":
    main()
