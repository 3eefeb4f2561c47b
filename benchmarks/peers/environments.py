"""An environment for each peer, because their requirements contradict each other.

    python -m benchmarks.peers.environments

Environments are made at their first use under `.peers` in the root of the repository,
and made anew when the requirements below change. dmf runs in the environment that
runs the benchmark.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".peers"  # everything that the benchmark makes; git ignores it
# SciPy and threadpoolctl are named where a peer uses them without asking for them, or
# the code that fits does.
REQUIREMENTS = {
    "cmfrec": ("cmfrec==3.5.1.post14", "threadpoolctl"),
    # Compiled with the options of LIBMF's own makefile (AVX, OpenMP) it isn't faster.
    "libmf": ("libmf==0.9.2", "scipy"),
    "lenskit": ("lenskit==2025.8.1",),
    "spark": ("pyspark==4.3.0", "pandas==2.3.3", "pyarrow==21.0.0", "scipy"),
    "surprise": ("scikit-surprise==1.1.5", "pandas", "scipy"),
    "smurff": ("smurff==1.1", "scipy"),
    "implicit": ("implicit==0.7.3", "threadpoolctl"),
    "sklearn": ("scikit-learn==1.9.1",),
    # Its last release needs what newer scikit-learn and NumPy have dropped.
    "fancyimpute": ("fancyimpute==0.7.0", "scikit-learn<1.6", "numpy<2"),
}
JAVA_AT_LEAST = 17


class UnavailableError(Exception):
    """A peer that can't run here; the message is the reason, in one line."""


def python_for(environment: str) -> str:
    """Return the interpreter that runs a system; make its environment if need be."""
    if environment == "dmf":
        return sys.executable
    if environment == "spark":
        check_java()
    folder = PEERS / environment
    wanted = "\n".join(REQUIREMENTS[environment])
    stamp = folder / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        install(folder, REQUIREMENTS[environment])
        stamp.write_text(wanted)
    return str(interpreter(folder))


def interpreter(folder: Path) -> Path:
    scripts = "Scripts" if sys.platform == "win32" else "bin"
    return folder / scripts / "python"


def install(folder: Path, requirements: tuple[str, ...]) -> None:
    print(f"installing {', '.join(requirements)} …", file=sys.stderr, flush=True)
    PEERS.mkdir(exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    pip = [str(interpreter(folder)), "-m", "pip", "install", "--quiet"]
    done = subprocess.run([*pip, *requirements], capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines
        reason = errors[0].strip() if errors else f"exit status {done.returncode}"
        msg = f"pip could not install {' '.join(requirements)}: {reason}"
        raise UnavailableError(msg)


def check_java() -> None:
    needs = f"Spark needs Java {JAVA_AT_LEAST} or newer"
    try:
        shown = subprocess.run(["java", "-version"], capture_output=True, text=True)
    except FileNotFoundError:
        msg = f"{needs}, and there is no java on the path"
        raise UnavailableError(msg) from None
    version = re.search(r'version "(\d+)', shown.stderr)
    if version is None or int(version[1]) < JAVA_AT_LEAST:
        found = shown.stderr.splitlines()[0] if shown.stderr else "nothing it can read"
        msg = f"{needs}; java -version says {found}"
        raise UnavailableError(msg)


def main() -> None:
    for environment in REQUIREMENTS:
        try:
            print(f"{environment:<10} {python_for(environment)}")
        except UnavailableError as error:
            print(f"{environment:<10} not available: {error}")


if __name__ == "__main__":
    main()
