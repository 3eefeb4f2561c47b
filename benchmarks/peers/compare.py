"""dmf and its peers: whole fits, and the time that each takes to be how good.

    python -m benchmarks.peers.compare --quick
    python -m benchmarks.peers.compare [--data NAME] [--rank R] [--system NAME] …

For each data set and rank, first every system makes whole fits with 1, 2, 3, …
iterations until its held-out RMSE no longer falls: its curve. The *target* is 0.1%
above the lowest RMSE on the curve of any fast peer. Then the fits that matter are
repeated, the systems taking turns: with the number of iterations that tuning chose,
with the first that reaches the target, and with the first that comes within 0.1% of a
system's own lowest RMSE. Times are medians, ratios are medians of the ratios of each
turn. Tables and pictures are written to `benchmarks/results`; the parameters come from
`settings.toml`, where `tune.py` has put them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.peers import processes
from benchmarks.peers.catalog import CATALOG, RANKS
from benchmarks.peers.comparison import Comparison, Measured
from benchmarks.peers.data import DATA, split
from benchmarks.peers.environments import ROOT, UnavailableError
from benchmarks.peers.fit import Point
from benchmarks.peers.picture import draw
from benchmarks.peers.processes import FailedError, Place
from benchmarks.peers.report import machine, report
from benchmarks.peers.settings import Settings, problem_key, read_settings
from benchmarks.peers.tune import add_options

RESULTS = ROOT / "benchmarks" / "results"
PATIENCE = 3
SECONDS = 150.0  # of fitting, for a curve
QUICK_DATA, QUICK_RANKS = ["movielens", "jester"], [16]
QUICK_SYSTEMS = ["dmf", *(name for name, system in CATALOG.items() if system.fast)]


def compare(
    data: str, rank: int, names: list[str], place: Place, repeats: int
) -> Comparison:
    """Measure the curves of all systems, then repeat what matters, taking turns."""
    print(f"\n{data}, rank {rank}", flush=True)
    settings = read_settings().get(problem_key(data, rank), {})
    found = Comparison(data, rank, split(data), {}, {})
    for name in names:
        try:
            with place.alone():
                curve = measure_curve(name, found, settings, place)
        except (UnavailableError, FailedError) as error:
            found.left_out[name] = str(error)
            print(f"  {name:<14} left out: {error}", flush=True)
            continue
        found.systems[name] = Measured(settings[name], curve)
        print(
            f"  {name:<14} {len(curve):2} fits, the best {found.systems[name].best:.4f}"
            f", the last took {curve[-1].seconds:.2f} s",
            flush=True,
        )
    for turn in range(repeats):
        print(f"  turn {turn + 1} of {repeats}", flush=True)
        with place.alone():
            for name in found.systems:
                repeat(name, found, place)
    return found


def measure_curve(
    name: str, found: Comparison, settings: dict[str, Settings], place: Place
) -> list[Point]:
    if name not in settings:
        msg = (
            f"no settings; python -m benchmarks.peers.tune --data {found.data} "
            f"--rank {found.rank} --system NAME chooses them"
        )
        raise UnavailableError(msg)
    return processes.fit(
        name,
        found.path,
        found.rank,
        settings[name].own,
        list(CATALOG[name].counts),
        place,
        patience=PATIENCE,
        seconds=SECONDS,
    )


def repeat(name: str, found: Comparison, place: Place) -> None:
    """Repeat the fits of a system that matter, the whole fit first.

    Its peak of memory is then that of the first fit of a process.
    """
    measured = found.systems[name]
    whole = measured.settings.iterations
    counts = [whole, *sorted(found.counts_that_matter(name) - {whole})]
    try:
        fits = processes.fit(
            name,
            found.path,
            found.rank,
            measured.settings.own,
            counts,
            place,
            patience=len(counts),
            seconds=2 * SECONDS,
        )
    except FailedError as error:
        print(f"  {name:<14} didn't repeat: {error}", flush=True)
        fits = []
    measured.turns.append({point.iterations: point for point in fits})


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare dmf with its peers.")
    add_options(parser)
    parser.add_argument("--quick", action="store_true", help="the smaller half of it")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    asked = parser.parse_args()
    sets = asked.data or (QUICK_DATA if asked.quick else list(DATA))
    ranks = asked.rank or (QUICK_RANKS if asked.quick else list(RANKS))
    names = asked.system or (QUICK_SYSTEMS if asked.quick else list(CATALOG))
    names = ["dmf", *(name for name in names if name != "dmf")]
    place = Place(asked.threads, asked.lock)
    stem = "peers-quick" if asked.quick else "peers"
    asked.output.mkdir(parents=True, exist_ok=True)
    where = machine(place)
    print(where)
    done: list[Comparison] = []
    for data in sets:
        for rank in ranks:
            try:
                found = compare(data, rank, names, place, asked.repeats)
            except UnavailableError as error:
                print(f"  {data} is left out: {error}")
                continue
            if not found.systems:
                continue
            done.append(found)
            draw(found, asked.output / f"{stem}-{problem_key(data, rank)}.png")
            # After each problem, so that a run that is interrupted leaves its results.
            text = report(done, where, stem)
            (asked.output / f"{stem}.md").write_text(text)
    print(f"\nwritten to {asked.output}")


if __name__ == "__main__":
    main()
