"""The ideal denoiser of a kernel-smoothed data set: exact diffusion on any folder of images.

Every image becomes the centre of an isotropic Gaussian of bandwidth h, per class. Adding noise of
level sigma only widens the Gaussians to v = h^2 + sigma^2, so everything that guidance needs has a
closed form (cf. Karras et al. 2022, arXiv 2206.00364, equation 57, which is the case h = 0):

    p_i       = softmax_i(-|x - c_i|^2 / 2v)
    D(x; s)   = (h^2 x + s^2 sum_i p_i c_i) / v
    log p(x)  = logsumexp_i(-|x - c_i|^2 / 2v) - log N - d/2 log(2 pi v)

Wider kernels make a "worse version" of the same model, which is what autoguidance asks for.
"""

import math
from collections.abc import Iterator
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from guidex.data.codec import to_float
from guidex.data.image_set import ImageSet
from guidex.data.images import digits, open_images
from guidex.errors import UsageError
from guidex.models.condition import Condition, Conditions
from guidex.models.denoiser import ExactDenoiser

CHUNK_BYTES = 64 * 2**20  # what one float64 tile of centres or of logits may take


class KernelDenoiser(ExactDenoiser):
    """Class-conditional mixture of Gaussians of bandwidth h centred on images, in float64.

    Arguments:
        images: the centres, uint8 [N, C, H, W]; they mean u / 127.5 - 1 in [-1, 1].
        labels: class of each centre, int64 [N], or None for data without classes.
        h: bandwidth, in the units of x; positive.
        conditional: False ignores the labels given to it (the unconditional model).
        class_names: what the labels stand for.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None,
        h: float,
        conditional: bool = True,
        class_names: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        if not h > 0:
            raise UsageError(f"h is the bandwidth of the kernels and must be positive, not {h}")
        if conditional and labels is None:
            raise UsageError(
                "these images have no classes (one subfolder per class makes them); "
                "give model.conditional=false for an unconditional model"
            )
        sizes = torch.bincount(labels) if conditional else torch.empty(0)
        if not bool((sizes > 0).all()):
            raise UsageError(
                f"class {int(sizes.argmin())} has no images; number the classes 0 … K - 1 without "
                "gaps, or give model.conditional=false"
            )
        centres = images if labels is None else images[torch.argsort(labels, stable=True)]
        self.shape = tuple(centres.shape[1:])
        self.h = float(h)
        self.conditional = conditional
        self.conditions = Conditions(len(sizes), class_names if conditional else ())
        self.offsets = [0, *sizes.cumsum(0).tolist()]
        self.register_buffer("centres", centres.flatten(1))
        n, d = self.centres.shape
        tiles = list(self._tiles(0, n, 1))
        norms = [to_float(self.centres[a:b]).square().sum(1) / 2 for a, b in tiles]
        self.register_buffer("half_norms", torch.cat(norms))
        # Root of the mean variance, over pixels, of the smoothed data.
        mean = sum(to_float(self.centres[a:b]).sum(0) for a, b in tiles) / n
        second = 2 * float(self.half_norms.sum()) / (n * d)
        self.sigma_data = math.sqrt(second - float(mean.square().mean()) + self.h**2)
        self.sigma_min, self.sigma_max = 0.0, math.inf
        self.gflops = 4e-9 * n / max(self.num_classes, 1) * d  # distances, then the weighted mean

    def forward(self, x: Tensor, sigma: float, condition: Condition = None) -> Tensor:
        variance = self.h**2 + sigma**2
        flat = x.flatten(1).double()
        mean = self.by_class(partial(self._posterior_mean, variance), flat, condition)
        x0 = (self.h**2 * flat + sigma**2 * mean) / variance
        return x0.view(x.shape).to(x.dtype)

    def log_density(self, x: Tensor, sigma: float, labels: Tensor | None = None) -> Tensor:
        variance = self.h**2 + sigma**2
        flat = x.flatten(1).double()

        def log_kernels(rows: Tensor, start: int, stop: int) -> Tensor:
            logits = rows @ to_float(self.centres[start:stop]).T - self.half_norms[start:stop]
            return torch.logsumexp(logits / variance, 1)

        def log_sum(rows: Tensor, label: int | None) -> Tensor:
            start, stop = self._range(label)
            tiles = self._tiles(start, stop, len(flat))
            parts = [checkpoint(log_kernels, rows, *tile, use_reentrant=False) for tile in tiles]
            total = torch.logsumexp(torch.stack(parts), 0) - rows.square().sum(1) / 2 / variance
            return total - math.log(stop - start)

        constant = flat.shape[1] / 2 * math.log(2 * math.pi * variance)
        return self.by_class(log_sum, flat, labels) - constant

    def sample(self, labels: Tensor | None, count: int, generator: torch.Generator) -> Tensor:
        """A centre of the class plus noise of bandwidth h, float64; see ExactDenoiser."""
        device = self.centres.device
        options = {"dtype": torch.float64, "generator": generator, "device": device}
        uniform = torch.rand(count, **options)

        def picked(rows: Tensor, label: int | None) -> Tensor:
            start, stop = self._range(label)
            return start + (rows * (stop - start)).long()

        centres = self.centres[self.by_class(picked, uniform, labels)]
        noise = torch.randn(count, self.centres.shape[1], **options)
        return (to_float(centres) + self.h * noise).view(count, *self.shape)

    def reference(self, count: int, seed: int) -> tuple[Tensor, Tensor | None]:
        labels = None
        if self.conditional:
            counts = torch.tensor(self.offsets).diff()
            labels = torch.repeat_interleave(torch.arange(self.num_classes), counts)
        return self.centres.cpu().view(-1, *self.shape), labels

    def _range(self, label: int | None) -> tuple[int, int]:
        """The centres of a class, or of all."""
        return (0, len(self.centres)) if label is None else tuple(self.offsets[label : label + 2])

    def _posterior_mean(self, variance: float, x: Tensor, label: int | None) -> Tensor:
        """sum_i p_i c_i over the centres of a class, one tile at a time (an online softmax)."""
        top = torch.full((len(x), 1), -math.inf, dtype=x.dtype, device=x.device)
        total, mean = torch.zeros_like(top), torch.zeros_like(x)
        for a, b in self._tiles(*self._range(label), len(x)):
            centres = to_float(self.centres[a:b])
            # |x|^2 is the same for every centre and drops out of the softmax.
            logits = torch.addmm(self.half_norms[a:b], x, centres.T, beta=-1).div_(variance)
            new_top = torch.maximum(top, logits.amax(1, keepdim=True))
            weights = logits.sub_(new_top).exp_()
            shrink = (top - new_top).exp()
            total = total * shrink + weights.sum(1, keepdim=True)
            mean = torch.addmm(mean * shrink, weights, centres)
            top = new_top
        return mean / total

    def _tiles(self, start: int, stop: int, rows_count: int) -> Iterator[tuple[int, int]]:
        size = max(1, CHUNK_BYTES // (8 * max(self.centres.shape[1], rows_count)))
        for a in range(start, stop, size):
            yield a, min(a + size, stop)


@lru_cache(maxsize=4)
def _load(data: str, resize: int | None) -> tuple[ImageSet, Tensor, Tensor | None]:
    """The data set, its images uint8 [N, C, H, W] and their classes, int64 [N]."""
    images = digits(resize) if data == "digits" else open_images(data, resize=resize)
    labels = None if images.labels is None else torch.as_tensor(images.labels, dtype=torch.int64)
    return images, torch.from_numpy(images.read(range(len(images)))), labels


def kernel(
    data: str, h: float, conditional: bool = True, resize: int | None = None
) -> KernelDenoiser:
    """The ideal denoiser of the images in a folder, zip or npz (class = subfolder), or of "digits".

    Arguments:
        data: path of the images, or "digits" for scikit-learn's (./digits: a folder of that name).
        h: bandwidth of the kernels, in units of [-1, 1] pixels.
        conditional: use the classes.
        resize: side in pixels to which images are resized, or None to require equal sizes.
    """
    images, pixels, labels = _load(data, resize)
    model = KernelDenoiser(pixels, labels, h, conditional, tuple(images.class_names or ()))
    if data != "digits":
        model.origin = {"source": data, "path": data, "sha256": images.fingerprint()}
    return model
