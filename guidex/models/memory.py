"""When a device's memory is too small."""

import torch

# Libraries that find no room for their workspaces, and the CPU's allocator, have no exception of
# their own for it.
_TEXTS = (
    "out of memory",
    "ALLOC_FAILED",
    "unable to find an engine to execute this computation",
    "can't allocate memory",
)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a smaller batch may help."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return any(text in str(error) for text in _TEXTS)
