"""What keeps a distance from being compared with published ones, told in time."""

from collections.abc import Mapping
from typing import Any

# Images that published FID and FD_DINOv2 are computed from (Heusel et al. 2017; EDM2; dgm-eval).
PUBLISHED_IMAGES = 50_000


def concerns(*, real: Mapping[str, Any], fake: Mapping[str, Any]) -> list[str]:
    """Reasons to doubt a comparison, whatever the metric, in whole sentences; none if there are
    none. What numbers of images do is up to metrics (see `Metric.doubts`).

    Arguments:
        real, fake: what is known of the two sides: shape and formats of the images, and how the
            detector looked at them.
    """
    found = []
    formats = [set(about.get("formats", ())) for about in (real, fake)]
    if all(formats) and ("jpeg" in formats[0]) != ("jpeg" in formats[1]):
        told = ", ".join(
            f"{side} {'/'.join(sorted(kinds))}"
            for side, kinds in zip(("real", "fake"), formats, strict=True)
        )
        found.append(f"JPEG meets images without its losses ({told}), which distances see.")
    shapes = [about.get("shape") for about in (real, fake)]
    if all(shapes) and shapes[0] != shapes[1]:
        told = " and ".join(f"{w}x{h}x{c}" for c, h, w in shapes)
        found.append(f"real and fake images differ in size or colour: {told}.")
    looks = [about.get("detector", {}) for about in (real, fake)]
    precisions = [look.get("precision") for look in looks]
    if all(precisions) and precisions[0] != precisions[1]:
        found.append(f"real and fake features differ in precision: {' and '.join(precisions)}.")
    resizes = [look.get("resize") for look in looks]
    if all(resizes) and resizes[0] != resizes[1]:
        found.append(
            f"{real.get('path')} does not tell how its images were resized: with another way than "
            f"here ({resizes[1]}), as pytorch-fid has, FID moves by some 5 %."
            if resizes[0] == NOT_RECORDED
            else f"real and fake images are resized in two ways: {' and '.join(resizes)}."
        )
    return found


NOT_RECORDED = "resize not recorded"


def singular(*, real: int | None, fake: int, detector: str, dim: int) -> list[str]:
    """Doubts of Gaussian fits to no more images than features."""
    return [
        f"{count:,} {side} images and {dim:,} features of {detector}: a covariance of no more "
        "images than features is singular, and bias rules the distance."
        for side, count in (("real", real), ("fake", fake))
        if count is not None and count <= dim
    ]


def too_few(*, real: int | None = None, fake: int | None = None, dim: int) -> list[str]:
    """Doubts of Gaussian fits to fewer images than those of published distances, where they are
    not singular."""
    return [
        f"{count:,} {side} images: published distances are of {PUBLISHED_IMAGES:,}, and with fewer "
        "they come out larger."
        for side, count in (("real", real), ("fake", fake))
        if count is not None and dim < count < PUBLISHED_IMAGES
    ]
