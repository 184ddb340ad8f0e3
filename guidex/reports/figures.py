"""What all figures share: settings that are not the user's, and files that are whole.

Figures are matplotlib's objects alone, without pyplot, so that nothing is left behind.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from guidex.files.atomic import atomic_write


@contextmanager
def default_settings(changes: Mapping[str, Any]) -> Iterator[None]:
    """matplotlib's default settings with some changes, whatever the user's are."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        # TrueType, which publishers take; matplotlib's own Type 3 they often refuse.
        matplotlib.rcParams.update({"font.size": 9, "pdf.fonttype": 42, **changes})
        # A name in a script that the font lacks is drawn as boxes, which is enough said.
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def save(figure: Figure, path: Path) -> None:
    """Write a figure at 150 dpi, in the format that the suffix of the path names, in one step.
    Equal figures are equal files; an existing file is replaced.

    Raises:
        GuidexError: the file cannot be written.
    """
    kind = path.suffix.removeprefix(".")
    options = {"dpi": 150, "metadata": {"CreationDate": None} if kind == "pdf" else {}}
    atomic_write(path, lambda file: figure.savefig(file, format=kind, **options))
