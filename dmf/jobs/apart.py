"""Places of a job that must not meet: a slip in a path must not cost data."""

from __future__ import annotations

import os
from itertools import combinations
from pathlib import PurePath, PurePosixPath

from dmf.io.places import is_url

# Others may be in it: a report only ever adds folders of its own.
SHARED = "report.folder"
# What the file of the job is called here.
JOB = "this job"


def check_apart(read: dict[str, str], written: dict[str, str]) -> None:
    """Refuse places that are the same, or where one is inside the other.

    Parameters
    ----------
    read, written : dict of str to str
        Full paths or URLs, by the keys of the job.

    Raises
    ------
    ValueError
        What is written would meet what is read, or something else that is written.
    """
    places = {key: _parts_of(place) for key, place in (read | written).items()}
    shown = read | written
    for first, second in combinations(places, 2):
        if places[first] == places[second]:
            msg = f"{first} and {second} are both {shown[second]}; name two places"
            raise ValueError(msg)
        for inner, outer in ((first, second), (second, first)):
            # Two arrays of one group may be read; logs, and the job, may be beside
            # the reports.
            harmless = inner in read and outer in read
            harmless |= outer == SHARED and (inner in written or inner == JOB)
            if not harmless and places[inner].is_relative_to(places[outer]):
                msg = (
                    f"{inner} ({shown[inner]}) is inside {outer} ({shown[outer]}); "
                    "name two places that are apart"
                )
                raise ValueError(msg)


def _parts_of(place: str) -> PurePath:
    """Return a place to compare: a path without links, or a URL as it is."""
    if is_url(place):
        return PurePosixPath(place)
    return PurePath(os.path.realpath(place))
