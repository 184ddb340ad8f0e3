"""guidex: guidance experiments for diffusion models.

A diffusion model is a denoiser; guidance is a denoiser that wraps a denoiser; its weights are
planned on the sampler's grid before anything runs. The way of the data is the order of the
packages: files, data, config, models, guidance, sampling, features, metrics, reports, runs,
commands; `cli` comes last.
"""

import os

__version__ = "0.1.0"

if os.environ.get("GUIDEX_OFFLINE", "").lower() not in ("", "0", "false", "no", "off"):
    # The libraries of Hugging Face read it once, when they are imported.
    os.environ["HF_HUB_OFFLINE"] = "1"
