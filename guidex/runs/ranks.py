"""Several processes on one run (torchrun); they never talk."""

import os
from typing import NamedTuple


class Rank(NamedTuple):
    """This process among those that were started together."""

    index: int  # over all machines, from 0
    count: int  # of all processes
    local: int  # on this machine, which is the number of its GPU

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks for all."""
        return self.index == 0


def this_rank() -> Rank:
    """What torchrun says in RANK, WORLD_SIZE and LOCAL_RANK; one process alone otherwise."""
    defaults = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
    return Rank(*(int(os.environ.get(name, default)) for name, default in defaults.items()))
