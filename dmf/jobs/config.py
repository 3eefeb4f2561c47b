"""What a job file may say: its sections, their keys, and what values they take."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    model_validator,
)

from dmf._options import SECONDS, read_time
from dmf.engine.tls import Tls
from dmf.io.places import is_url
from dmf.io.tables import SUFFIXES, Columns, suffix_of
from dmf.jobs.apart import JOB, check_apart


def _in_full(place: str, info: ValidationInfo) -> str:
    """Return a URL as it is, and a path in full, seen from the folder of the job."""
    if not place or "\0" in place:
        msg = "must be a path or a URL"
        raise ValueError(msg)
    place = place.removeprefix("file://")
    folder = (info.context or {}).get("folder", ".")
    return place if is_url(place) else os.path.abspath(os.path.join(folder, place))


def _seconds(given: Any) -> Any:
    time = read_time(given) if isinstance(given, str) else None
    if time is not None:
        return time.total_seconds()
    if isinstance(given, bool) or not isinstance(given, int | float):
        msg = "must be seconds, or a time such as 90s, 10min or 2h"
        raise ValueError(msg)
    return given


def _rounds_or_time(given: Any) -> Any:
    time = read_time(given) if isinstance(given, str) else None
    whole = isinstance(given, int) and not isinstance(given, bool) and given >= 1
    if not (whole or time):
        msg = "must be a number of rounds above 0, or a time such as 90s, 10min or 2h"
        raise ValueError(msg)
    return time or given


def _penalty(given: Any) -> Any:
    if isinstance(given, dict | PenaltySection) or given is None:
        return given
    if given != "auto":
        msg = 'must be "auto", or a table with ridge, by_count, lasso, non_negative'
        raise ValueError(msg)
    return None


def _given(places: dict[str, str | None]) -> dict[str, str]:
    return {key: place for key, place in places.items() if place is not None}


def _told(every: int | timedelta) -> int | str:
    """Return rounds, or a time as it could be given."""
    if isinstance(every, int):
        return every
    seconds = int(every.total_seconds())
    name, unit = next(
        (name, unit) for name, unit in reversed(SECONDS.items()) if seconds % unit == 0
    )
    return f"{seconds // unit}{name}"


Place = Annotated[str, AfterValidator(_in_full)]
Text = Annotated[str, Field(min_length=1)]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0, allow_inf_nan=False)]
# 0 would be no limit to Dask.
Waiting = Annotated[float, BeforeValidator(_seconds), Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
# Finite: TOML can write inf and nan as well.
Real = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Between = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class Section(BaseModel):
    """A table of a job file: exactly these keys, of exactly these types."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, protected_namespaces=()
    )


class JobSection(Section):
    name: Text | None = None
    mode: Literal["warm", "full", "fold-in"] = "warm"
    strict: bool = False
    wait: Seconds = 600.0


class InputSection(Section):
    path: Place
    mask: Place | None = None
    row: Text | None = None
    column: Text | None = None
    value: Text | None = None
    weight: Text | None = None
    index: Text | None = None
    variable: Text | None = None
    duplicates: Literal["error", "mean", "sum", "last"] = "error"

    @property
    def columns(self) -> Columns:
        return Columns(self.row, self.column, self.value, self.weight, self.index)

    @model_validator(mode="after")
    def _check_columns(self) -> InputSection:
        self.columns.long  # noqa: B018 - it refuses what doesn't go together
        if self.columns != Columns() and suffix_of(self.path) not in SUFFIXES:
            msg = (
                f"{self.path} isn't a table ({', '.join(SUFFIXES)}), and has no "
                "columns to name; leave them out"
            )
            raise ValueError(msg)
        return self


class PenaltySection(Section):
    ridge: Real = 0.0
    by_count: bool = False
    lasso: Real = 0.0
    non_negative: bool = False


class ModelSection(Section):
    rank: Count
    offsets: Literal["none", "global", "rows", "columns", "both"] = "none"
    # None: "auto".
    penalty: Annotated[PenaltySection | None, BeforeValidator(_penalty)] = None
    unobserved_weight: Share = 0.0
    validation: Between | None = None
    patience: Count = 10
    restarts: Count = 1
    seed: Annotated[int, Field(ge=0)] = 0


class SolverSection(Section):
    name: Literal["plane", "scaled", "exact", "als"] = "plane"
    max_rounds: Count = 200
    tol: Real = 1e-4
    device: Literal["auto", "cpu", "gpu"] = "auto"


class Threads(Section):
    kind: Literal["threads"] = "threads"
    threads: Count | None = None


class Processes(Section):
    kind: Literal["processes"]
    workers: Count
    timeout: Waiting = 600.0


class Scheduler(Section):
    kind: Literal["scheduler"]
    address: Text
    tls_ca: Place | None = None
    tls_cert: Place | None = None
    tls_key: Place | None = None

    @property
    def tls(self) -> Tls:
        return Tls(self.tls_ca, self.tls_cert, self.tls_key)


class Slurm(Section):
    kind: Literal["slurm"]
    jobs: Count
    cores: Count
    memory: Text
    processes: Count = 1
    queue: Text | None = None
    account: Text | None = None
    walltime: Text | None = None
    interface: Text | None = None
    local_directory: Place | None = None
    log_directory: Place | None = None
    directives: list[Text] = []
    prologue: list[Text] = []
    timeout: Waiting = 600.0


class Kubernetes(Section):
    kind: Literal["kubernetes"]
    name: Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,50}[a-z0-9])?$")] = "dmf"
    namespace: Text | None = None
    image: Text
    workers: Count
    cores: Real | None = None
    memory: Text | None = None
    env: dict[str, str] = {}
    timeout: Waiting = 600.0


CLUSTERS: dict[str, type[Section]] = {
    "threads": Threads,
    "processes": Processes,
    "scheduler": Scheduler,
    "slurm": Slurm,
    "kubernetes": Kubernetes,
}
ClusterSection = Annotated[
    Threads | Processes | Scheduler | Slurm | Kubernetes,
    Field(discriminator="kind"),
]


class CheckpointSection(Section):
    path: Place | None = None
    every: Annotated[
        int | timedelta,
        BeforeValidator(_rounds_or_time),
        PlainSerializer(_told, when_used="json"),
    ] = 20


class OutputSection(Section):
    model: Place
    matrix: Place | None = None
    mask: Place | None = None

    @model_validator(mode="after")
    def _check(self) -> OutputSection:
        if self.mask is not None and self.matrix is None:
            msg = "mask says which cells of matrix are imputed; give matrix as well"
            raise ValueError(msg)
        if self.mask is not None and suffix_of(self.mask) in SUFFIXES:
            msg = f"mask must end in .npy or .zarr, got {self.mask}"
            raise ValueError(msg)
        return self

    @property
    def places(self) -> dict[str, str]:
        """What is written, in the order in which it's published."""
        return {
            name: place
            for name in ("matrix", "mask", "model")
            if (place := getattr(self, name)) is not None
        }


class GuardsSection(Section):
    worsened: Real = 0.1
    missing: Share = 1.0


class ReportSection(Section):
    folder: Place | None = None
    prometheus: Place | None = None
    keep: Count = 100


class LogSection(Section):
    format: Literal["human", "json"] = "human"
    level: Literal["debug", "info", "warning"] = "info"
    file: Place | None = None


class Job(Section):
    """A job, as checked: see `dmf/jobs/example.toml` for what the keys mean."""

    job: JobSection = JobSection()
    input: InputSection
    model: ModelSection
    solver: SolverSection = SolverSection()
    cluster: ClusterSection = Threads()
    checkpoint: CheckpointSection = CheckpointSection()
    output: OutputSection
    guards: GuardsSection = GuardsSection()
    report: ReportSection = ReportSection()
    log: LogSection = LogSection()

    @model_validator(mode="after")
    def _check_together(self, info: ValidationInfo) -> Job:
        if "worsened" in self.guards.model_fields_set and not self.model.validation:
            msg = (
                "guards.worsened compares errors on held-out entries; hold some out "
                "with model.validation, such as 0.1"
            )
            raise ValueError(msg)
        read = {
            JOB: (info.context or {}).get("file"),
            "input.path": self.input.path,
            "input.mask": self.input.mask,
        }
        written = {
            "checkpoint.path": self.checkpoint_place,
            **{f"output.{key}": place for key, place in self.output.places.items()},
            "report.folder": self.report.folder,
            "report.prometheus": self.report.prometheus,
            "log.file": self.log.file,
        }
        check_apart(_given(read), _given(written))
        return self

    @property
    def checkpoint_place(self) -> str:
        return self.checkpoint.path or f"{self.output.model}.checkpoint"

    def name_in(self, path: Path) -> str:
        """Return the name of the job in a file: by default, that of the file."""
        return self.job.name or path.stem
