"""Inception-v3 of 2015-12-05, the network of FID, KID and the Inception score.

The weights are TensorFlow's, and the network is torch-fidelity's `inception-v3-compat`, which
differs from torchvision's Inception in its pooling. It resizes by itself, as the TensorFlow graph
did: bilinear to 299 x 299 without antialiasing, from float32 pixels.
"""

import io
from typing import Literal

import torch
from torch import Tensor, nn

from guidex.errors import GuidexError
from guidex.evaluation.networks import NetworkDetector, Precision
from guidex.evaluation.weights import Weights, optional

# torch-fidelity's conversion of TensorFlow's weights; its name ends in the begin of its SHA-256.
URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
PREFIX = "6726825d"

# Name of the detector, name of the layer in torch-fidelity, and number of features.
_LAYERS = {
    "pool3": ("inception", "2048", 2048),
    # Without the bias of the last layer: what the Inception score has always been computed from.
    "logits": ("inception_logits", "logits_unbiased", 1008),
}


def inception(
    weights: str | None = None,
    features: Literal["pool3", "logits"] = "pool3",
    precision: Precision = "float32",
    compile: bool = False,
) -> NetworkDetector:
    """The detector.

    Arguments:
        weights: path or URL of a file like the published one, or None for that one (95 MB).
        features: "pool3", 2048 numbers, for FID, KID, precision and recall; "logits", 1008
            numbers, for the Inception score.
        precision, compile: see `NetworkDetector`.
    """
    name, layer, dim = _LAYERS[features]
    return NetworkDetector(
        name=name,
        dim=dim,
        resize="bilinear without antialiasing to 299 (TensorFlow 1)",
        package="torch_fidelity",
        weights=Weights("Inception-v3 (2015-12-05)", weights, URL, PREFIX),
        build=lambda file: Inception(file, layer),
        prepare=lambda images: images,
        precision=precision,
        compile=compile,
    )


class Inception(nn.Module):
    """torch-fidelity's network with one of its layers as output.

    Arguments:
        weights: of all layers.
        layer: torch-fidelity's name of the layer.

    Raises:
        UsageError: torch-fidelity cannot be imported.
        GuidexError: the weights are those of another network.
    """

    def __init__(self, weights: Weights, layer: str) -> None:
        super().__init__()
        module = optional("torch_fidelity.feature_extractor_inceptionv3")
        # torch-fidelity would unpickle the user's file, and run what it holds. It gets a file
        # instead that was written here from nothing but tensors.
        file = io.BytesIO()
        torch.save(weights.read(), file)
        file.seek(0)
        try:
            self.extractor = module.FeatureExtractorInceptionV3(
                "inception-v3-compat", [layer], feature_extractor_weights_path=file
            )
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise GuidexError(
                f"{weights.path} holds no weights of {weights.what} ({reason:.300}). "
                f"The published file is {weights.url}"
            ) from error

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, D], float32, of images uint8 [B, 3, H, W]."""
        (features,) = self.extractor(images)
        return features
