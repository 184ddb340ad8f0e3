"""What keeps two sets of images from being compared, whatever the metric."""

from collections.abc import Mapping
from typing import Any

NOT_RECORDED = "resize not recorded"


def doubts_of_sides(*, real: Mapping[str, Any], fake: Mapping[str, Any]) -> list[str]:
    """Reasons to doubt a comparison, in whole sentences, from what is known of the two sides. What
    numbers of images do is up to metrics (see `Metric.doubts`)."""
    doubts = []
    formats = [about.get("formats", ()) for about in (real, fake)]
    if all(formats) and ("jpeg" in formats[0]) != ("jpeg" in formats[1]):
        text = ", fake ".join("/".join(sorted(names)) for names in formats)
        doubts.append(f"JPEG meets images without its losses (real {text}), which distances see.")
    shapes = [about.get("shape") for about in (real, fake)]
    if all(shapes) and shapes[0] != shapes[1]:
        text = " and ".join(f"{w}x{h}x{c}" for c, h, w in shapes)
        doubts.append(f"real and fake images differ in size or colour: {text}.")
    detectors = [about.get("detector", {}) for about in (real, fake)]
    precisions = [detector.get("precision") for detector in detectors]
    if all(precisions) and precisions[0] != precisions[1]:
        doubts.append(f"real and fake features differ in precision: {' and '.join(precisions)}.")
    resizes = [detector.get("resize") for detector in detectors]
    if all(resizes) and resizes[0] != resizes[1]:
        doubts.append(
            f"{real.get('path')} does not tell how its images were resized: with another way than "
            f"here ({resizes[1]}), as pytorch-fid has, FID moves by some 5 %."
            if resizes[0] == NOT_RECORDED
            else f"real and fake images are resized in two ways: {' and '.join(resizes)}."
        )
    return doubts
