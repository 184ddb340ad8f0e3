"""The drawings of the report as SVG, whose points, curves and squares can be picked: an element
with `data-pick` names the points that it stands for. Text is escaped by the XML library."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from xml.etree.ElementTree import Element

import numpy as np
from matplotlib.colors import to_hex
from matplotlib.ticker import MaxNLocator

from guidex.reports.charts import Chart, Trace
from guidex.reports.heat_maps import Square
from guidex.reports.labels import plain
from guidex.reports.rows import Row, shown

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 370, 10, 228  # of the axes of a chart
_ACROSS, _DOWN = 54, 28  # a square of a heat map


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


def pickable(name: str, rows: Iterable[Row], text: str, *inside: Element, **more) -> Element:
    """What stands for points, for the mouse, the keyboard and screen readers."""
    more |= {"data_pick": " ".join(str(row.point) for row in rows), "aria_label": text}
    return tag(name, tag("title", text), *inside, role="button", tabindex=-1, **more)


class _Axis:
    """From values to pixels."""

    def __init__(self, values: Iterable[float], start: float, end: float, log: bool) -> None:
        values = [value for value in values if math.isfinite(value)]
        least = min((value for value in values if value > 0), default=1.0)
        self._log, self._turn = log, (lambda v: math.log10(max(v, least))) if log else float
        low, high = self._turn(min(values)), self._turn(max(values))
        room = 0.05 * (high - low) or 0.1 * abs(high) or 1
        self._ends, self._place = (low - room, high + room), (start, end)

    def __call__(self, value: float) -> float:
        return round(float(np.interp(self._turn(value), self._ends, self._place)), 1)

    def ticks(self) -> Iterable[tuple[float, str]]:
        """The places of round numbers."""
        low, high = self._ends
        tens = range(math.floor(low), math.ceil(high)) if self._log else ()
        values = [m * 10.0**e for e in tens for m in (1, 2, 5)]
        values = values or MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high).tolist()
        turn = math.log10 if self._log else float
        return [(self(v), f"{v:.6g}") for v in values if low <= turn(v) <= high]


def drawing(chart: Chart, styles: Mapping[str, str]) -> Element:
    """A chart, with the style of each label, which sets --colour."""
    spots = [spot for trace in chart.traces for spot in trace.spots if math.isfinite(spot.y)]
    across = [s.x for t in chart.traces if t.kind != "level" for s in t.spots if math.isfinite(s.y)]
    x = _Axis(across or [0.0], _LEFT, _RIGHT, log=False)
    y = _Axis([v for s in spots for v in (s.y, s.low, s.high)], _BOTTOM, _TOP, chart.is_log)
    x_label, y_label = plain(chart.x), ", ".join(filter(None, map(plain, (chart.y, chart.panel))))
    picture = tag("svg", viewBox="0 0 380 270", role="group", aria_label=f"{y_label}, {x_label}")
    for place, text in x.ticks():
        picture.append(tag("text", text, x=place, y=_BOTTOM + 15, class_="x"))
    for place, text in y.ticks():
        picture.append(tag("path", d=f"M{_LEFT} {place}H{_RIGHT}", class_="grid"))
        picture.append(tag("text", text, x=_LEFT - 5, y=place + 4, class_="y"))
    picture.append(tag("text", x_label, x=(_LEFT + _RIGHT) / 2, y=262, class_="x"))
    picture.extend(_drawn(t, x, y, styles.get(t.label, "")) for t in chart.traces)
    return tag("figure", tag("figcaption", f"{y_label} against {x_label}"), picture)


def _drawn(trace: Trace, x: _Axis, y: _Axis, style: str) -> Element:
    group = tag("g", class_=trace.kind, style=style)
    known = [spot for spot in trace.spots if math.isfinite(spot.y)]
    pairs = [
        pair for pair in itertools.pairwise(trace.spots) if math.isfinite(sum(s.y for s in pair))
    ]
    lines = " ".join(f"M{x(a.x)} {y(a.y)}L{x(b.x)} {y(b.y)}" for a, b in pairs)
    if trace.kind == "front":
        lines = " ".join(f"M{x(a.x)} {y(a.y)}H{x(b.x)}V{y(b.y)}" for a, b in pairs)
        group.append(tag("path", d=lines))
    elif trace.kind in ("line", "path") and pairs:
        bands = [(a, b) for a, b in pairs if math.isfinite(a.high + b.high)]
        shape = "".join(
            f"M{x(a.x)} {y(a.low)}L{x(b.x)} {y(b.low)}V{y(b.high)}L{x(a.x)} {y(a.high)}Z"
            for a, b in bands
        )
        group.append(tag("path", d=shape, class_="band"))
        rows, text = [spot.row for spot in known], f"all of this curve, {len(known)} points"
        line = [tag("path", d=lines, class_=name) for name in ("hit", "seen")]
        group.append(pickable("g", rows, text, *line))
    for spot in known if trace.kind != "front" else ():
        if trace.kind == "level":
            d = f"M{_LEFT} {y(spot.y)}H{_RIGHT}"
            marks = [tag("path", d=d, class_=name) for name in ("hit", "seen")]
        else:
            place = {"cx": x(spot.x), "cy": y(spot.y)}
            marks = [tag("circle", r=r, **place, class_=c) for r, c in ((9, "hit"), (3.5, "seen"))]
        group.append(pickable("g", [spot.row], spot.text, *marks))
    return group


def heat_map(
    name: str, labels: tuple[str, str], values: Sequence[Sequence[float]], squares: Sequence[Square]
) -> Element:
    """Squares over two axes of some labels and values, the lowest value at the left and below."""
    (x, y), bottom, left = values, len(values[1]) * _DOWN, 60
    width, height = left + len(x) * _ACROSS + 6, bottom + 40
    size = {"viewBox": f"0 0 {width} {height}", "width": width, "height": height}
    picture = tag("svg", **size, role="group", aria_label=name, class_="map")
    for one in sorted(squares, key=lambda one: one.is_best):  # whose frame lies over others
        place = {"x": left + one.x * _ACROSS, "y": bottom - (one.y + 1) * _DOWN}
        middle = {"x": place["x"] + _ACROSS / 2, "y": place["y"] + _DOWN / 2 + 4}
        colour = to_hex(one.rgba) if one.text else "#ddd"
        kind = "best" if one.is_best else "square"
        shape = tag("rect", **place, width=_ACROSS, height=_DOWN, fill=colour, class_=kind)
        text = tag("text", one.text, **middle, class_="x", fill="#fff" if one.is_dark else "#000")
        where = ", ".join(f"{labels[k]} {shown(values[k][(one.x, one.y)[k]])}" for k in (0, 1))
        said = f"{where}: {one.text or 'missing'}"
        picture.append(pickable("g", [one.row], said, shape, text))
    for k, value in enumerate(x):
        place = left + (k + 0.5) * _ACROSS
        picture.append(tag("text", shown(value), x=place, y=bottom + 15, class_="x"))
    for k, value in enumerate(y):
        place = bottom - (k + 0.5) * _DOWN + 4
        picture.append(tag("text", shown(value), x=left - 5, y=place, class_="y"))
    picture.append(tag("text", labels[0], x=left + len(x) * _ACROSS / 2, y=bottom + 34, class_="x"))
    turned = f"translate(12 {bottom / 2}) rotate(-90)"
    picture.append(tag("text", labels[1], transform=turned, class_="x"))
    return tag("figure", tag("figcaption", name), picture)


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
