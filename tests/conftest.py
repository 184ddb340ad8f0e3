"""Settings of all tests."""

import pytest
import torch

from guidex.reports.svg import tag

# Arrays of tests are small: on a busy machine, threads mostly wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves and maps of rows take most of a small sweep's time; tests/test_plots.py draws them,
    and tests/test_report.py those of reports."""
    for module in ("runs.drawings", "commands.compare"):
        monkeypatch.setattr(f"guidex.{module}.write_plots", lambda *_: [])
    monkeypatch.setattr("guidex.reports.html_report.drawing", lambda *_: tag("figure"))
