"""Inception-v3 of 2015-12-05, the network of FID, sFID, KID and the Inception score.

The weights are TensorFlow's, and the network is torch-fidelity's `inception-v3-compat`, which
differs from torchvision's Inception in its pooling. It resizes by itself, as the TensorFlow graph
did: bilinear to 299 x 299 without antialiasing, from float32 pixels.

sFID (Nash et al. 2021, arXiv 2103.03841) is the Fréchet distance of features that still know where
they are. As ADM's evaluator takes them, they are the first 7 channels of the TensorFlow graph's
`mixed_6/conv:0` at 17 x 17 places, flattened as height, width, channel.
"""

import io
from typing import Literal

import torch
from torch import Tensor, nn

from guidex.features.networks import NetworkDetector, Precision
from guidex.features.weights import Weights
from guidex.models.pretrained import library

# torch-fidelity's conversion of TensorFlow's weights; its name ends in the begin of its SHA-256.
URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
PREFIX = "6726825d"

SPATIAL_CHANNELS = 7

# Name of the detector, name of the layer in torch-fidelity, and number of features.
_LAYERS = {
    "pool3": ("inception", "2048", 2048),
    # Without the bias of the last layer: what the Inception score has always been computed from.
    "logits": ("inception_logits", "logits_unbiased", 1008),
    # The first layer that torch-fidelity can stop at behind mixed_6, which a hook reads.
    "spatial": ("inception_spatial", "768", SPATIAL_CHANNELS * 17 * 17),
}


def inception(
    weights: str | None = None,
    features: Literal["pool3", "logits", "spatial"] = "pool3",
    precision: Precision = "float32",
    compile: bool = False,
) -> NetworkDetector:
    """The detector of FID, KID, precision and recall ("pool3", 2048 numbers), of the Inception
    score ("logits", 1008), or of sFID ("spatial", 2023); `weights` is a path or URL of a file like
    the published one, or None for that one (95 MB)."""
    name, _, dim = _LAYERS[features]
    return NetworkDetector(
        name=name,
        dim=dim,
        resize="bilinear without antialiasing to 299 (TensorFlow 1)",
        package="torch_fidelity",
        weights=Weights("Inception-v3 (2015-12-05)", weights, URL, PREFIX),
        build=Inception,
        outputs=(features,),
        precision=precision,
        compile=compile,
    )


class Extractor(nn.Module):
    """A network of torch-fidelity, by its names there, with some of its layers as outputs, side by
    side. Raises UsageError: torch-fidelity cannot be imported; GuidexError: the weights are those
    of another network."""

    def __init__(self, module: str, network: str, weights: Weights, *layers: str) -> None:
        super().__init__()
        make = getattr(library(f"torch_fidelity.{module}", "eval"), network)
        # torch-fidelity would unpickle the user's file, and run what it holds. It gets a file
        # instead that was written here from nothing but tensors.
        file = io.BytesIO()
        torch.save(weights.read(), file)
        file.seek(0)
        try:
            self.extractor = make(network, list(layers), feature_extractor_weights_path=file)
        except RuntimeError as error:
            raise weights.mismatch(error) from error

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, D], float32, of images uint8 [B, 3, H, W]."""
        return torch.cat(self.extractor(images), dim=1)


class Inception(Extractor):
    """Inception-v3 with the features of one or several detectors, side by side, from one pass.

    The graph's eleven blocks mixed, mixed_1, ... mixed_10 are torch-fidelity's Mixed_5b to 5d, 6a
    to 6e and 7a to 7c in this order, so that mixed_6 is Mixed_6d; its conversion of the weights
    pairs them so, too. Of a block, `conv` is what lies in none of the towers: the 1 x 1 branch.
    The node of that very name is the last one of its scope (Conv2D, batchnorm, CheckNumerics,
    control_dependency, conv), behind the ReLU.
    """

    def __init__(self, weights: Weights, *outputs: str) -> None:
        layers = [_LAYERS[output][1] for output in outputs]
        names = ("feature_extractor_inceptionv3", "FeatureExtractorInceptionV3")
        super().__init__(*names, weights, *layers)
        self.outputs = outputs
        self.extractor.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, sum of D], float32, of images uint8 [B, 3, H, W]."""
        features = dict(zip(self.outputs, self.extractor(images), strict=True))
        if "spatial" in features:
            leading = self.branch[:, :SPATIAL_CHANNELS]
            features["spatial"] = leading.permute(0, 2, 3, 1).flatten(1).float()
        return torch.cat(list(features.values()), dim=1)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.branch = output
