"""The progress line."""

from __future__ import annotations

import io
import threading
from contextlib import suppress

import pytest

import dmf
from tests.problems import (
    fitted,
    same_factors,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_silent_when_not_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    fitted()
    fitted(progress=False)
    assert capfd.readouterr() == ("", "")


def test_draws_if_asked(capfd: pytest.CaptureFixture[str]) -> None:
    fit = fitted(progress=True)
    out, err = capfd.readouterr()
    last = fit.history[-1]
    assert out == ""
    assert "round 6/6" in err
    assert f"objective {last.objective:.5g}" in err
    assert f"rmse {last.rmse:.4g}" in err
    assert f"‖∇‖ {last.gradient_norm_H:.2g}" in err
    assert "at most 0:00 left" in err


def test_draws_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    fit = fitted(restarts=2)
    assert "best of 2" in terminal.getvalue()
    # All restarts share the line: in the end it tells of the better one.
    last = terminal.getvalue().rsplit("round 6/6", 1)[1]
    assert f"objective {min(fit.objectives):.5g}" in last
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    fitted(progress=False)
    assert terminal.getvalue() == ""


def test_there_may_be_no_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs without a console have none: sys.stderr is None."""
    monkeypatch.setattr("sys.stderr", None)
    assert fitted().status.code == "max_rounds"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_the_line_ends_with_the_fit(
    capfd: pytest.CaptureFixture[str], error: type[BaseException]
) -> None:
    """Whatever ends the fit, no thread goes on drawing."""

    def fails(record: dmf.Record) -> None:
        raise error

    with suppress(OSError):
        fitted(progress=True, callbacks=[fails])
    assert "round 1/6" in capfd.readouterr().err
    drawing = [t for t in threading.enumerate() if type(t).__module__ == "rich.live"]
    for thread in drawing:
        thread.join(timeout=5)
        assert not thread.is_alive()


def test_the_line_doesnt_change_the_fit() -> None:
    assert same_factors(fitted(progress=True), fitted())


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3600, "1:00:00")]
)
def test_clock(seconds: float, text: str) -> None:
    from dmf.progress import _clock

    assert _clock(seconds) == text
