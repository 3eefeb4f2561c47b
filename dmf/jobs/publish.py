"""Outputs appear together: written beside their places, then moved, or not at all.

What shall be moved is written into a journal first. A run that is killed while it moves
things leaves the journal behind, and the next one finishes what it says. Behind URLs,
to move is to copy inside the store.
"""

from __future__ import annotations

import filecmp
import json
import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from dmf.io.places import (
    exchange,
    explain,
    is_url,
    names_beside,
    remove,
    remove_quietly,
)
from dmf.io.replace import replace_behind
from dmf.io.versions import version_of
from dmf.jobs.log import log
from dmf.jobs.manifest import Manifest, Paths, named, write_json
from dmf.jobs.record import RUN_ID
from dmf.secrets import HIDDEN

# The folders that runs write to, by the names of what is in them.
_STAGING = r"\.?{}\.\d{{8}}T\d{{6}}-[0-9a-f]+\.part"


def beside(place: str, run: str) -> str:
    """Return where a run writes what shall be at a place, and make room there."""
    staged = _staged(place, run)
    if not is_url(place):
        os.makedirs(os.path.dirname(staged), exist_ok=True)
    return staged


def _staged(place: str, run: str) -> str:
    folder, name = os.path.split(place)
    if is_url(place):
        return f"{place}.{run}.part/{name}"
    return os.path.join(folder, f".{name}.{run}.part", name)


def remove_left_overs(places: list[str]) -> None:
    """Remove what killed runs have written beside these places."""
    for place in places:
        folder, name = os.path.split(place)
        pattern = _STAGING.format(re.escape(name))
        if is_url(place):
            for other in names_beside(place):
                if re.fullmatch(pattern, other):
                    remove_quietly(place.removesuffix(name) + other)
        elif os.path.isdir(folder):
            for other in os.listdir(folder):
                if re.fullmatch(pattern, other):
                    remove(os.path.join(folder, other))


@dataclass(frozen=True)
class Move:
    """Something that is to be moved to its place, and the version of it."""

    staged: str
    place: str
    version: str | None

    @classmethod
    def of(cls, staged: str, place: str) -> Move:
        return cls(staged, place, version_of(staged))

    def make(self) -> None:
        # After an exchange, the old version is where the new one was.
        if self.staged == self.place or version_of(self.staged) != self.version:
            return
        if is_url(self.place):
            replace_behind(self.staged, self.place)
        else:
            exchange(self.staged, self.place)


def publish(moves: list[Move], manifest: Manifest, paths: Paths) -> None:
    """Move all outputs to their places, and write the manifest of the run."""
    # Where they are now follows from place and run, so that no journal of others can
    # have anything else moved or removed.
    journal = {
        "moves": [
            [named(one.place), one.version] for one in moves if one.staged != one.place
        ],
        "manifest": manifest.as_json(),
    }
    write_json(journal, paths.journal)
    _finish(moves, manifest, paths)


def finish_publication(paths: Paths, places: Iterable[str]) -> str | None:
    """Finish what a killed run has begun to publish; return its id if there is one.

    A journal that can't be read is dropped: the manifest is still that of the run
    before, so that what was moved already is seen to differ from it.

    Parameters
    ----------
    paths : Paths
    places : iterable of str
        Of the outputs: a journal holds no credentials, which they may have.
    """
    try:
        with open(paths.journal, encoding="utf-8") as file:
            journal = json.load(file)
        manifest = Manifest.from_json(journal["manifest"])
        moves = _read_moves(journal["moves"], manifest.run, places)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        log(
            f"the journal {paths.journal} can't be read ({explain(error)}) and is "
            "removed; what its run hasn't published is done anew",
            logging.WARNING,
        )
        os.remove(paths.journal)
        return None
    _finish(moves, manifest, paths)
    return manifest.run


def _read_moves(given: Any, run: str, places: Iterable[str]) -> list[Move]:
    """Return what a journal says is to be moved, or refuse it."""
    if not re.fullmatch(RUN_ID, run):
        msg = f"{run!r} is no run"
        raise ValueError(msg)
    known = {named(place): place for place in places}
    moves = []
    for name, version in given:
        if name not in known and HIDDEN in name:
            msg = f"the job no longer names {name}"
            raise ValueError(msg)
        if not isinstance(version, str):
            msg = f"{name} has no version"
            raise ValueError(msg)
        place = known.get(name, name)
        moves.append(Move(_staged(place, run), place, version))
    return moves


def _finish(moves: list[Move], manifest: Manifest, paths: Paths) -> None:
    for move in moves:
        move.make()
    # A copy inside a store is another version of what was copied.
    copied = {
        named(move.place): str(version_of(move.place))
        for move in moves
        if is_url(move.place)
    }
    outputs = {
        name: [place, copied.get(place, version)]
        for name, (place, version) in manifest.outputs.items()
    }
    manifest = replace(manifest, outputs=outputs)
    write_json(manifest.as_json(), paths.manifest)
    os.remove(paths.journal)
    # Old versions go last: nobody who has begun to open one finds it gone.
    for move in moves:
        if move.staged != move.place:
            clear = remove_quietly if is_url(move.staged) else remove
            clear(os.path.dirname(move.staged))


def link_unchanged(staged: str, place: str) -> int:
    """Make hard links of the files of a folder that are as they were; return how many.

    Parameters
    ----------
    staged, place : str
        A new version of a folder, and the one that it will replace.
    """
    if is_url(place) or not os.path.isdir(staged) or not os.path.isdir(place):
        return 0
    linked = 0
    for folder, _, names in os.walk(staged):
        for name in names:
            new = os.path.join(folder, name)
            old = os.path.join(place, os.path.relpath(new, staged))
            if os.path.isfile(old) and filecmp.cmp(old, new, shallow=False):
                link = f"{new}.link"
                try:
                    os.link(old, link)
                except OSError:  # a file system without links, or of another device
                    return linked
                os.replace(link, new)
                linked += 1
    return linked
