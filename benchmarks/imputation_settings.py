"""What the benchmark of dense imputation tries, and what was chosen of it."""

from __future__ import annotations

from typing import Any

Settings = dict[str, Any]

# What is tried, for each system; a dictionary is a grid. Of a transposed panel, times
# or cells are the samples, and stations or months the features. The iterative imputer
# isn't tried on thousands of features: it fits a regression for each, ten times.
PEER_GRIDS: dict[str, Settings] = {
    "SoftImpute": {
        "scale": ["none", "centre", "both"],
        "shrinkage": [None, 0.1, 0.05, 0.01],
        "transpose": [True],  # the same numbers as not, in half of the time
    },
    "KNNImputer": {
        "n_neighbors": [3, 5, 10, 20],
        "weights": ["uniform", "distance"],
        "transpose": [False, True],
    },
    "IterativeImputer": {
        "n_nearest_features": [10, 20, None],
        "transpose": [True],
        "blas_threads": [1],
    },
}
DMF_GRIDS: dict[str, Settings] = {
    "metro": {
        "rank": [10, 20],
        "offsets": ["rows"],
        "strength": [3.0, 8.0],
        "light": [0.005, 0.08],
        "tied": [False, True],
        "max_rounds": [2, 3, 4, 6, 30, 60],
    },
    "PM10": {
        "rank": [16, 24],
        "offsets": ["both"],
        "strength": [3.0, 6.0, 12.0],
        "light": [0.005, 0.08],
        "tied": [False, True],
        "max_rounds": [3, 4, 5, 6, 30, 60],
    },
    "sea": {
        "rank": [12, 20, 40, 54],
        "offsets": ["both"],
        "strength": [1.0, 2.0],
        "light": [0.002, 0.005, 0.02],
        "tied": [False, True],
        "max_rounds": [2, 28, 30, 40, 100],
    },
}
BEST = "dmf, at its best"
# What dmf must reach there of a peer's error, since another part of the entries, and
# more of them to learn from, move both errors a little.
MARGIN = 0.97


def as_good_as(peer: str) -> str:
    """Return what dmf is called where it stops as soon as it is as good as a peer."""
    return f"dmf, as good as {peer}"


def dmf_settings(
    rank: int, offsets: str, strength: float, light: float, rounds: int
) -> tuple[str, Settings]:
    settings = {
        "rank": rank,
        "offsets": offsets,
        "strength": strength,
        "light": light,
        "tied": True,
        "max_rounds": rounds,
    }
    return "dmf", settings


# Errors don't depend on the number of BLAS threads, but here one is faster than two,
# and much faster where something else runs on the machine.
SINGLE = {"transpose": True, "blas_threads": 1}

# Chosen by hand on the inner part: the peers' lowest errors; for dmf a low one, and for
# each peer few rounds at `MARGIN` of its error or below. `--choose` tries the grids.
CHOSEN: dict[str, dict[str, tuple[str, Settings]]] = {
    "metro": {
        "SoftImpute": (
            "SoftImpute",
            {"scale": "both", "shrinkage": 0.05} | SINGLE,
        ),
        "KNNImputer": (
            "KNNImputer",
            {"n_neighbors": 10, "weights": "distance", "transpose": True},
        ),
        "IterativeImputer": (
            "IterativeImputer",
            {"n_nearest_features": 20} | SINGLE,
        ),
        as_good_as("SoftImpute"): dmf_settings(20, "rows", 8.0, 0.005, 2),
        as_good_as("KNNImputer"): dmf_settings(20, "rows", 8.0, 0.005, 3),
        as_good_as("IterativeImputer"): dmf_settings(20, "rows", 8.0, 0.005, 2),
        BEST: dmf_settings(20, "rows", 8.0, 0.005, 30),
    },
    "PM10": {
        "SoftImpute": (
            "SoftImpute",
            {"scale": "centre", "shrinkage": 0.05, "transpose": True},
        ),
        "KNNImputer": (
            "KNNImputer",
            {"n_neighbors": 5, "weights": "distance", "transpose": False},
        ),
        "IterativeImputer": (
            "IterativeImputer",
            {"n_nearest_features": 20} | SINGLE,
        ),
        as_good_as("SoftImpute"): dmf_settings(16, "both", 6.0, 0.08, 6),
        as_good_as("KNNImputer"): dmf_settings(16, "both", 6.0, 0.08, 3),
        as_good_as("IterativeImputer"): dmf_settings(16, "both", 6.0, 0.08, 6),
        BEST: dmf_settings(16, "both", 6.0, 0.08, 30),
    },
    "sea": {
        "SoftImpute": (
            "SoftImpute",
            {"scale": "centre", "shrinkage": None, "transpose": True},
        ),
        "KNNImputer": (
            "KNNImputer",
            {"n_neighbors": 3, "weights": "distance", "transpose": True},
        ),
        "IterativeImputer": (
            "IterativeImputer",
            {"n_nearest_features": None} | SINGLE,
        ),
        as_good_as("SoftImpute"): dmf_settings(12, "both", 2.0, 0.005, 2),
        as_good_as("KNNImputer"): dmf_settings(54, "both", 1.0, 0.02, 28),
        as_good_as("IterativeImputer"): dmf_settings(20, "both", 2.0, 0.005, 2),
        BEST: dmf_settings(54, "both", 1.0, 0.002, 100),
    },
}
