"""When a device's memory is too small: batches are halved."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from guidex.errors import GuidexError

Result = TypeVar("Result")

# Libraries that find no room for their workspaces, and the CPU's allocator, have no exception of
# their own for it.
_TEXTS = (
    "out of memory",
    "ALLOC_FAILED",
    "unable to find an engine to execute this computation",
    "can't allocate memory",
)


@dataclass
class Halving:
    """The size of batches, in images, halved for good where the device's memory is too small."""

    size: int

    def fit(self, work: Callable[[int], Result]) -> Result:
        """What work(size) returns, for the largest size that fits; GuidexError: not one image."""
        while True:
            size = self.size
            try:
                return work(size)
            except RuntimeError as error:
                known = any(text in str(error) for text in _TEXTS)
                if not (known or isinstance(error, torch.OutOfMemoryError)):
                    raise
                reason = str(error).splitlines()[0]
            # Here, what failed is no longer held by its exception.
            if size == 1:
                raise GuidexError(f"the device has too little memory for a single image: {reason}")
            if self.size == size:  # no other thread has halved it
                self.size = size // 2
                print(f"out of memory: going on with batches of {self.size}", file=sys.stderr)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
