"""The drawings of the report as SVG, whose points, curves and squares can be picked: an element
with `data-pick` names the points that it stands for. Text is escaped by the XML library."""

import io
import itertools
import math
import re
from collections.abc import Sequence
from xml.etree.ElementTree import Element, fromstring

import matplotlib
import numpy as np

from guidex.reports.charts import Chart, Map, Spot, Square
from guidex.reports.labels import plain
from guidex.reports.plots import Styles, panel_of
from guidex.reports.rows import Row


def tag(name: str, *inside: Element | str, **attributes: object) -> Element:
    """An element of text and elements; class_ is the attribute class, data_pick is data-pick."""
    words = {key.rstrip("_").replace("_", "-"): str(value) for key, value in attributes.items()}
    element = Element(name, words)
    for item in inside:
        if isinstance(item, Element):
            element.append(item)
        elif len(element) > 0:
            element[-1].tail = f"{element[-1].tail or ''}{item}"
        else:
            element.text = f"{element.text or ''}{item}"
    return element


def drawing(chart: Chart | Map, styles: Styles) -> Element:
    """A chart, as for papers, whose curves, points and squares can be picked."""
    file, figure = io.StringIO(), panel_of(chart, styles)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "guidex"}):
        figure.savefig(file, format="svg", bbox_inches=None)
    text = re.sub(r"(?s)^.*?(?=<svg)|<metadata>.*?</metadata>", "", file.getvalue())
    picture = fromstring(re.sub(r' xmlns(:\w+)?="[^"]*"|xlink:(?=href)', "", text))
    for number, trace in enumerate(chart.traces):
        known = [spot for spot in trace.spots if math.isfinite(spot.y)]
        spots, whole = iter(known), f"all of this curve, {len(known)} points"
        for group in picture.iterfind(f".//g[@id='trace{number}']"):
            group.set("class", trace.kind)
            for parent in list(group.iter("g")):
                for k, seen in enumerate(parent):
                    if seen.tag == "path" and trace.kind in ("line", "path"):
                        parent[k] = _pickable(known, whole, seen)
                    elif seen.tag in ("path", "use"):
                        spot = next(spots)
                        parent[k] = _pickable([spot], spot.text, seen)
    used = set(re.findall(r"#([\w-]+)", text))
    for element in picture.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)
    name = plain(", ".join(filter(None, [" ".join(chart.subject), chart.panel])))
    picture.attrib |= {"role": "group", "aria-label": name}
    picture.set("class", "map" if isinstance(chart, Map) else "chart")
    return tag("figure", tag("figcaption", name), picture)


def _pickable(spots: Sequence[Spot | Square], text: str, seen: Element) -> Element:
    """What is seen of some spots, with what the mouse, the keyboard and screen readers need."""
    shape, place = "path", {"d": seen.get("d")}
    if seen.tag == "use":
        shape, place = "circle", {"cx": seen.get("x"), "cy": seen.get("y"), "r": 7}
    points = " ".join(str(spot.row.point) for spot in spots)
    options = {"data_pick": points, "aria_label": text, "role": "button", "tabindex": -1}
    return tag("g", tag("title", text), seen, tag(shape, class_="hit", **place), **options)


def plan_drawing(row: Row, most: float) -> Element:
    """Weights over noise levels, from the first step to the last, w from 1 (or below) to `most`;
    noise levels are spaced as their logarithms."""
    sigmas = [sigma for sigma in row.plan.get("sigmas", []) if sigma > 0]
    text = row.plan.get("summary", "the plan is not known")
    picture = tag("svg", tag("title", text), viewBox="0 0 120 36", class_="plan", role="img")
    picture.append(tag("path", d="M0 33.5H120", class_="grid"))
    if len(sigmas) > 1:
        x = np.interp(np.log(sigmas), np.log([sigmas[-1], sigmas[0]]), (116, 1)).tolist() + [120]
        low = min(1.0, np.min(row.plan["weights"], initial=1.0))
        for term in row.plan["weights"]:
            weights = [max(step, key=lambda w: abs(w - 1)) for step in term]
            y = np.interp(weights, (low, max(most, low + 1)), (33.5, 3))
            steps = itertools.groupby(
                zip(np.round(y, 1).tolist(), x[1:], strict=False), lambda s: s[0]
            )
            stairs = "".join(f"V{height}H{max(step)[1]:.0f}" for height, step in steps)
            picture.append(tag("path", d=f"M1 33.5{stairs}V33.5"))
    return picture
