"""Arrows point down: what may import what, and what is said about the public names."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import dmf

PACKAGE = Path(dmf.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 420  # "about 400"

# What takes long to import, and what not every user needs.
HEAVY = (
    "PIL",
    "cupy",
    "distributed",
    "matplotlib",
    "numba",
    "pandas",
    "rich",
    "sklearn",
    "zarr",
)


def name_of(path: Path) -> str:
    """Return the dotted name of a module of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk through a module, but not into its `if TYPE_CHECKING:` blocks."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other
                yield from nodes(other)
            continue
        yield child
        yield from nodes(child)


@cache
def imports(path: Path) -> frozenset[str]:
    """Return all that a file imports, also inside functions: "module.name"."""
    found = set()
    for node in nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where an arrow points"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def within(name: str, *packages: str) -> bool:
    return any(name == p or name.startswith(f"{p}.") for p in packages)


def files_of(*packages: str) -> list[Path]:
    return [path for path in FILES if within(name_of(path), *packages)]


def offenders(paths: list[Path], *forbidden: str) -> list[str]:
    assert paths
    return [
        f"{name_of(path)} imports {name}"
        for path in paths
        for name in sorted(imports(path))
        if within(name, *forbidden)
    ]


TOP = (
    "dmf._calibrate",
    "dmf._candidates",
    "dmf._checkpoint",
    "dmf._commands",
    "dmf._factorize",
    "dmf._fold",
    "dmf._impute",
    "dmf._job_commands",
    "dmf._options",
    "dmf._plan",
    "dmf._predict",
    "dmf._settings",
    "dmf._shell",
    "dmf._split",
    "dmf._sweep",
    "dmf.cli",
    "dmf.containers",
    "dmf.demo",
    "dmf.ensemble",
    "dmf.estimator",
    "dmf.factorize",
    "dmf.impute",
    "dmf.imputer",
    "dmf.jobs",
    "dmf.plots",
    "dmf.progress",
    "dmf.triplets",
)
# What a fit is about, as plain rules and formulas.
RULES = (
    "dmf.entries",
    "dmf.history",
    "dmf.holdout",
    "dmf.init",
    "dmf.objective",
    "dmf.observed",
    "dmf.offsets",
    "dmf.penalties",
    "dmf.result",
    "dmf.secrets",
    "dmf.totals",
    "dmf.validation",
)


def test_the_scan_sees_imports() -> None:
    """Also inside functions, but not those for the type checker."""
    runner = PACKAGE / "engine" / "runner.py"
    assert within("distributed.Client", "distributed")
    assert "distributed.default_client" in imports(runner)
    assert "distributed.Client" not in imports(runner)
    assert "dask.base.persist" in imports(runner)
    assert "dmf.kernels.sparse" in imports(PACKAGE / "kernels" / "__init__.py")


def test_kernels_know_nothing_above_them() -> None:
    above = ("dmf.solvers", "dmf.engine", "dmf.io", *RULES, *TOP)
    assert offenders(files_of("dmf.kernels"), *above) == []


def test_one_module_knows_cupy() -> None:
    """And nothing of dmf: whatever moves arrays may ask it."""
    (own,) = files_of("dmf.device")
    others = [path for path in FILES if path != own]
    assert offenders(others, "cupy", "cupyx") == []
    assert offenders([own], "dmf") == []


def test_solvers_know_kernels_only_by_what_they_are_given() -> None:
    above = ("dmf.kernels", "dmf.engine", "dmf.io", "dmf.observed", "dmf.result", *TOP)
    found = offenders(files_of("dmf.solvers"), *above)
    # Formulas on strips are the same for all blocks: they aren't chosen.
    assert [name for name in found if " dmf.kernels.strips." not in name] == []


def test_rules_know_no_engine() -> None:
    rules = files_of(*RULES)
    assert len(rules) == len(RULES)
    assert offenders(rules, "dmf.engine") == []
    # Methods of a `Factorization` are doors to the functions above it.
    doors = files_of("dmf.result")
    assert offenders([path for path in rules if path not in doors], *TOP) == []
    found = [name for name in imports(*doors) if within(name, *TOP)]
    assert found
    assert all(within(name, "dmf._fold", "dmf._predict") for name in found)
    # `Factorization.save` is where a result meets a disk: nothing else does.
    assert offenders(rules, "dmf.io") == ["dmf.result imports dmf.io.model.save"]


def test_the_engine_knows_nothing_above_it() -> None:
    assert offenders(files_of("dmf.engine"), "dmf.io", *TOP) == []


def test_io_knows_no_command_line() -> None:
    assert offenders(files_of("dmf.io"), "dmf.cli", "dmf.demo", "dmf.plots") == []


def test_only_the_engine_and_io_know_dask() -> None:
    others = [p for p in FILES if p not in files_of("dmf.engine", "dmf.io")]
    assert offenders(others, "dask", "distributed") == []


def test_the_engine_knows_no_mathematics() -> None:
    assert offenders(files_of("dmf.engine"), "scipy", "numba", "numpy.linalg") == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_public_names_of_dask_only(path: Path) -> None:
    """Private ones change without notice."""
    private = [
        name
        for name in imports(path)
        if within(name, "dask", "distributed") and "._" in name
    ]
    assert private == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


def modules_after(code: str) -> set[str]:
    """Return which of the heavy modules a fresh interpreter has after some code."""
    lines = [code, "import sys", f"print([n for n in {HEAVY} if n in sys.modules])"]
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(ast.literal_eval(found.stdout))


def test_import_is_light() -> None:
    assert modules_after("import dmf") == set()


def test_a_fit_loads_what_it_needs() -> None:
    fit = "import numpy, dmf; dmf.factorize({}, 2, max_rounds=2)"
    gaps = "numpy.where(numpy.eye(4) == 1, numpy.nan, 1.0)"
    for X in ("numpy.eye(4)", gaps):
        # Dask itself looks for a client of distributed, unless it's told a scheduler.
        assert modules_after(fit.format(X)) <= {"distributed", "numba"}
    # Some versions of scikit-learn import pandas where it's installed.
    own = modules_after("import sklearn.base")
    assert "sklearn" in own
    assert modules_after("import dmf; dmf.MatrixFactorization") == own


# What is said about the public names.


def test_public_names() -> None:
    assert list(dmf.__all__) == sorted(dmf.__all__)
    assert dir(dmf) == dmf.__all__
    for name in dmf.__all__:
        assert getattr(dmf, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'dmf' has no attribute 'fit'"):
        _ = dmf.fit


def test_nothing_public_is_left_out() -> None:
    """What the package imports at its top is what it offers."""
    classes_and_functions = {
        name
        for name, value in vars(dmf).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and name not in ("annotations", "Any", "SCIKIT_LEARN")
    }
    assert classes_and_functions | set(dmf.SCIKIT_LEARN) == set(dmf.__all__)


def sections(documented: Any) -> dict[str, str]:
    """Return the sections of a docstring in numpydoc's format."""
    pieces = re.split(r"^(.+)\n-{3,}\n", inspect.getdoc(documented) or "", flags=re.M)
    return {"Summary": pieces[0]} | dict(zip(pieces[1::2], pieces[2::2], strict=True))


def described(text: str) -> set[str]:
    """Return the parameters that a section describes: "a, b : type" or "a, b"."""
    heads = [line for line in text.splitlines() if line and not line.startswith(" ")]
    return {
        name.strip(" *") for head in heads for name in head.split(":")[0].split(",")
    }


@pytest.mark.parametrize("name", dmf.__all__)
def test_docstrings_describe_every_parameter(name: str) -> None:
    value = getattr(dmf, name)
    found = sections(value)
    assert found["Summary"].splitlines()[0].endswith(".")
    parameters = set(inspect.signature(value).parameters)
    assert described(found.get("Parameters", "")) == parameters


PUBLIC_METHODS = [
    (name, method)
    for name in dmf.__all__
    if isinstance(getattr(dmf, name), type)
    for method, value in vars(getattr(dmf, name)).items()
    if not method.startswith("_") and inspect.isfunction(value)
]
# Of protocols of this library, documented there; and of a few words only.
PLAIN_METHODS = {"half_step", "check", "lengths", "ridge", "lasso"}


@pytest.mark.parametrize(
    ("name", "method"), [m for m in PUBLIC_METHODS if m[1] not in PLAIN_METHODS]
)
def test_methods_have_docstrings(name: str, method: str) -> None:
    value = getattr(getattr(dmf, name), method)
    found = sections(value)
    assert found["Summary"].strip()
    names = set(inspect.signature(value).parameters) - {"self"}
    if "Parameters" in found:
        assert described(found["Parameters"]) == names


@pytest.mark.parametrize("name", ["factorize", "impute", "load", "MatrixFactorization"])
def test_main_names_have_examples(name: str) -> None:
    assert ">>> " in sections(getattr(dmf, name))["Examples"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_modules_say_what_they_are(path: Path) -> None:
    said = ast.get_docstring(ast.parse(path.read_text()))
    assert said
    assert said.splitlines()[0].endswith(".")
