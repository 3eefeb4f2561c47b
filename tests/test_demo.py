"""The demo: honest numbers, and a picture that shows them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from dmf import demo
from dmf.plots import MISSING_PIXEL


class Run(NamedTuple):
    result: demo.DemoResult
    printed: str


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One small run for all tests; a low rank, because it is quick."""
    picture = tmp_path_factory.mktemp("demo") / "demo.png"
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda line: lines.append(str(line)))
        result = demo.run_demo(picture, rank=8, seed=3, progress=False)
    return Run(result, "\n".join(lines))


def test_hidden_pixels_come_out_better_than_trivial_fills(run: Run) -> None:
    assert run.result.rmse < 0.7 * run.result.rmse_means
    assert run.result.rmse_means < run.result.rmse_mean


def test_errors_are_those_on_the_hidden_entries(run: Run) -> None:
    fit = run.result.fit
    photograph = demo._photograph()
    truth = np.concatenate([photograph[..., k] for k in range(3)], axis=1)
    hidden = ~demo._hide(photograph.shape[:2], seed=3)
    assert run.result.hidden == hidden.mean() == pytest.approx(demo.HIDDEN, abs=0.01)
    error = (fit.W @ fit.H)[hidden] - truth[hidden]
    assert run.result.rmse == pytest.approx(np.sqrt(np.mean(error**2)))
    mean = truth[~hidden].mean()
    spread = np.sqrt(np.mean((truth[hidden] - mean) ** 2))
    assert run.result.rmse_mean == pytest.approx(spread)
    # In sample it fits better than out of it: it hasn't seen what was hidden.
    assert fit.history[-1].rmse < run.result.rmse


def test_all_of_it_is_printed(run: Run) -> None:
    result = run.result
    for text in (
        "427 × 1920",
        f"{result.hidden:.1%}",
        "rank 8",
        f"{len(result.fit.history)} rounds",
        f"{result.seconds:.1f} s",
        f"{result.rmse:.4f}",
        f"{result.rmse_means:.4f}",
        f"{result.rmse_mean:.4f}",
        str(result.fit.status),
        str(result.picture),
    ):
        assert text in run.printed


def test_the_picture_shows_photograph_and_gaps(run: Run) -> None:
    with Image.open(run.result.picture) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    height, width = pixels.shape[:2]
    assert 1000 < height < width < 4000
    violet = [int(MISSING_PIXEL[k : k + 2], 16) for k in (1, 3, 5)]
    missing = (pixels == violet).all(axis=2)
    # Mask and observed entries are the left half, without the curve below.
    panels = slice(height // 10, height * 6 // 10)
    assert missing[panels, : width // 2].mean() > 0.4
    assert missing[panels, width // 2 + 40 :].mean() < 0.01
    # The truth, on the right: as colourful as the photograph.
    truth = pixels[panels, width * 8 // 10 :] / 255
    assert truth.std() > 0.5 * demo._photograph().std()


def test_matrix_and_picture_are_each_others_inverse() -> None:
    picture = np.random.default_rng(0).random((4, 5, 3))
    matrix = demo._as_matrix(picture)
    assert np.array_equal(matrix[:, 5:10], picture[:, :, 1])
    assert np.array_equal(demo._as_picture(matrix), picture)


def test_the_seed_decides_what_is_hidden() -> None:
    first, again, other = (demo._hide((40, 50), seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    red, green, blue = np.split(first, 3, axis=1)
    assert np.array_equal(red, green)
    assert np.array_equal(red, blue)


def test_without_pillow_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    message = r"pictures need PIL; install it with: pip install 'dmf\[plot\]'"
    with pytest.raises(ImportError, match=message):
        demo.run_demo(tmp_path / "demo.png")


def test_a_missing_folder_is_found_before_the_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "factorize", None)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        demo.run_demo(tmp_path / "nowhere" / "demo.png")
