"""What the last run has published and from what: it decides what there is to do."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from dataclasses import asdict, dataclass, field, fields
from hashlib import blake2b
from typing import Any

from dmf.io.places import is_url, locate, read_bytes, write_whole
from dmf.io.versions import version_of
from dmf.jobs.config import Job
from dmf.secrets import without_secrets

FORMAT_VERSION = 1
# A fit that does more is as good as one that does less.
MODES = ("fold-in", "warm", "full")


@dataclass(frozen=True)
class Manifest:
    """What a run has published; written last, so that it is the run's commit.

    Parameters
    ----------
    run : str
        Its id.
    dmf : str
        The version that ran.
    model_settings, solver_settings : str
        Digests of what makes another model, and of how it's found.
    mode : {"full", "warm", "fold-in"}
        How the model was found.
    input : dict of str to str
        Versions by the places that were read; these, and those of outputs, without
        credentials.
    outputs : dict of str to [place, version]
    result : dict
        Shape, status, RMSE and such.
    """

    run: str
    dmf: str
    model_settings: str
    solver_settings: str
    mode: str
    input: dict[str, str | None]
    outputs: dict[str, list[str]]
    result: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, given: Any) -> Manifest:
        """The inverse of `as_json`.

        Raises
        ------
        ValueError
            It is damaged, or a newer dmf has written it.
        """
        if not isinstance(given, dict) or given.get("format_version") != FORMAT_VERSION:
            msg = "it is damaged, or another version of dmf has written it"
            raise ValueError(msg)
        known = {one.name for one in fields(cls)}
        try:
            read = cls(**{key: value for key, value in given.items() if key in known})
        except TypeError as error:
            raise ValueError(str(error)) from error
        for name in ("input", "outputs", "result"):
            if not isinstance(getattr(read, name), dict):
                msg = f"its {name} is no object"
                raise ValueError(msg)
        if read.mode not in MODES:
            msg = f"its mode is {read.mode!r}"
            raise ValueError(msg)
        return read


@dataclass(frozen=True)
class Paths:
    """Where a job keeps what is about its runs: beside the model.

    Parameters
    ----------
    manifest : str
        Also behind a URL, if the model is.
    lock, journal : str
        Always on this machine: behind a URL nothing can be locked.
    """

    manifest: str
    lock: str
    journal: str

    @classmethod
    def of(cls, job: Job) -> Paths:
        model = locate(job.output.model)
        prefix = model
        if is_url(model):
            digest = blake2b(model.encode(), digest_size=16).hexdigest()
            user = os.getuid() if hasattr(os, "getuid") else "user"
            folder = os.path.join(tempfile.gettempdir(), f"dmf-{user}")
            os.makedirs(folder, mode=0o700, exist_ok=True)
            _check_own(folder)
            prefix = os.path.join(folder, digest)
        return cls(f"{model}.manifest.json", f"{prefix}.lock", f"{prefix}.publishing")


@dataclass(frozen=True)
class ToDo:
    """What a run has to do: nothing, fill, fold-in, warm or full; and why."""

    action: str
    reason: str

    def __str__(self) -> str:
        what = "nothing to do" if self.action == "nothing" else f"{self.action} run"
        return f"{what}: {self.reason}"


def decide(job: Job, last: Manifest | None, now: dict[str, str | None]) -> ToDo:
    """Return what there is to do.

    Parameters
    ----------
    job : Job
    last : Manifest or None
        Of the last run that has published.
    now : dict of str to str
        The versions of the places that are to be read.
    """
    from dmf import __version__

    if last is None:
        return ToDo("full", "there is no manifest of a former run")
    if not _is_intact(last, "model", job.output.model):
        return ToDo("full", "the model isn't the one that was published")
    if last.model_settings != model_settings(job):
        return ToDo("full", "settings of the model have changed")
    if last.dmf != __version__:
        return ToDo(job.job.mode, f"dmf {last.dmf} has made the model")
    if last.input != now:
        return ToDo(job.job.mode, "the input has changed")
    if last.solver_settings != solver_settings(job):
        return ToDo(job.job.mode, "settings of the solver have changed")
    if MODES.index(last.mode) < MODES.index(job.job.mode):
        return ToDo(job.job.mode, f"the last run's mode was {last.mode}")
    for name, place in job.output.places.items():
        if not _is_intact(last, name, place):
            return ToDo("fill", f"{place} isn't what was published")
    return ToDo("nothing", f"input and settings are those of run {last.run}")


def model_settings(job: Job) -> str:
    """Return a digest of the settings that make another model."""
    read = job.input.model_dump(mode="json", exclude={"path", "mask"})
    effort = {"patience", "restarts"}
    return _digest([read, job.model.model_dump(mode="json", exclude=effort)])


def solver_settings(job: Job) -> str:
    """Return a digest of the settings that make the same model, closer or farther."""
    effort = job.model.model_dump(mode="json", include={"patience", "restarts"})
    return _digest([effort, job.solver.model_dump(mode="json")])


def named(place: str) -> str:
    """Return what a manifest calls a place: who reads it needn't be allowed there."""
    return str(without_secrets(place))


def input_versions(job: Job) -> dict[str, str | None]:
    """Return the versions of the places that are read, as they are now."""
    places = [job.input.path, job.input.mask]
    return {named(place): version_of(place) for place in places if place is not None}


def read_manifest(place: str) -> Manifest | None:
    """Return the manifest at a place; None if there is none.

    Raises
    ------
    ValueError
        It is damaged, or a newer dmf has written it.
    """
    content = _read(place)
    return None if content is None else Manifest.from_json(json.loads(content))


def write_json(value: Any, place: str) -> None:
    """Write a JSON file in one step."""
    write_whole(json.dumps(value, indent=1).encode(), place)


def _read(place: str) -> bytes | None:
    try:
        if is_url(place):
            return read_bytes(place)
        with open(place, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _is_intact(last: Manifest, name: str, place: str) -> bool:
    version = version_of(place)
    return version is not None and last.outputs.get(name) == [
        named(place),
        version,
    ]


def _check_own(folder: str) -> None:
    """Refuse a folder where others could plant a journal or hold a lock."""
    info = os.lstat(folder)
    own = not hasattr(os, "getuid") or info.st_uid == os.getuid()
    if not (stat.S_ISDIR(info.st_mode) and own and not info.st_mode & 0o022):
        msg = (
            f"others may write to {folder}, where locks are kept; remove it, or set "
            "TMPDIR to a folder of your own"
        )
        raise PermissionError(msg)


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return blake2b(text.encode(), digest_size=16).hexdigest()
