"""Pages in HTML: templates, how numbers are written in them, and what they need."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import dmf
from dmf.io.places import write_whole
from dmf.jobs.summary import known

# In words from here on: 90 s is 1 min 30 s.
UNITS = ((86400, "d", "h", 3600), (3600, "h", "min", 60), (60, "min", "s", 1))
PREFIXES = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


def render(template: str, **values: Any) -> str:
    """Return a page of its own: it names no other file, and has no script.

    Raises
    ------
    ImportError
        jinja2 or matplotlib isn't installed; the message says how to install it.
    """
    page: str = _environment().get_template(template).render(dmf=dmf, **values)
    # What templates leave between their blocks.
    return "\n".join(line.rstrip() for line in page.splitlines() if line.strip()) + "\n"


def require(module: str) -> Any:
    """Import a module that only reports need."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        msg = f"reports need {package}; install it with: pip install 'dmf[jobs]'"
        raise ImportError(msg, name=package) from error


def write(text: str, path: Path) -> Path:
    """Write a file in one step: who reads it never sees a part."""
    write_whole(text.encode(), str(path))
    return path


@cache
def _environment() -> Any:
    jinja2 = require("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dmf", "jobs"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "percent": percent,
        "seconds": seconds,
        "size": size,
        "moment": moment,
        "plain": plain,
        "leaves": leaves,
    }
    return environment


# ------------------------------------------------------------------------------ numbers


def number(value: Any) -> str:
    """Return a number with the digits that matter; a dash for none."""
    given = known(value)
    if given is None:
        return "–"
    if given == int(given) and abs(given) < 1e15:
        return f"{int(given):,}".replace("-", "−")
    text = f"{given:,.0f}" if 1e4 <= abs(given) < 1e9 else f"{given:.4g}"
    return text.replace("-", "−")


def decimal(value: float, decimals: int) -> str:
    """Return a number with so many decimals, for columns of them."""
    return f"{value:,.{decimals}f}".replace("-", "−")


def brief(value: float) -> str:
    """Return a number as it is written beside an axis."""
    for power, unit in ((9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10 ** (power + (power == 3)):
            return f"{value / 10**power:.4g}{unit}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def percent(value: Any) -> str:
    """Return a share as a percentage; never 0% or 100% for what is only close to it."""
    share = known(value)
    if share is None:
        return "–"
    if share in (0.0, 1.0):
        return f"{share:.0%}"
    near = min(abs(share), abs(1 - share))
    return f"{share:.1%}" if near >= 0.001 else f"{100 * share:.4g}%"


def seconds(value: Any) -> str:
    """Return a time in the one or two units that matter."""
    given = known(value)
    if given is None:
        return "–"
    if given < 1:
        return f"{1000 * given:.3g} ms"
    whole = round(given)
    for length, unit, smaller, part in UNITS:
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{given:.3g} s"


def size(value: Any) -> str:
    """Return a number of bytes."""
    given = known(value)
    if given is None:
        return "–"
    power = 0
    while abs(given) >= 1024 and power + 1 < len(PREFIXES):
        given, power = given / 1024, power + 1
    return f"{given:.3g} {PREFIXES[power]}"


def moment(started: str) -> str:
    """Return a time in UTC as people write it."""
    return f"{started[:10]} {started[11:16]} UTC"


def plain(value: Any) -> str:
    """Return a setting as it is written in a file."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    return "–" if value is None else str(value)


def leaves(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Go through settings in tables of tables: ("model.rank", 8)."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
