"""A table whose window slides: what is held out stays so from run to run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from tests.jobs import manifest_in, run_job

JOB = """
[job]
mode = "warm"
[input]
path = "X.csv"
index = "day"
[model]
rank = 8
validation = 0.1
[output]
model = "model.zarr"
"""


def test_warm_runs_learn_nothing_of_what_is_held_out(tmp_path: Path) -> None:
    """Of noise, a model that has seen the entries is better than an honest one."""
    rng = np.random.default_rng(0)
    days = [f"day {k}" for k in range(203)]
    whole = pd.DataFrame(rng.standard_normal((203, 60)), pd.Index(days, name="day"))
    job = tmp_path / "job.toml"
    job.write_text(JOB)
    for first in range(4):
        whole.iloc[first : first + 200].to_csv(tmp_path / "X.csv")
        run_job(job)
    warm = manifest_in(tmp_path)
    assert warm["mode"] == "warm"
    run_job(job, "--set", "job.mode=full")
    full = manifest_in(tmp_path)
    assert full["mode"] == "full"
    assert warm["result"]["rmse"] > 0.99 * full["result"]["rmse"]
