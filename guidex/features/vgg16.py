"""VGG16 (Simonyan and Zisserman 2014, arXiv 1409.1556), the network of improved precision and
recall (Kynkäänniemi et al. 2019, arXiv 1904.06991; k = 3, 50,000 images on each side).

The network, its resize (TensorFlow 1: bilinear without antialiasing to 224 x 224) and its
normalisation are torch-fidelity's `vgg16`, and the weights torchvision's IMAGENET1K_V1, so numbers
compare with torch-fidelity's. The authors took a TensorFlow network of their own (`vgg16.pkl`),
whose weights and resize may be others: compare with the paper's numbers with care.
"""

from functools import partial

from guidex.features.inception import Extractor
from guidex.features.networks import NetworkDetector, Precision
from guidex.features.weights import Weights

# Its name ends in the begin of its SHA-256.
URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
PREFIX = "397923af"


def vgg16(
    weights: str | None = None, precision: Precision = "float32", compile: bool = False
) -> NetworkDetector:
    """The detector: the second fully connected layer after its ReLU (fc2), 4096 numbers; `weights`
    is a path or URL of a file like the published one, or None for that one (553 MB)."""
    return NetworkDetector(
        name="vgg16",
        dim=4096,
        resize="bilinear without antialiasing to 224 (TensorFlow 1)",
        package="torch_fidelity",
        weights=Weights("VGG16 (torchvision)", weights, URL, PREFIX),
        build=partial(Extractor, "feature_extractor_vgg16", "FeatureExtractorVGG16"),
        outputs=("fc2_relu",),
        precision=precision,
        compile=compile,
    )
