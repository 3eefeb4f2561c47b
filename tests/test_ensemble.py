"""Ensembles: the mean and the spread of fits, each as it would be alone."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import dmf
from tests.problems import FORMS, form_of, low_rank

PROBLEM = low_rank(observed=0.7, noise=0.3)
OPTIONS: dict[str, Any] = {"max_rounds": 6, "tol": 0, "patience": 100}


@pytest.mark.parametrize("offsets", ["none", "both"])
@pytest.mark.parametrize("form", FORMS)
def test_an_ensemble_is_its_fits(form: str, offsets: str) -> None:
    X = form_of(PROBLEM, form)
    options = OPTIONS | {"offsets": offsets, "penalty": dmf.Ridge(0.2)}
    ensemble = dmf.Ensemble.fit(X, 3, restarts=4, **options)
    assert len(ensemble) == 4
    seen: list[dmf.Record] = []
    dmf.factorize(X, 3, restarts=4, drop=False, callbacks=[seen.append], **options)
    last = [r.objective for r in seen if r.round == 6]
    assert [fit.objective for fit in ensemble.fits] == pytest.approx(last, rel=1e-9)
    full = np.stack([fit.reconstruct().compute() for fit in ensemble.fits])
    rows, columns = np.indices(PROBLEM.truth.shape)
    mean, std = ensemble.predict(rows, columns)
    np.testing.assert_allclose(mean, full.sum(axis=0) / 4, rtol=1e-9, atol=1e-12)
    spread = np.sqrt(sum((one - mean) ** 2 for one in full) / 4)
    np.testing.assert_allclose(std, spread, rtol=1e-6, atol=1e-12)
    one = ensemble.predict(3, [4, 5])
    np.testing.assert_allclose(one.mean, mean[3, 4:6], rtol=1e-12)
    assert one.std.shape == (2,)
    assert ensemble.predict(3, 4).mean.shape == ()


def test_every_fit_of_an_ensemble_stops_at_its_best() -> None:
    noisy = low_rank(40, 30, noise=0.5)
    options: dict[str, Any] = {"penalty": dmf.Ridge(0.01), "validation": 0.25, "tol": 0}
    ensemble = dmf.Ensemble.fit(noisy.nan, 5, patience=4, **options)
    _, held_out = dmf.split_observed(noisy.nan, 0.25)
    for fit in ensemble.fits:
        assert fit.status.code == "early_stopped"
        least = fit.history.validation_rmse.min()
        assert fit.score(held_out).rmse == pytest.approx(least)
    assert len({fit.status.factors_of for fit in ensemble.fits}) > 1


def test_ensembles_are_refused() -> None:
    fits = [dmf.factorize(X, 2, **OPTIONS) for X in (PROBLEM.nan, PROBLEM.nan[:20])]
    text = re.escape("an ensemble needs fits of one shape, got [(20, 20), (30, 20)]")
    with pytest.raises(ValueError, match=f"^{text}$"):
        dmf.Ensemble(fits)
    with pytest.raises(ValueError, match=r"^an ensemble needs fits of one shape, got"):
        dmf.Ensemble([])
    assert len(dmf.Ensemble(tuple(fits[:1]))) == 1
    with pytest.raises(TypeError, match=r"^an ensemble needs a list of dmf\.Factor"):
        dmf.Ensemble(fits[0])
    with pytest.raises(ValueError, match=r"^restarts must be at least 2, got 1$"):
        dmf.Ensemble.fit(PROBLEM.nan, 2, restarts=1)
    with pytest.raises(ValueError, match=r"^rows is 30, but the matrix has 30 rows"):
        dmf.Ensemble(fits[:1]).predict(30, 0)
    with pytest.raises(TypeError, match=r"^penalty must be a penalty such as"):
        dmf.Ensemble.fit(PROBLEM.nan, 2, penalty=3)
