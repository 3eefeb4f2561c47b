"""Metrics of a run as a text file, which the node exporter of Prometheus collects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dmf.jobs import pages
from dmf.jobs.record import RunRecord
from dmf.jobs.summary import began, known, summary

# What each metric is; all are gauges.
HELP = {
    "info": "The last run: what it is called, and how it ended; always 1.",
    "exit_code": "The exit code of the last run; 0 if all went well.",
    "start_timestamp_seconds": "When the last run began, since the epoch.",
    "end_timestamp_seconds": "When the last run ended, since the epoch.",
    "duration_seconds": "How long the last run took.",
    "stage_seconds": "How long a stage of the last run took.",
    "input_rows": "Rows of the matrix.",
    "input_columns": "Columns of the matrix.",
    "input_observed_entries": "Observed entries of the matrix.",
    "input_missing_ratio": "The share of its cells that are missing.",
    "rounds": "Rounds of the fit.",
    "rmse": "Root mean square error on the observed entries.",
    "validation_rmse": "Root mean square error on held-out entries.",
    "validation_mae": "Mean absolute error on held-out entries.",
    "validation_last_rmse": "The validation_rmse of the run before.",
    "round_seconds": "How long a round took.",
    "planned_round_seconds": "How long a round was predicted to take.",
    "peak_bytes": "Most memory that a process took.",
    "warnings": "Warnings of the run.",
}


def write_metrics(record: RunRecord, path: Path) -> Path:
    """Write the metrics of a run for node_exporter's textfile collector, in one step.

    All are called ``dmf_run_…`` and carry the label ``name``, that of the job. What a
    run has no number for is left out.

    Parameters
    ----------
    record : RunRecord
    path : Path
        A file with the ending ``.prom`` in the folder of the collector; one for each
        job, because a file is replaced as a whole.

    Raises
    ------
    ValueError
        The ending is another one, which the collector would pass over.
    OSError
        It can't be written.

    References
    ----------
    .. [1] Prometheus, "Exposition formats", text-based format, version 0.0.4.
    """
    if path.suffix != ".prom":
        msg = (
            f"the metrics would go to {path.name}, but Prometheus' collector reads "
            f"files that end in .prom only; call it {path.stem}.prom"
        )
        raise ValueError(msg)
    return pages.write(metrics(record), path)


def metrics(record: RunRecord) -> str:
    """Return the metrics of a run in the text format: see `write_metrics`."""
    lines = []
    for name, samples in _families(record):
        found = [(labels, known(value)) for labels, value in samples]
        if all(value is None for _, value in found):
            continue
        lines += [f"# HELP dmf_run_{name} {HELP[name]}", f"# TYPE dmf_run_{name} gauge"]
        for labels, value in found:
            if value is not None:
                own = _labels({"name": record.name} | labels)
                lines.append(f"dmf_run_{name}{{{own}}} {_written(value)}")
    return "\n".join(lines) + "\n"


Samples = list[tuple[dict[str, str], Any]]


def _families(record: RunRecord) -> Iterator[tuple[str, Samples]]:
    """Go through the names of metrics and their values, by their labels."""
    short = summary(record)
    start = began(record).timestamp()
    about = {
        "id": record.id,
        "outcome": short.outcome,
        "version": record.versions.get("dmf", ""),
    }
    # One line for each set of labels: stages of one name are one stage.
    stages: dict[str, float] = {}
    for stage, seconds in record.stages:
        stages[stage] = stages.get(stage, 0.0) + seconds
    yield "info", [(about, 1)]
    yield "stage_seconds", [({"stage": name}, took) for name, took in stages.items()]
    values = {
        "exit_code": record.code,
        "start_timestamp_seconds": start,
        "end_timestamp_seconds": start + record.seconds,
        "duration_seconds": record.seconds,
        "input_rows": short.rows,
        "input_columns": short.columns,
        "input_observed_entries": short.observed,
        "input_missing_ratio": short.missing,
        "rounds": short.rounds,
        "rmse": short.rmse,
        "validation_rmse": short.validation_rmse,
        "validation_mae": record.validation.get("mae"),
        "validation_last_rmse": short.last_rmse,
        "round_seconds": record.measured.get("seconds"),
        "planned_round_seconds": record.plan.get("seconds"),
        "peak_bytes": record.measured.get("peak_bytes"),
        "warnings": len(record.warnings),
    }
    for name, value in values.items():
        yield name, [({}, value)]


def _labels(labels: dict[str, str]) -> str:
    return ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _written(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
