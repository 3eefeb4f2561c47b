"""The pictures show what they say: values, what is missing, objectives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import dmf
from dmf import plots
from dmf.history import History

X = np.array([[1.0, -2.0, 3.0], [4.0, 5.0, np.nan]])
MASK = np.array([[True, False, True], [True, True, True]])
SEEN = np.array([[True, False, True], [True, True, False]])
TRUTH = np.array([[1.0, -8.0, 3.0], [4.0, 5.0, 6.0]])


@pytest.fixture(scope="module")
def fit() -> dmf.Factorization:
    X = np.random.default_rng(0).standard_normal((8, 6))
    return dmf.factorize(X, rank=3, max_rounds=12, tol=0)


def drawn(ax: Any) -> Any:
    """Return what an image holds."""
    (image,) = ax.images
    return image.get_array()


def test_panels_show_every_matrix_on_one_scale() -> None:
    axes = plots.panels(MASK, X, 100 * TRUTH, TRUTH).axes[:4]
    assert [ax.get_title() for ax in axes] == [
        "Mask: 67% observed",
        "Observed",
        "Approximation",
        "Truth",
    ]
    assert np.array_equal(drawn(axes[0]), SEEN)
    assert np.array_equal(~np.ma.getmaskarray(drawn(axes[1])), SEEN)
    assert np.array_equal(drawn(axes[1]).compressed(), X[SEEN])
    assert np.array_equal(drawn(axes[2]), 100 * TRUTH)
    assert np.array_equal(drawn(axes[3]), TRUTH)
    # Symmetric around 0, from the truth's largest value, not the approximation's.
    assert {ax.images[0].get_clim() for ax in axes[1:]} == {(-8.0, 8.0)}


def test_panels_take_weights_as_a_mask_and_three_panels_will_do() -> None:
    figure = plots.panels(np.where(MASK, 0.5, 0.0), abs(X), TRUTH)
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == ["Mask: 67% observed", "Observed", "Approximation"]
    assert figure.axes[1].images[0].get_clim() == (1.0, 5.0)


def test_panels_survive_a_fit_that_diverged() -> None:
    figure = plots.panels(MASK, X, np.full(X.shape, np.inf))
    assert np.ma.getmaskarray(drawn(figure.axes[2])).all()


def test_missing_cells_are_hatched_and_values_written() -> None:
    observed = plots.panels(MASK, X, TRUTH).axes[1]
    assert [tuple(patch.get_xy()) for patch in observed.patches] == [
        (0.5, -0.5),
        (1.5, 0.5),
    ]
    assert [text.get_text() for text in observed.texts] == [
        "1.00",
        "3.00",
        "4.00",
        "5.00",
    ]


def test_large_matrices_are_left_alone() -> None:
    large = np.ones((60, 60))
    mask = plots.panels(large > 1, large, large).axes[0]
    assert not mask.patches
    assert not mask.texts


@pytest.mark.parametrize("name", ["viridis", "RdBu_r"])
def test_no_value_has_the_colour_of_missing(name: str) -> None:
    colours = matplotlib.colormaps[name](np.linspace(0, 1, 1000))[:, :3]
    assert abs(colours - to_rgb(plots.MISSING)).max(axis=1).min() > 0.1


def test_pictures_are_arranged_clipped_and_keep_gaps_visible() -> None:
    # A picture of 2 × 1 pixels; the second lacks its green.
    X = np.array([[0.2, 1.5, -0.5], [0.2, np.nan, 0.4]])
    figure = plots.panels(
        np.ones(X.shape), X, np.nan_to_num(X), image=lambda matrix: matrix[:, None, :]
    )
    assert np.allclose(
        drawn(figure.axes[1])[:, 0], [[0.2, 1.0, 0.0], to_rgb(plots.MISSING_PIXEL)]
    )
    assert np.allclose(drawn(figure.axes[2])[:, 0], [[0.2, 1.0, 0.0], [0.2, 0.0, 0.4]])
    assert np.allclose(
        drawn(figure.axes[0])[:, 0], [[1.0] * 3, to_rgb(plots.MISSING_PIXEL)]
    )


def test_panels_draw_where_they_are_told() -> None:
    figure = Figure()
    axes = figure.subplots(1, 3)
    titles = ["a", "b", "c"]
    assert plots.panels(MASK, X, TRUTH, axes=axes, titles=titles) is figure
    assert [ax.get_title() for ax in axes] == titles


def test_panels_refuse_shapes_that_differ() -> None:
    message = r"all panels must have the shape of X, \(2, 3\); one has shape \(3, 2\)"
    with pytest.raises(ValueError, match=message):
        plots.panels(MASK, X, TRUTH.T)
    with pytest.raises(ValueError, match="one has shape"):
        plots.panels(MASK[:1], X, TRUTH)


def test_convergence_begins_with_the_start(fit: dmf.Factorization) -> None:
    (ax,) = plots.convergence(fit.history).axes
    (line,) = ax.lines
    assert list(line.get_xdata()) == list(range(13))
    assert line.get_ydata()[0] == fit.history.initial_objective
    assert np.array_equal(line.get_ydata()[1:], fit.history.objective)
    assert "after round 12: objective" in ax.get_title(loc="right")


def test_only_steep_curves_get_a_log_scale(fit: dmf.Factorization) -> None:
    columns = fit.history.to_dict()
    for start, scale in ((1.5, "linear"), (1000.0, "log")):
        columns["objective"] = list(np.linspace(start, 1.0, 12))
        history = History.from_dict(columns, start)
        assert plots.convergence(history).axes[0].get_yscale() == scale


def test_curves_on_the_same_axes_can_be_told_apart(fit: dmf.Factorization) -> None:
    ax = Figure().subplots()
    for label in ("one", "two"):
        assert plots.convergence(fit.history, ax, label=label) is ax.figure
    first, second = ax.lines
    assert first.get_color() != second.get_color()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "two"]
    assert ax.get_title(loc="right") == ""


def test_a_history_without_rounds_can_be_drawn() -> None:
    (ax,) = plots.convergence(History([])).axes
    assert ax.get_title(loc="right") == ""


def test_overview_holds_all(fit: dmf.Factorization) -> None:
    X = np.random.default_rng(0).standard_normal((8, 6))
    figure = plots.overview(
        X > 0, X, fit.W @ fit.H, fit.history, X, heading="all of it"
    )
    titles = [ax.get_title() for ax in figure.axes if ax.images]
    assert titles == [f"Mask: {(X > 0).mean():.0%} observed", *titles[1:]]
    assert titles[1:] == ["Observed", "Approximation", "Truth"]
    assert sum(bool(ax.lines) for ax in figure.axes) == 1
    assert figure.get_suptitle() == "all of it"


def test_nothing_global_is_touched(tmp_path: Path) -> None:
    # Another process: in this one, others may have imported pyplot.
    code = (
        "import sys, numpy as np\n"
        "from dmf.plots import panels\n"
        "assert 'matplotlib' not in sys.modules\n"
        "panels(np.eye(3), np.eye(3), np.eye(3)).savefig(sys.argv[1])\n"
        "assert 'matplotlib' in sys.modules\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    picture = tmp_path / "panels.png"
    subprocess.run([sys.executable, "-c", code, picture], check=True)
    assert picture.stat().st_size > 1000


def test_without_matplotlib_the_way_out_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    message = r"pictures need matplotlib; install it with: pip install 'dmf\[plot\]'"
    with pytest.raises(ImportError, match=message):
        plots.convergence(History([]))
