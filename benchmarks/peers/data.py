"""The ratings to compare on, each split once into a training and a held-out part.

    jester       Jester 1, 1.8 M ratings, 72% observed; a random tenth is held out
    movielens    MovieLens 100K; the first fold of its authors (u1) is held out
    power-law    4 M generated ratings of 60000 × 20000; a random tenth is held out

The first two are read from the folder that `DMF_DATA` names, else from
`../shared/data` beside the repository. Splits are kept as .npz files under `.peers`,
where the processes of all systems read them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import DATA as FOLDER
from benchmarks.common import power_law_places
from benchmarks.peers.environments import PEERS, UnavailableError

Array = Any
SEED = 0
HELD_OUT = 0.1


@dataclass(frozen=True)
class Triplets:
    """Ratings of a matrix, and which of them are held out."""

    shape: tuple[int, int]
    rows: Array
    columns: Array
    values: Array
    held_out: Array

    def save(self, path: Path) -> None:
        """Write what a system sees: the two parts, shuffled, ids as int32.

        Shuffled, for some systems make use of the order that files come in, and others
        suffer from it. Not compressed, for every process reads the file again.
        """
        order = np.random.default_rng(SEED).permutation(len(self.values))
        parts = {"train": order[~self.held_out[order]]}
        parts["test"] = order[self.held_out[order]]
        arrays: dict[str, Array] = {"shape": np.array(self.shape)}
        for part, chosen in parts.items():
            arrays[f"{part}_rows"] = self.rows[chosen].astype(np.int32)
            arrays[f"{part}_columns"] = self.columns[chosen].astype(np.int32)
            arrays[f"{part}_values"] = self.values[chosen].astype(np.float32)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        with unfinished.open("wb") as file:
            np.savez(file, **arrays)
        unfinished.replace(path)


def archive(name: str) -> Any:
    path = FOLDER / name
    if not path.exists():
        msg = f"there is no {name} in {FOLDER}; name its folder in DMF_DATA"
        raise UnavailableError(msg)
    return np.load(path)


def shape_of(file: Any) -> tuple[int, int]:
    m, n = map(int, file["shape"])
    return m, n


def random_tenth(length: int) -> Array:
    return np.random.default_rng(SEED).random(length) < HELD_OUT


def jester() -> Triplets:
    file = archive("jester-1.npz")
    held_out = random_tenth(len(file["value"]))
    return Triplets(shape_of(file), file["row"], file["col"], file["value"], held_out)


def movielens() -> Triplets:
    file = archive("ml-100k/ratings.npz")
    held_out = file["fold"] == 1
    return Triplets(shape_of(file), file["row"], file["col"], file["value"], held_out)


def power_law(
    shape: tuple[int, int] = (60_000, 20_000), stored: int = 4_000_000, rank: int = 10
) -> Triplets:
    """Generate ratings from ½ to 5 in halves, as films have.

    Rows and columns are drawn by a power law. Of the variance before rounding, the
    offsets of rows and of columns have a sixth each, a signal of the given rank, its
    components falling as 1/k, a third, and noise the rest.
    """
    rng = np.random.default_rng(SEED)
    rows, columns = power_law_places(rng, shape, stored)
    m, n = shape
    sizes = 1 / np.arange(1.0, rank + 1)
    sizes *= 0.6 / np.linalg.norm(sizes)
    W, H = (rng.standard_normal((length, rank)) for length in shape)
    values = 3.5 + 0.42 * rng.standard_normal(m)[rows]
    values += 0.42 * rng.standard_normal(n)[columns]
    values += np.einsum("ij,ij,j->i", W[rows], H[columns], sizes)
    values += 0.6 * rng.standard_normal(len(values))
    values = np.clip(np.round(2 * values) / 2, 0.5, 5)
    return Triplets(shape, rows, columns, values, random_tenth(len(values)))


DATA: dict[str, Callable[[], Triplets]] = {
    "movielens": movielens,
    "jester": jester,
    "power-law": power_law,
}


def split(name: str) -> Path:
    """Return the file of a data set's training and held-out part; write it once."""
    path = PEERS / "data" / f"{name}.npz"
    if not path.exists():
        DATA[name]().save(path)
    return path


def validation_split(name: str) -> Path:
    """Return a file whose held-out part is a tenth of the *training* part.

    What is held out for the comparison isn't in it, so that nothing chosen on it has
    seen what it will be judged by.
    """
    path = PEERS / "data" / f"{name}-validation.npz"
    if not path.exists():
        file = np.load(split(name))
        rows, columns, values = (
            file[f"train_{part}"] for part in ("rows", "columns", "values")
        )
        held_out = random_tenth(len(values))
        Triplets(shape_of(file), rows, columns, values, held_out).save(path)
    return path
