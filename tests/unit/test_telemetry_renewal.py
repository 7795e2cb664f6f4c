"""curves.png is renewed beside a run: when there is news, and without ever hurting the run."""

import threading
from pathlib import Path

import pytest
from seeing_support import small_run

from arealite.telemetry import renewal
from arealite.telemetry.renewal import Renewal


def test_a_picture_appears_while_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, drawn, draw = small_run(tmp_path), threading.Event(), renewal.draw_curves
    monkeypatch.setattr(renewal, "draw_curves", lambda *a: (draw(*a), drawn.set()))
    with Renewal(folder, 2, every_s=0.01):
        assert drawn.wait(60)
    assert folder.curves.read_bytes().endswith(b"IEND\xaeB`\x82")


def test_it_is_drawn_again_only_when_there_is_news(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calls = small_run(tmp_path), []
    monkeypatch.setattr(renewal, "draw_curves", lambda *a: calls.append(a))
    renewed = Renewal(folder, 2)
    assert [renewed.renew(), renewed.renew()] == [True, False]
    with open(folder.metrics, "ab") as file:
        file.write(b'{"version":5,"reward/mean":0.5}\n')
    assert [renewed.renew(), renewed.renew()] == [True, False]
    assert calls == [(folder, 2)] * 2
    folder.metrics.unlink()
    assert not renewed.renew()


def test_an_old_picture_never_stays_over_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was being drawn when the run wrote its last line and its own last picture."""
    folder, calls, drawing = small_run(tmp_path), [], threading.Event()
    renewed = Renewal(folder, 2, every_s=0.01)

    def draw(*_: object) -> None:
        calls.append(folder.metrics.stat().st_size)
        drawing.set()
        assert renewed._stop.wait(60)

    monkeypatch.setattr(renewal, "draw_curves", draw)
    with renewed:
        assert drawing.wait(60)
        with open(folder.metrics, "ab") as file:
            file.write(b'{"version":5,"reward/mean":0.5}\n')
    assert len(calls) == 2
    assert calls[-1] == folder.metrics.stat().st_size


def test_a_picture_that_fails_costs_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(renewal, "draw_curves", fail)
    renewed = Renewal(small_run(tmp_path), None)
    assert [renewed.renew(), renewed.renew()] == [False, False]
    assert [record.getMessage() for record in caplog.records] == [
        "curves.png is not renewed: no space left on device"
    ]
