"""Published values beside measured ones."""

import csv
import io

import pytest
from test_tables import row

from guidex.cli import main
from guidex.reports.published import difference, published_notes, published_value
from guidex.reports.tables import csv_table, markdown_table, terminal_table

ABOUT = {"source": "arXiv 2404.07724, table 1", "protocol": "interval", "images": 50000}
SMALLEST = ABOUT | {"repeats": 3, "statistic": "min"}
VALUES = {"fd_inception": 1.47, "fd_inception_min": 1.45, "fd_inception_max": 1.5}


def measured(point: int, published: dict, **changes):
    provenance = {"presets": {"protocol": "interval"}}
    changes = {"metrics": VALUES, "images": 50000, "repeats": 3, "provenance": provenance} | changes
    return row(point, {"w": point}, config={"published": published}, **changes)


@pytest.mark.parametrize(
    ("name", "column", "fits"),
    [
        ("fid", "fd_inception", True),
        ("fid", "fd_inception_spatial", False),
        ("sfid", "fd_inception_spatial", True),
        ("fd_dinov2", "fd_dinov2", True),
        ("fd_dinov2", "fd_dinov2_pil", True),
        ("fd_dinov2", "fd_dinov2_s", False),
        ("is", "is_inception_logits", True),
        ("precision", "precision_dinov2", True),
        ("images", "images", False),
    ],
)
def test_papers_names_and_columns(name, column, fits):
    found = measured(0, {name: 1.4 if name != "images" else "many"}, metrics={column: 1.0})
    assert (published_value(found, column) == 1.4) == fits


def test_the_smallest_compares_with_the_smallest():
    assert difference(measured(0, {"fid": 1.4} | SMALLEST), "fd_inception") == pytest.approx(0.05)
    assert difference(measured(0, {"fid": 1.4} | ABOUT), "fd_inception") == pytest.approx(0.07)
    assert difference(measured(0, {"fd_dinov2": 1.4}), "fd_inception") is None


def test_tables_print_published_values():
    rows = [measured(1, {"fid": 1.4} | SMALLEST), measured(2, {})]
    lines = list(csv.DictReader(io.StringIO(csv_table(rows))))
    assert [line["published_fd_inception"] for line in lines] == ["1.4", ""]
    text = markdown_table(rows)
    assert "published FD (inception)" in text and "| 1.40 (+0.05) |" in text
    assert "arXiv 2404.07724, table 1, the smallest of 3 evaluations" in text
    assert "needed" not in text and "protocol=" not in text
    assert "published" not in csv_table(rows[1:]) + markdown_table(rows[1:])
    assert max(map(len, terminal_table(rows, 60).splitlines())) <= 60


def test_what_a_comparison_lacks_is_said():
    [note] = published_notes([measured(1, {"fid": 1.4} | SMALLEST, images=1800, repeats=1)])
    assert "3 × 50,000 images needed, these are 1 × 1,800" in note
    [note] = published_notes([measured(1, {"fid": 1.4} | SMALLEST, provenance={})])
    assert "published under protocol=interval, measured without it" in note


def test_a_sweep_prints_what_it_is_given(tmp_path, capsys):
    words = ["guidance=none", "seeds=0-19", "metrics=[frechet]", "sampler.grid.steps=4"]
    published = "published={fd_pixels: 2.5, source: 'a paper', images: 1797}"
    assert main(["sweep", *words, published, f"out={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "published FD (pixels)" in out and "a paper; 1 × 1,797 images needed" in out
