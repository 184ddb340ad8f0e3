"""The report: everything is in one file, nothing that is shown is taken for code, and in a browser
it can be sorted, filtered and explored, by keyboard too."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from report_rows import HI, LO, W, row

from guidex.cli import main
from guidex.errors import GuidexError
from guidex.reports.charts import curves
from guidex.reports.heat_maps import heat_maps
from guidex.reports.html_report import write_report
from guidex.reports.image_grids import image_grid
from guidex.reports.pictures import pictures_of
from guidex.reports.plots import STYLE, default_settings, styles_of
from guidex.reports.rows import Row, read_rows
from guidex.reports.svg import drawing
from guidex.reports.tables import write_tables

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium to show the page in")
NASTY = "<img src=x onerror=alert(1)> & \"q\" 'a' </script><!--body--> $w$"


@pytest.fixture(autouse=True)
def no_curves() -> None:
    """Here they are drawn."""


@pytest.fixture
def rows() -> list[Row]:
    """No guidance, intervals over (lo, hi] and w, and one point that is missing."""
    sigmas = np.geomspace(80, 0.002, 8).tolist() + [0.0]
    table = [({"guidance": "none"}, "none", 0.9, 0)]
    for w in (2.0, 3.0):
        for lo in (0.1, 0.2):
            for hi in (0.5, 1.0, np.inf):
                point = {"guidance": "interval", W: w, LO: lo, HI: hi}
                table.append(
                    (point, "interval", w * lo + min(hi, 2), int(10 * hi) if hi < 2 else 63)
                )
    found = []
    for n, (values, guidance, fd, evals) in enumerate(table):
        metrics = {"fd_a": fd, "fd_a_lo": fd - 0.1, "fd_a_hi": fd + 0.1}
        metrics |= {"precision_a": 1 - fd / 9, "recall_a": fd / 9}
        plan = {
            "sigmas": sigmas,
            "weights": [[[1.0], [values.get(W, 1.0)]] * 4],
            "summary": f"plan {n}",
        }
        found.append(row(n, values, guidance, metrics=metrics, evals_ref=evals, plan=plan))
    found[1].config["published"] = {"fd_a": 0.75, "source": "a paper"}
    return [*found[:-1], replace(found[-1], metrics={}, missing="out of memory")]


def written(rows: list[Row], folder: Path) -> str:
    """The report of rows, whose images are grey in 10 levels."""
    images = np.zeros((len(rows), 2, 1, 8, 8), np.uint8)
    images += (10 * np.arange(len(rows), dtype=np.uint8))[:, None, None, None, None]
    names = [f"row {one.point}" for one in rows]
    values = [one.values for one in rows]
    image_grid(images, names, [["seed 0", "seed 1"]], folder / "grid.png", points=values)
    write_tables(rows, folder)
    return write_report([folder], folder / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_one_file_holds_everything(rows, tmp_path):
    text = written(rows, tmp_path)
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe") and attributes.get("href", "#")[0] == "#"
        assert attributes.get("src", "data:image/").startswith("data:image/")
    assert not re.search(r"https?://", text)
    assert text.count('<article id="point') == len(rows)
    assert text.count("plan 3") >= 2  # drawn in the table and in the explorer
    for heading in (
        "FD (a) ↓ against guidance weight w",
        "Precision (a) ↑ against Recall (a) ↑",
        "FD (a) ↓ against evaluations per image",
        "FD (a) ↓ over σ hi and σ lo, interval w = 2",
    ):
        assert heading in text
    assert "0.750 as published" in text and "Missing: point 12" in text
    assert len(text) < 200_000
    again = written(rows, tmp_path)
    assert text == again


def test_nothing_that_is_shown_is_code(rows, tmp_path):
    bad = [replace(rows[0], values={"guidance": NASTY, f"x.{NASTY}": NASTY}, guidance=NASTY)]
    bad += [replace(one, settings={NASTY: NASTY}, unit=NASTY, plan={}) for one in rows[1:]]
    bad[1] = replace(bad[1], missing=NASTY, metrics={}, note=NASTY)
    clean, page = Page(written(rows, tmp_path)), Page(written(bad, tmp_path))
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in clean.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert sum(tag == "img" for tag, _ in page.tags) == len(rows)


@pytest.mark.parametrize(
    "values",
    [[0.0, -0.1, 9.0], [np.inf, 1.0, 2.0], [np.nan] * 3, [1e-9, 1.0, 1e9], [3.0, 3.0, 3.0]],
)
def test_any_values_can_be_drawn(values, tmp_path):
    for values_of in ({"fd_a": 1.0}, {"fd_a": 1.0, "fd_a_lo": -9.0, "fd_a_hi": np.inf}):
        points = [
            row(n, {W: n}, metrics={k: v if k != "fd_a" else one for k, v in values_of.items()})
            for n, one in enumerate(values)
        ]
        for some in (points, points[1:2]):
            write_tables(some, tmp_path)
            path = write_report([tmp_path], tmp_path / "report.html")
            text = path.read_text(encoding="utf-8")
            assert text.count("<article") == len(some)
            assert not re.search(r' (d|x|y|cx|cy)="[^"]*(nan|inf)', text)


def test_what_is_picked_is_what_is_seen(rows):
    with default_settings(STYLE):
        curve, grid = curves(rows)[0], heat_maps(rows)[0]
        line, squares = (drawing(chart, styles_of([curve])) for chart in (curve, grid))
    places = {}
    for trace in line.iterfind(".//g[@class='line']"):
        for mark in [each for each in trace.iter("g") if each.find("circle") is not None]:
            places[int(mark.get("data-pick"))] = -float(mark.find("circle").get("cy"))
    assert len(places) == 11
    assert sorted(places, key=places.get) == sorted(places, key=lambda n: rows[n].metrics["fd_a"])
    for square in squares.iterfind(".//g[@class='map']/g"):
        x, y = map(float, re.match(r"M (\S+) (\S+)", square.find("path").get("d")).groups())
        places[int(square.get("data-pick"))] = (-y, x)
    drawn = range(1, 7)  # of w = 2
    assert sorted(drawn, key=places.get) == [*drawn]  # lo from below, hi from the left


def test_pictures_are_found_by_the_values_of_points(rows, tmp_path):
    written(rows, tmp_path)
    found = pictures_of([replace(one, point=99 - one.point) for one in rows], tmp_path)
    assert sorted(found) == [99 - one.point for one in reversed(rows)]
    assert found[99].caption == "seed 0; seed 1" and found[99].size == (17, 8)  # as they were made
    assert found[99].uri != found[98].uri
    (tmp_path / "other.png").write_bytes(b"no picture")
    assert pictures_of(rows, tmp_path).keys() == {one.point for one in rows}


def test_large_images_are_embedded_small(rows, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (1, 8, 3, 256, 256), np.uint8)
    image_grid(noise, ["a"], [["b"] * 8], tmp_path / "grid.png", points=[rows[0].values])
    found = pictures_of(rows, tmp_path)
    assert found[0].size == (5 * 113 - 1, 2 * 113 - 1) and not found[0].is_coarse
    assert found[0].uri.startswith("data:image/webp") and len(found[0].uri) < 120_000


def test_several_runs_are_one_table(rows, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        written(rows, tmp_path / name)
    out = tmp_path / "both.html"
    assert main(["report", str(tmp_path / "one"), str(tmp_path / "two"), f"out={out}"]) == 0
    text = out.read_text(encoding="utf-8")
    assert text.count('<article id="point') == text.count("<img ") == 2 * len(rows)
    assert re.search(r">run</button>", text)


@pytest.mark.parametrize(
    "words, message",
    [([], "give the folder"), (["{}"], "holds no table"), (["{}", "x=1"], "there is no key x")],
)
def test_what_is_no_sweep_is_refused(words, message, tmp_path, capsys):
    assert main(["report", *(word.format(tmp_path) for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_rows_are_read_as_they_were_written(rows, tmp_path):
    write_tables(rows, tmp_path)
    assert read_rows(tmp_path) == rows
    for content in ("", "{", '{"point": 0}', "[1]"):
        (tmp_path / "rows.jsonl").write_text(content)
        with pytest.raises(GuidexError, match="rows.jsonl"):
            read_rows(tmp_path)


SCRIPT = """<script>
const hit = element => element.dispatchEvent(new MouseEvent("click", {bubbles: true}));
const press = (element, key) => element.dispatchEvent(
  new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
const out = {};
const state = () => all(".pane").map(pane => all("article h3", pane).map(each => each.textContent));
const column = k => all("tbody tr").filter(row => !row.hidden).map(row => text(row, k));
out.first = state();
hit(document.querySelector("svg.map [data-pick='3']"));
out.cell = state();
out.image = document.querySelector(".pane img").naturalWidth;
hit(document.querySelector("svg .line [data-pick*=' ']"));
out.curve = state();
document.getElementById("keep").checked = true;
const charts = all(".charts figure:first-child svg");
const stop = charts[0].querySelector("[tabindex='0']");
stop.focus();
press(stop, "ArrowRight");
press(document.activeElement, "ArrowRight");
out.moved = document.activeElement !== stop && charts[0].contains(document.activeElement);
press(document.activeElement, "Enter");
out.key = state();
out.picked = document.activeElement.classList.contains("picked");
const heading = all("thead button")[5];
hit(heading); out.up = column(5); hit(heading); out.down = column(5);
const filter = document.getElementById("filter");
const type = words => { filter.value = words; filter.dispatchEvent(new Event("input")); };
type("w>2 hi<=1"); out.filtered = column(2); out.faded = all("svg .out").length > 0;
type(""); out.whole = column(2).length;
out.wide = document.documentElement.scrollWidth - innerWidth;
const done = document.createElement("pre"); done.id = "out"; done.textContent = JSON.stringify(out);
document.body.append(done);
</script>"""


def shown(page: Path, width: int, profile: Path) -> dict:
    """What the script has seen on a page, opened from the disk."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command += [f"--window-size={width},900", "--virtual-time-budget=3000", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=60)
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


@needs_browser
@pytest.mark.parametrize("width", [1300, 390])
def test_the_page_works_in_a_browser(rows, tmp_path, width):
    text = written(rows, tmp_path)
    page = tmp_path / "tried.html"
    page.write_text(text + SCRIPT, encoding="utf-8")
    out = shown(page, width, tmp_path / "profile")
    assert out["first"] == [["interval w = 2 (0.1, 0.5]"], ["none"]]
    assert out["cell"] == [["interval w = 2 (0.1, ∞]"], ["interval w = 2 (0.1, 0.5]"]]
    assert out["image"] == 17
    assert out["curve"][1] == out["cell"][0] and len(out["curve"][0]) == 2
    assert out["moved"] and out["picked"]
    assert len(out["key"][0]) == 1 and out["key"][1] == out["curve"][1]  # the right one was kept
    numbers = [float(cell) for cell in out["up"][:-1]]
    assert numbers == sorted(numbers) and out["up"][-1] == out["down"][-1] == "–"
    assert out["down"][:-1] == out["up"][-2::-1] or sorted(out["down"]) == sorted(out["up"])
    assert out["filtered"] == ["3"] * 4 and out["faded"] and out["whole"] == len(rows)
    assert out["wide"] <= 0  # nothing sticks out of the window
