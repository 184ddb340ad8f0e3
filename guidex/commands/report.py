"""`guidex report`: one HTML file of the tables, figures and images of sweeps."""

from collections.abc import Sequence
from pathlib import Path

from guidex.commands.words import required, split_words
from guidex.errors import UsageError
from guidex.reports.html_report import write_report


def report_command(words: Sequence[str]) -> None:
    """Run the command: DIR/report.html of one folder, out=FILE of several."""
    names, settings = split_words(words, ["out"])
    if not names:
        raise UsageError("give the folder of a sweep: guidex report DIR")
    folders = [Path(name).expanduser() for name in names]
    out = settings.get("out")
    if len(folders) > 1:
        out = required(settings, "out", "both.html")
    print(write_report(folders, Path(str(out)).expanduser() if out else folders[0] / "report.html"))
