"""What keeps a distance from being compared with published ones, told in time."""

from collections.abc import Mapping
from typing import Any

# Images that published FID and FD_DINOv2 are computed from (Heusel et al. 2017; EDM2; dgm-eval).
PROTOCOL_IMAGES = 50_000


def concerns(
    *, real: Mapping[str, Any], fake: Mapping[str, Any], detector: str, dim: int, network: bool
) -> list[str]:
    """Reasons to doubt a comparison, in whole sentences; none if there are none.

    Arguments:
        real, fake: what is known of the two sides: count, shape and formats of the images, and
            how the detector looked at them.
        detector: its name.
        dim: number of its features.
        network: whether it is a published network, whose protocol asks for a number of images.
    """
    found = []
    for side, about in (("real", real), ("fake", fake)):
        count = about.get("count")
        if count is None:
            continue
        if count <= dim:
            found.append(
                f"{count:,} {side} images and {dim:,} features of {detector}: a covariance of "
                "no more images than features is singular, and bias rules the distance."
            )
        elif network and count < PROTOCOL_IMAGES:
            found.append(
                f"{count:,} {side} images: published distances are of {PROTOCOL_IMAGES:,}, and "
                "with fewer they come out larger."
            )
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
    precisions = [about.get("detector", {}).get("precision") for about in (real, fake)]
    if all(precisions) and precisions[0] != precisions[1]:
        found.append(f"real and fake features differ in precision: {' and '.join(precisions)}.")
    return found


def score_concerns(fake: Mapping[str, Any]) -> list[str]:
    """Reasons to doubt a score of the fake images alone (the Inception score)."""
    count = fake["count"]
    if count >= PROTOCOL_IMAGES:
        return []
    return [
        f"{count:,} fake images: published scores are of {PROTOCOL_IMAGES:,}, and with fewer they "
        "come out smaller."
    ]
