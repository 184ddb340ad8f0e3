"""Best values on the edge of an axis, beyond which better ones may lie."""

import math
from collections.abc import Sequence

import numpy as np

from guidex.reports.labels import last, relevant, unit
from guidex.reports.rows import Metric, Row, Value, is_number


def edge_of_best(rows: Sequence[Row], metric: Metric) -> tuple[Row, list[str]] | None:
    """The best row, and the swept keys at whose first or last value it lies.

    An axis of a row is a numeric key of guidance, sampler or model, over the rows that agree with
    it in all other keys (in zip mode, in all that are no numbers). It does not end where there is
    nothing beyond: at w = 1, which is no guidance, at 0, at infinity, and where an interval
    reaches the sampler's first or last step.

    Arguments:
        rows: in which to look; missing ones are part of their axes.
        metric: with a direction; values that print alike are equally good.

    Returns:
        None without two values, or where equally good ones lie on no common edge.
    """
    known = {row.point: row.metrics.get(metric.name, math.nan) for row in rows}
    finite = [value for value in known.values() if math.isfinite(value)]
    if metric.better is None or len(finite) < 2:
        return None
    digits = metric.decimals(finite)
    best = (min if metric.better == "lower" else max)(finite)
    alike = [row for row in rows if f"{known[row.point]:.{digits}f}" == f"{best:.{digits}f}"]
    first, *others = (_edges(row, rows) for row in alike)
    keys = [key for key, end in first.items() if all(one.get(key) == end for one in others)]
    return (alike[0], keys) if len(keys) > 0 else None


def _edges(row: Row, rows: Sequence[Row]) -> dict[str, Value]:
    found = {}
    for key, value in relevant(row).items():
        if "." not in key or not is_number(value):
            continue
        apart = _apart(row, key)
        axis = [other.values.get(key) for other in rows if _apart(other, key) == apart]
        axis = sorted({one for one in axis if is_number(one)})
        for end in (axis[0], axis[-1]) if len(axis) > 1 else ():
            if value == end and not _is_natural(row, key, low=end == axis[0]):
                found[key] = value
    return found


def _apart(row: Row, key: str) -> dict[str, Value]:
    """What a row has in common with the others of an axis."""
    paired = row.config.get("sweep", {}).get("mode") == "zip"
    return {k: v for k, v in row.values.items() if k != key and not (paired and is_number(v))}


def _is_natural(row: Row, key: str, low: bool) -> bool:
    """Whether there is nothing beyond the lowest or highest value of an axis, which the row has."""
    name = last(key)
    if math.isinf(row.values[key]) or (low and row.values[key] == (1 if name == "w" else 0)):
        return True
    if name != ("lo" if low else "hi") or "weights" not in row.plan:
        return False
    guided = (np.array(row.plan["weights"]) != 1).any(axis=(0, 2))
    # A bound in sigma counts down to 0, steps count up to the last.
    return bool(guided[0 if (name == "hi") == (unit(row, key) == "sigma") else -1])
