"""`guidex convert`: an EDM2 snapshot (.pkl) as .safetensors."""

from collections.abc import Sequence

import torch

from guidex.commands.words import flag, required, split_words
from guidex.errors import UsageError
from guidex.files.cache import fetch
from guidex.models.edm2.checkpoints import read_checkpoint, require_free, write_checkpoint
from guidex.models.edm2.load import network_of


def convert_command(words: Sequence[str]) -> None:
    """Run the command: a path or URL, out=PATH.safetensors, and maybe overwrite=true."""
    files, settings = split_words(words, ("out", "overwrite"))
    if len(files) != 1:
        raise UsageError(f"convert takes one checkpoint, not {len(files)}")
    out = str(required(settings, "out", "network.safetensors"))
    require_free(out, flag(settings, "overwrite"))
    checkpoint = read_checkpoint(fetch(files[0]))
    network_of(checkpoint, files[0], torch.float32)  # which may refuse it
    write_checkpoint(checkpoint, out)
    count = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    about = checkpoint.metadata
    print(f"{out}: {len(checkpoint.tensors)} tensors, {count:,} numbers, {about['dtype']}")
    origin = f", SHA-256 {about['sha256']}" if "sha256" in about else ""
    print(f"of {about['source']}{origin}")
