"""The record of a run: all that its report shows, as plain values in a JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dmf.io.places import write_whole

FILE = "run.json"
# What ids look like: only folders of this name are ever removed.
RUN_ID = r"\d{8}T\d{6}-[0-9a-f]{6}"


@dataclass
class RunRecord:
    """What a run was asked, what it met, and what came of it.

    Parameters
    ----------
    name : str
        Of the job.
    id : str
        Of the run: its start in UTC and a few letters; the name of its folder.
    started : str
        In UTC, ISO 8601.
    seconds : float
        From start to end.
    code : int
        The exit code, and in words:
    outcome : str
    message : str
        The sentence that the run ended with.
    versions : dict
        Of dmf, Python and the main libraries.
    settings : dict
        The job as it was read, with credentials taken out.
    input : dict
        place, version, shape, dtype, kind, observed (entries) and missing (share).
    plan : dict
        What was predicted: grid, tasks (a round), bytes (of the fullest worker, with
        data, factors and temporaries apart) and seconds (a round).
    measured : dict
        What happened: seconds (a round) and peak_bytes (of the fullest process).
    stages : list of (name, seconds)
    rounds : list of dict
        The fields of `dmf.history.Record`.
    validation : dict
        rmse and mae on held-out entries, last_rmse (of the run before, if there is
        one). Empty without any.
    findings : dict
        What `dmf.jobs.findings.find` has returned. Empty if nothing was fitted.
    output : dict
        Places by what they hold: matrix, mask, model.
    warnings : list of str
    """

    name: str
    id: str
    started: str
    seconds: float = 0.0
    code: int = 0
    outcome: str = ""
    message: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    input: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    stages: list[tuple[str, float]] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    validation: dict[str, float] = field(default_factory=dict)
    findings: dict[str, Any] = field(default_factory=dict)
    output: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write the record to its folder, in one step."""
        content = json.dumps(asdict(self), indent=1).encode()
        write_whole(content, str(folder / FILE))

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """Read the record in a folder.

        Raises
        ------
        FileNotFoundError
            There is none.
        ValueError
            It is damaged, or of another version.
        """
        path = folder / FILE
        if not path.is_file():
            msg = f"there is no record of a run in {folder}; name the folder of a run"
            raise FileNotFoundError(msg)
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
            known = {one.name for one in fields(cls)}
            return cls(
                **{name: value for name, value in given.items() if name in known}
            )
        except (ValueError, TypeError, AttributeError) as error:
            msg = f"{path} isn't the record of a run, or it is damaged ({error})"
            raise ValueError(msg) from error
