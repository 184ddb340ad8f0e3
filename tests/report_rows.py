"""Rows for the tests of tables and figures."""

from dataclasses import replace

from guidex.reports.rows import Row

W, LO, HI = "guidance.schedule.w", "guidance.schedule.lo", "guidance.schedule.hi"


def row(point: int, values: dict, guidance: str = "cfg", **changes) -> Row:
    """A point of 64 images, without metrics unless they are given."""
    plain = Row(
        point=point,
        values=values,
        guidance=guidance,
        images=64,
        repeats=1,
        metrics={},
        settings={"detector": "pixels", "k": 3, "rule": "<"},
        evals_main=63,
        evals_ref=63,
        gflops=1.5,
        seconds=3.25,
    )
    return replace(plain, **changes)
