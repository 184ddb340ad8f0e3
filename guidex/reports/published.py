"""Published values beside measured ones.

A row's configuration may say what was published for its point: `published: {fid: 1.40, source:
"arXiv 2404.07724, table 1", protocol: interval, images: 50000, repeats: 3, statistic: min}`.
"""

from collections.abc import Sequence

from guidex.reports.rows import Row, is_number, metric_columns

_NAMES = {"fid": "fd_inception", "sfid": "fd_inception_spatial"}


def published_value(row: Row, metric: str) -> float | None:
    """What was published of a metric column, by the column's name or the paper's: fid, is."""
    for name, value in row.config.get("published", {}).items():
        column = _NAMES.get(name, name)
        of_any_detector = "_" not in column and metric.startswith(f"{column}_")
        if is_number(value) and (of_any_detector or metric in (column, f"{column}_pil")):
            return value
    return None


def difference(row: Row, metric: str) -> float | None:
    """Measured less published, of the smallest value where a paper tells that of its evaluations;
    None without either."""
    published = published_value(row, metric)
    smallest = row.config.get("published", {}).get("statistic") == "min"
    measured = row.metrics.get(f"{metric}_min" if smallest else metric, row.metrics.get(metric))
    return None if published is None or measured is None else measured - published


def published_columns(rows: Sequence[Row]) -> dict[str, list[float | None]]:
    """Columns for all metrics of which something was published: `published_<metric>`."""
    columns = {
        f"published_{name}": [published_value(row, name) for row in rows]
        for name in metric_columns(rows)
    }
    return {name: values for name, values in columns.items() if set(values) != {None}}


def published_notes(rows: Sequence[Row]) -> list[str]:
    """Where published values are from, and what a comparison takes that the rows do not have."""
    notes = {}
    for row in rows:
        if all(difference(row, name) is None for name in row.metrics):
            continue
        about = row.config["published"]
        images, repeats = about.get("images", row.images), about.get("repeats", row.repeats)
        note = f"Published values (difference in parentheses): {about.get('source', 'no source')}"
        if about.get("statistic") == "min":
            note += f", the smallest of {repeats} evaluations, compared with the smallest here"
        if row.images < images or row.repeats < repeats:
            needed = f"{repeats} × {images:,} {row.unit} needed"
            note += f"; {needed}, these are {row.repeats} × {row.images:,}"
        here = row.provenance.get("presets", {}).get("protocol")
        if about.get("protocol", here) != here:
            note += f"; published under protocol={about['protocol']}, measured without it"
        balanced = {"balanced": "balanced"}
        there, ours = (balanced.get(one.get("labels"), "random") for one in (about, row.config))
        if there != ours:
            note += f"; published with {there} labels, these are {ours}"
        notes[f"{note}."] = None
    return list(notes)
