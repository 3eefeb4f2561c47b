"""Fits that stop, in whatever way, and go on as if they never had."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp

import dmf
from dmf import _candidates
from dmf.engine.checkpoint import Checkpoints
from dmf.engine.fingerprint import digest
from dmf.engine.loading import load
from dmf.engine.losses import MAX_LOSSES
from dmf.engine.store import UnreadableError
from dmf.io.checkpoints import MANIFEST, CheckpointStore, Receipt
from tests.problems import low_rank

PROBLEM = low_rank(60, 40, 3)
SETTINGS: dict[str, Any] = {"max_rounds": 30, "tol": 0, "progress": False}


class Accident(Exception):
    """Something that strikes a fit from outside."""


def accident_in(round: int) -> Any:
    def strike(record: dmf.Record) -> None:
        if record.round == round:
            raise Accident

    return strike


def fit(folder: Path | str | None = None, X: Any = None, **settings: Any) -> Any:
    X = PROBLEM.nan if X is None else X
    if folder is not None:
        saved = {"checkpoint": folder, "checkpoint_every": 4, "resume": True}
        settings = saved | settings
    return dmf.factorize(X, **{"rank": 3} | SETTINGS | settings)


def assert_same(found: Any, expected: Any) -> None:
    """Bit by bit, but for the time that it took."""
    for name in ("W", "H", "row_offsets", "column_offsets"):
        first, second = getattr(found, name), getattr(expected, name)
        np.testing.assert_array_equal(np.asarray(first), np.asarray(second))
    for name in ("status", "objectives", "certificate", "penalty", "offset"):
        assert getattr(found, name) == getattr(expected, name)
    columns, others = (one.history.to_dict() for one in (found, expected))
    for name in columns.keys() - {"seconds"}:
        np.testing.assert_array_equal(columns[name], others[name])
    assert np.all(np.diff(columns["seconds"]) >= 0)


def in_memory(found: Any) -> Any:
    """Return a fit whose factors outlive a cluster."""
    return replace(found, W=np.asarray(found.W), H=np.asarray(found.H))


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


def break_off(folder: Path | str, rounds: list[int], **settings: Any) -> None:
    for round in rounds:
        with pytest.raises(Accident):
            fit(folder, callbacks=[accident_in(round)], **settings)


CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "restarts": {"restarts": 3},
    "restarts that end": {"restarts": 3, "drop": False, "tol": 1e-2},
    "validation": {"validation": 0.1, "patience": 3},
    "restarts, validation": {"restarts": 3, "validation": 0.1, "patience": 2},
    "lasso": {"penalty": dmf.Lasso(0.1)},
    "smooth": {"penalty": (dmf.Smooth(1.0), None)},
    "offsets": {"offsets": "both", "check_every": 3},
    "als": {"solver": dmf.AlternatingLeastSquares()},
    "descent": {"solver": dmf.NormalizedGradient("global", dmf.Decay(1e-2))},
    "sparse": {"X": sp.csr_array(np.nan_to_num(PROBLEM.nan)), "unobserved_weight": 0.1},
    "dask": {"X": da.from_array(PROBLEM.nan, chunks=(30, 20))},
}


@pytest.mark.parametrize("case", CASES)
def test_a_fit_goes_on_bit_by_bit(case: str, tmp_path: Path) -> None:
    settings = CASES[case]
    expected = fit(**settings)
    last = len(expected.history)
    rounds = sorted({min(round, last) for round in (3, 7, 13, 22)})
    break_off(tmp_path / "saved", rounds, **settings)
    found = fit(tmp_path / "saved", **settings)
    assert_same(found, expected)
    # A fit that was at its end says so once more.
    assert_same(fit(tmp_path / "saved", **settings), expected)


def test_a_sweep_goes_on_bit_by_bit(tmp_path: Path) -> None:
    def sweep(**options: Any) -> Any:
        return dmf.sweep(
            PROBLEM.nan,
            ranks=[2, 3],
            penalties=[dmf.Ridge(0.1), dmf.Ridge(1.0)],
            **SETTINGS,
            **options,
        )

    expected = sweep()
    saved = {"checkpoint": tmp_path / "saved", "checkpoint_every": 4, "resume": True}
    with pytest.raises(Accident):
        sweep(callbacks=[accident_in(11)], **saved)
    found = sweep(**saved)
    assert_same(found.best, expected.best)


@pytest.mark.parametrize("every", [1, 7, timedelta(microseconds=1), timedelta(days=1)])
def test_the_last_two_versions_are_kept(every: Any, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    fit(saved, checkpoint_every=every)
    versions = sorted(os.listdir(saved))
    assert len(versions) == (1 if every == timedelta(days=1) else 2)
    for version in versions:
        assert MANIFEST in os.listdir(saved / version)


def test_a_manifest_does_not_grow_with_the_rounds(tmp_path: Path) -> None:
    # It was read and written in each save: long fits became slower and slower.
    sizes = []
    for rounds in (20, 400):
        place = tmp_path / str(rounds)
        fit(place, max_rounds=rounds)
        newest = sorted(place.iterdir())[-1]
        sizes.append((newest / MANIFEST).stat().st_size)
    assert sizes[1] - sizes[0] < 20  # the digits of larger numbers


def test_behind_a_url() -> None:
    break_off("memory://here/saved", [13])
    assert_same(fit("memory://here/saved"), fit())


@pytest.mark.parametrize("how", ["Ctrl-C", "callback"])
@pytest.mark.parametrize(
    "case", ["default", "restarts", "restarts that end", "restarts, validation"]
)
def test_a_stop_in_any_round_is_saved(how: str, case: str, tmp_path: Path) -> None:
    """Also in rounds in which candidates are dropped, converge or stop early."""
    settings = CASES[case]
    rounds: list[int] = []
    expected = fit(callbacks=[lambda record: rounds.append(record.round)], **settings)
    for stop in range(1, max(rounds) + 1):

        def press(record: dmf.Record, stop: int = stop) -> bool:
            if record.round == stop and how == "Ctrl-C":
                raise KeyboardInterrupt
            return record.round == stop

        saved = tmp_path / f"saved-{stop}"
        found = fit(saved, callbacks=[press], **settings)
        ended = "interrupted" if how == "Ctrl-C" else "stopped"
        assert found.status.code == ended
        assert_same(fit(saved, **settings), expected)


def test_no_ctrl_c_is_lost() -> None:
    """Python ignores one that strikes while an object is being deleted."""

    def press(record: dmf.Record) -> None:
        if record.round == 6:
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                return

    # Whoever runs the tests in the background may have them ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        found = fit(callbacks=[press])
        assert (found.status.code, found.status.round) == ("interrupted", 6)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


# ------------------------------------------------------------------------------- damage


def files_of(version: Path) -> list[Path]:
    return sorted(path for path in version.iterdir() if path.name != MANIFEST)


def spoil(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "torn":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        changed = bytearray(content)
        changed[len(content) // 2] ^= 1
        path.write_bytes(changed)


@pytest.mark.parametrize("how", ["missing", "torn", "empty", "changed"])
@pytest.mark.parametrize("what", ["file", "manifest"])
def test_a_damaged_version_is_passed_over(what: str, how: str, tmp_path: Path) -> None:
    break_off(tmp_path / "saved", [13])
    _, second = sorted((tmp_path / "saved").iterdir())
    spoil(files_of(second)[1] if what == "file" else second / MANIFEST, how)
    if (what, how) == ("manifest", "missing"):
        # Then it isn't a version yet, as when a process dies while it writes one.
        found = fit(tmp_path / "saved")
    else:
        told = r"version 3 is damaged \(.+\); the fit goes on from version 2, after "
        with pytest.warns(UserWarning, match=f"{told}round 8"):
            found = fit(tmp_path / "saved")
    assert_same(found, fit())


def test_when_every_version_is_damaged(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    break_off(saved, [13])
    for version in saved.iterdir():
        spoil(files_of(version)[0], "changed")
    wrong = r"is damaged \([0-9a-f]{8}-00000000.npz isn't what was written\)"
    message = (
        f"^of the checkpoint {re.escape(str(saved))}, version 3 {wrong} and version 2 "
        f"{wrong}, and there is no other; remove it, or name another place, to begin "
        "anew$"
    )
    with pytest.raises(ValueError, match=message):
        fit(saved)


def test_a_newer_version_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tmp_path / "saved"
    monkeypatch.setattr("dmf.io.checkpoints.FORMAT_VERSION", 2)
    break_off(saved, [13])
    monkeypatch.undo()
    before = sorted(saved.rglob("*"))
    message = (
        f"the checkpoint {saved} has format version 2, but this dmf reads versions up "
        "to 1; upgrade dmf"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        fit(saved)
    assert sorted(saved.rglob("*")) == before


def test_nothing_of_others_is_removed(tmp_path: Path) -> None:
    other = tmp_path / "saved" / "v20240115"
    other.mkdir(parents=True)
    (other / "notes.txt").write_text("mine")
    fit(tmp_path / "saved")
    assert (other / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("full", ["from the start", "later"])
def test_a_full_disk_ends_no_fit(
    full: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, left = CheckpointStore._write, [0 if full == "from the start" else 8]

    def limited(self: Any, version: int, name: str, content: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        write(self, version, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "_write", limited)
        told = "no checkpoint could be saved .*No space left on device"
        with pytest.warns(UserWarning, match=told):
            assert_same(fit(tmp_path / "saved"), fit())
    assert_same(fit(tmp_path / "saved"), fit())


def test_checkpoints_hold_no_code(tmp_path: Path) -> None:
    """An array of objects would be pickled: it is refused in both directions."""
    store = CheckpointStore.at(tmp_path / "saved")
    objects = {"value": np.array([{}], dtype=object)}
    with pytest.raises(ValueError, match="allow_pickle=False"):
        store.write(1, "a.npz", objects)
    buffer = io.BytesIO()
    np.savez(buffer, **objects)  # as an attacker would
    store._write(1, "a.npz", buffer.getvalue())
    checksum = blake2b(buffer.getvalue(), digest_size=16).hexdigest()
    receipt = Receipt("a.npz", len(buffer.getvalue()), checksum)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        store.read(1, receipt)


# ----------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"rank": 2}, "rank=3, but this one has 2"),
        ({"seed": 1}, "seed=0, but this one has 1"),
        ({"max_rounds": 31}, "max_rounds=30, but this one has 31"),
        ({"offsets": "rows"}, "offsets='none', but this one has 'rows'"),
        ({"restarts": 2}, "restarts=0, but this one has [0, 1]"),
        (
            {"solver": dmf.AlternatingLeastSquares()},
            "solver=NormalizedGradient(scope='row', step=Plane(), scaled=False), but "
            "this one has AlternatingLeastSquares()",
        ),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(
    changed: dict[str, Any], told: str, tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    break_off(saved, [6])
    before = sorted(saved.rglob("*"))
    message = (
        f"the checkpoint {saved} is of a fit with {told}; give the same settings, or "
        "name another place"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        fit(saved, **changed)
    assert sorted(saved.rglob("*")) == before


@pytest.mark.parametrize("form", ["numpy", "dask"])
def test_a_checkpoint_from_another_start_is_refused(form: str, tmp_path: Path) -> None:
    X = da.from_array(PROBLEM.nan, chunks=(20, 15)) if form == "dask" else PROBLEM.nan
    first, other = (dmf.factorize(X, 3, max_rounds=2, tol=0, seed=k) for k in (1, 2))
    assert isinstance(first.W, da.Array if form == "dask" else np.ndarray)

    saved: dict[str, Any] = {"checkpoint": tmp_path / "saved", "checkpoint_every": 2}
    saved["resume"] = True
    fit_from(X, first, callbacks=[lambda record: record.round == 6], **saved)
    with pytest.raises(ValueError, match=r"is of a fit with start=.*give the same set"):
        fit_from(X, other, **saved)
    rounds: list[int] = []
    found = fit_from(X, first, callbacks=[lambda r: rounds.append(r.round)], **saved)
    assert min(rounds) > 4
    np.testing.assert_array_equal(found.W, fit_from(X, first).W)


def fit_from(X: Any, start: dmf.Factorization, **options: Any) -> dmf.Factorization:
    return dmf.factorize(X, 3, start=start, max_rounds=12, tol=0, **options)


def changed_data() -> dict[str, Any]:
    X = PROBLEM.nan.copy()
    i, j = np.argwhere(PROBLEM.mask)[5]
    X[i, j] = np.nextafter(X[i, j], np.inf)
    less = PROBLEM.nan.copy()
    less[i, j] = np.nan
    return {
        "a bit": {"X": X},
        "an entry": {"X": less},
        "weights": {"mask": 2.0 * PROBLEM.mask},
        "rows": {"X": PROBLEM.nan[:-1]},
    }


@pytest.mark.parametrize("what", ["a bit", "an entry", "weights", "rows"])
def test_a_checkpoint_of_other_data_is_refused(what: str, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    break_off(saved, [6])
    message = (
        f"the checkpoint {saved} is of a fit to other data (X, mask or validation); "
        "give the same data, or name another place"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        fit(saved, **changed_data()[what])


def test_checkpoints_are_never_begun_over(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    fit(saved)
    message = (
        f"there are checkpoints at {saved}; go on from them with resume=True (on the "
        "command line: --resume), or name another place"
    )
    with pytest.raises(FileExistsError, match=exactly(message)):
        fit(saved, resume=False)


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        (
            {"resume": True},
            ValueError,
            "resume=True needs checkpoint=, the place of",
        ),
        ({"checkpoint_every": 3}, ValueError, "checkpoint_every=3 needs checkpoint="),
        ({"checkpoint": 3}, TypeError, "checkpoint must be a path or a URL, got 3"),
        (
            {"checkpoint": "c", "checkpoint_every": 0},
            ValueError,
            "checkpoint_every must be at least 1, got 0",
        ),
        (
            {"checkpoint": "c", "checkpoint_every": timedelta(0)},
            ValueError,
            r"checkpoint_every must be above 0, got datetime.timedelta\(0\)",
        ),
        ({"checkpoint": "c", "resume": 1}, TypeError, "resume must be True or False"),
        ({"checkpoint": "no/c"}, FileNotFoundError, "there is no folder .*/no; create"),
        (
            {"checkpoint": "file"},
            ValueError,
            "the checkpoint .*/file is a file; name a",
        ),
    ],
)
def test_refused(
    settings: dict[str, Any],
    kind: type[Exception],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    with pytest.raises(kind, match=message):
        fit(**settings)
    assert os.listdir() == ["file"]


def test_a_digest_tells_values_shapes_and_types_apart() -> None:
    different = [
        None,
        1,
        1.0,
        np.zeros(4),
        np.zeros((2, 2)),
        np.zeros(4, np.float32),
        np.zeros(8, np.float32),
        (np.zeros(4), None),
        (None, np.zeros(4)),
    ]
    assert len({digest(value) for value in different}) == len(different)
    plain = np.arange(6).reshape(2, 3)
    assert digest(plain) == digest(np.asfortranarray(plain))


# ------------------------------------------------------------------------------ kill -9

KILLED = """
import os, signal, sys
import numpy as np
from dmf import cli
from dmf.io.checkpoints import CheckpointStore

# Dies at the n-th write or removal of a file, before, amid or after it.
left, when = int(sys.argv[1]), sys.argv[2]
write, prune = CheckpointStore._write, CheckpointStore._prune

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def count():
    global left
    left -= 1
    return left == 0

def doomed_write(self, version, name, content):
    last = count()
    if last and when == "before":
        die()
    if last and when == "amid":
        content = content[: len(content) // 2]
    write(self, version, name, content)
    if last:
        die()

def doomed_prune(self):
    if count():
        die()
    prune(self)

CheckpointStore._write, CheckpointStore._prune = doomed_write, doomed_prune
cli.main(sys.argv[3:])
"""
COMMAND = (
    "factorize X.npy --rank 3 --tol 0 --max-rounds 30 --quiet --overwrite "
    "--checkpoint saved --checkpoint-every 4 --resume -o model.zarr"
)


@pytest.mark.slow
@pytest.mark.faults
def test_killed_at_random_moments(tmp_path: Path) -> None:
    """The model that is there in the end is that of a run that nothing disturbed."""
    np.save(tmp_path / "X.npy", PROBLEM.nan)
    rng = np.random.default_rng(7)
    for _ in range(20):
        moment = str(rng.integers(1, 25)), str(rng.choice(["before", "amid", "after"]))
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, *moment, *COMMAND.split()],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        # Late moments may lie behind the end of what is left to do.
        assert killed.returncode in (0, -signal.SIGKILL), killed.stderr
        assert "Traceback" not in killed.stderr
        if killed.returncode == 0:
            break
    done = subprocess.run(
        [sys.executable, "-m", "dmf.cli", *COMMAND.split()], cwd=tmp_path, check=True
    )
    assert done.returncode == 0
    expected = dmf.factorize(PROBLEM.nan, 3, tol=0, max_rounds=30)
    assert_same(dmf.load(tmp_path / "model.zarr"), expected)


@pytest.mark.parametrize("away", [1, 2])
def test_a_version_that_cannot_be_read(
    away: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before is used; without any, nothing is begun anew or removed."""
    place = tmp_path / "saved"
    break_off(place, [13])
    versions = CheckpointStore.at(place).versions()
    manifest = CheckpointStore.manifest

    def fails(store: CheckpointStore, version: int) -> Any:
        if version in versions[:away]:
            raise OSError(5, "Input/output error")
        return manifest(store, version)

    monkeypatch.setattr(CheckpointStore, "manifest", fails)
    if away == 1:
        said = (
            f"of the checkpoint {place}, version 3 can't be read; the fit goes on from "
            "version 2, after round 8"
        )
        with pytest.warns(UserWarning, match=exactly(said)):
            assert_same(fit(place), fit())
        return
    said = unreadable(place, "[Errno 5] Input/output error")
    with pytest.raises(UnreadableError, match=exactly(said)):
        fit(place)
    assert CheckpointStore.at(place).versions() == versions


def unreadable(place: Path, why: str) -> str:
    return (
        f"the checkpoint {place} can't be read ({why}); look after its store, and run "
        "it again to go on from there"
    )


# ------------------------------------------------------------------------------ cluster


def make_unreadable(path: Path) -> None:
    """Let reading a file fail with an error of the operating system, for root too."""
    path.unlink()
    path.mkdir()


class Struck(Checkpoints):
    """Checkpoints to which something happens before workers read them back."""

    strike: Any

    def _rebuild(self, version: Any, *records: Any) -> Any:
        folder = Path(self.store.url) / f"v{version.number:08}"
        type(self).strike(folder, version)
        return super()._rebuild(version, *records)


@pytest.mark.cluster
@pytest.mark.parametrize("case", ["default", "dask", "restarts, validation"])
@pytest.mark.parametrize("how", ["missing", "changed", "unreadable"])
def test_what_workers_cannot_read_back_is_done_again(
    client: Any, case: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the version before, or from what else there is."""
    expected = in_memory(fit(**CASES[case]))
    left = [3] if how == "unreadable" else [1, 3]

    def strike(folder: Path, version: Any) -> None:
        if version.number not in left:
            return
        left.remove(version.number)
        path = folder / version.receipts[0].name
        if how == "changed":
            path.write_bytes(path.read_bytes()[::-1])
        elif how == "missing":
            path.unlink()
        else:
            make_unreadable(path)

    monkeypatch.setattr(Struck, "strike", staticmethod(strike), raising=False)
    monkeypatch.setattr("dmf._checkpoint.Checkpoints", Struck)
    place = tmp_path / "saved"
    with pytest.warns(UserWarning, match="of the checkpoint") as warned:
        found = fit(place, **CASES[case])
    said = [str(one.message) for one in warned]
    if how != "unreadable":
        assert said.pop(0) == (
            f"no version of the checkpoint {place} is sound any more; the fit goes on "
            "from a round before it"
        )
    (last,) = said
    assert re.search(r"version 3 (is damaged|can't be read).*from version 2, ", last)
    assert left == []
    assert_same(in_memory(found), expected)


@pytest.mark.cluster
def test_a_store_that_changes_all_that_is_new_ends_a_fit(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though an older version is sound, it would never get beyond the next one."""
    struck = []

    def strike(folder: Path, version: Any) -> None:
        if version.number == 3:
            struck.append(folder)
            path = folder / version.receipts[0].name
            path.write_bytes(path.read_bytes()[::-1])

    monkeypatch.setattr(Struck, "strike", staticmethod(strike), raising=False)
    monkeypatch.setattr("dmf._checkpoint.Checkpoints", Struck)
    place = tmp_path / "saved"
    with (
        pytest.warns(UserWarning, match="version 3 is damaged .* from version 2, "),
        pytest.raises(UnreadableError, match=r"\.npz isn't what was written\)"),
    ):
        fit(place)
    assert len(struck) == MAX_LOSSES + 1


@pytest.mark.cluster
def test_a_store_that_stays_away_ends_a_fit(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "saved"

    def strike(folder: Path, version: Any) -> None:
        if version.number == 3:
            for old in place.glob("v*"):
                make_unreadable(old / MANIFEST)
            make_unreadable(folder / version.receipts[0].name)

    loads = []
    monkeypatch.setattr(Struck, "strike", staticmethod(strike), raising=False)
    monkeypatch.setattr("dmf._checkpoint.Checkpoints", Struck)
    monkeypatch.setattr(
        _candidates, "load", lambda *a, **o: loads.append(1) or load(*a, **o)
    )
    why = f"[Errno 21] Is a directory: '{place / 'v00000002' / MANIFEST}'"
    with pytest.raises(UnreadableError, match=exactly(unreadable(place, why))):
        fit(place)
    assert len(loads) == 1  # X is as it was


@pytest.mark.cluster
@pytest.mark.parametrize("case", ["default", "restarts, validation", "dask"])
def test_on_a_cluster(client: Any, case: str, tmp_path: Path) -> None:
    settings = CASES[case]
    expected = fit(**settings)
    break_off(tmp_path / "saved", [3, 13], **settings)
    found = fit(tmp_path / "saved", **settings)
    assert_same(found, expected)


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.faults
def test_workers_that_die_are_no_loss(tmp_path: Path) -> None:
    """What they took along is read again from the checkpoint, or computed from it."""
    from distributed import Client, LocalCluster

    X = da.from_array(PROBLEM.nan, chunks=(30, 20))
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        expected = in_memory(fit(X=X))

        def kill(record: dmf.Record) -> None:
            if record.round in (6, 14):
                pids = list(client.run(os.getpid).values())
                os.kill(pids[record.round % 2], signal.SIGKILL)

        found = in_memory(fit(tmp_path / "saved", X=X, callbacks=[kill]))
    assert_same(found, expected)


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.faults
def test_a_scheduler_that_died_is_no_loss(tmp_path: Path) -> None:
    from distributed import Client, LocalCluster

    X = da.from_array(PROBLEM.nan, chunks=(30, 20))
    founds = []
    for rounds in ([13], [], None):
        with (
            LocalCluster(
                n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
            ) as cluster,
            Client(cluster),
        ):
            if rounds is None:
                founds.append(in_memory(fit(X=X)))
            elif rounds:
                break_off(tmp_path / "saved", rounds, X=X)
            else:
                founds.append(in_memory(fit(tmp_path / "saved", X=X)))
    assert_same(*founds)


@pytest.mark.cluster
@pytest.mark.slow
def test_the_scheduler_forgets_what_led_to_a_checkpoint(
    client: Any, tmp_path: Path
) -> None:
    """However long a fit runs, the scheduler holds about as many tasks."""
    X = da.from_array(PROBLEM.nan, chunks=(30, 20))
    held: dict[int, int] = {}

    def count(record: dmf.Record) -> None:
        if record.round in (50, 490):  # as many rounds after a checkpoint
            held[record.round] = client.run_on_scheduler(
                lambda dask_scheduler: len(dask_scheduler.tasks)
            )

    fit(
        tmp_path / "saved",
        X=X,
        tol=0,
        max_rounds=510,
        checkpoint_every=20,
        callbacks=[count],
    )
    assert held[490] < 1.2 * held[50]
