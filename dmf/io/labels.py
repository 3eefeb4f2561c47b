"""Labels of rows and columns as JSON: strings, numbers, bools and times."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from dmf.labels import Index, Labels

# The units of time that pandas counts in.
TIME_KINDS = "mM"


def describe_labels(labels: Labels) -> str:
    """Return labels as JSON.

    Raises
    ------
    TypeError
        Some are of another type: a model holds no code that could make them again.
    """
    return json.dumps(
        {axis: _describe(getattr(labels, axis), axis) for axis in ("rows", "columns")}
    )


def rebuild_labels(text: str) -> Labels:
    """The inverse of `describe_labels`. What kind of table X was isn't kept."""
    described = json.loads(text)
    return Labels(_rebuild(described["rows"]), _rebuild(described["columns"]), {})


def _describe(index: Index, axis: str) -> dict[str, Any]:
    described: dict[str, Any] = {"name": index.name}
    if index.dtype.kind in TIME_KINDS:
        zone = getattr(index, "tz", None)
        plain = index.tz_convert("UTC").tz_localize(None) if zone else index
        counted = plain.to_numpy()
        described |= {
            "dtype": str(counted.dtype),
            "zone": None if zone is None else str(zone),
            "values": counted.astype(np.int64).tolist(),
        }
    else:
        described |= {"dtype": None, "zone": None, "values": index.tolist()}
    plain_kinds = (str, int, float, bool)
    bad = [v for v in described["values"] if not isinstance(v, plain_kinds)]
    if bad or not isinstance(index.name, str | None):
        value = bad[0] if bad else index.name
        msg = (
            f"{value!r}, a label of the {axis}, can't be saved, because a model holds "
            "strings, numbers and times only; save dataclasses.replace(fit, "
            "labels=None), or rename the labels"
        )
        raise TypeError(msg)
    return described


def _rebuild(described: dict[str, Any]) -> Index:
    import pandas as pd

    values, name = described["values"], described["name"]
    if described["dtype"] is None:
        return pd.Index(values, name=name)
    counted = np.array(values, dtype=np.int64).astype(described["dtype"])
    index = pd.Index(counted, name=name)
    if described["zone"] is not None:
        index = index.tz_localize("UTC").tz_convert(described["zone"])
    return index
