"""The ideal denoiser of a kernel-smoothed data set: exact diffusion on any folder of images.

Every image becomes the centre of an isotropic Gaussian of bandwidth h, per class. Adding noise of
level sigma only widens the Gaussians to v = h^2 + sigma^2, so everything that guidance needs has a
closed form (cf. Karras et al. 2022, arXiv 2206.00364, equation 57, which is the case h = 0):

    p_i       = softmax_i(-|x - c_i|^2 / 2v)
    D(x; s)   = (h^2 x + s^2 sum_i p_i c_i) / v
    log p(x)  = logsumexp_i(-|x - c_i|^2 / 2v) - log N - d/2 log(2 pi v)

Wider kernels make a "worse version" of the same model, which is what autoguidance asks for.
"""

import functools
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from guidex.data.digits import digits
from guidex.data.images import open_images
from guidex.data.pixels import to_float
from guidex.errors import UsageError
from guidex.models.condition import Condition, Conditions
from guidex.models.denoiser import ExactDenoiser

CHUNK_BYTES = 64 * 2**20  # what one float64 tile of centres or of logits may take


class KernelDenoiser(ExactDenoiser):
    """Class-conditional mixture of Gaussians of bandwidth h centred on images.

    Computes in float64 whatever the dtype of x, so that a batch's size does not change its images.

    Arguments:
        images: the centres, uint8 [N, C, H, W]; they mean u / 127.5 - 1 in [-1, 1].
        labels: class of each centre, int64 [N], or None for data without classes.
        h: bandwidth, in the units of x; positive.
        conditional: False ignores the labels given to it (the unconditional model).
        class_names: what the labels stand for.

    Raises:
        UsageError: a bandwidth that is not positive, no labels where conditional, or a class
            without images.
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
                "gaps, or give model.conditional=false for an unconditional model"
            )
        order = torch.argsort(labels, stable=True) if labels is not None else slice(None)
        centres = images[order].contiguous()
        self.shape = tuple(centres.shape[1:])
        self.h = float(h)
        self.conditional = conditional
        self.conditions = Conditions(len(sizes), class_names if conditional else ())
        self.offsets = [0, *sizes.cumsum(0).tolist()]
        self.register_buffer("centres", centres.flatten(1))
        n, d = self.centres.shape
        tiles = list(self._chunks(0, n, 1))
        norms = [self._float_centres(a, b).square().sum(1) / 2 for a, b in tiles]
        self.register_buffer("half_norms", torch.cat(norms))
        # Root of the mean variance, over pixels, of the smoothed data.
        mean = sum(self._float_centres(a, b).sum(0) for a, b in tiles) / n
        second = 2 * float(self.half_norms.sum()) / (n * d)
        self.sigma_data = math.sqrt(second - float(mean.square().mean()) + self.h**2)
        self.sigma_min, self.sigma_max = 0.0, math.inf
        self.gflops = 4e-9 * n / max(self.num_classes, 1) * d  # distances, then the weighted mean

    def forward(self, x: Tensor, sigma: float, condition: Condition = None) -> Tensor:
        """D(x; sigma, condition). Without one, or an unconditional model: the mixture of all
        classes."""
        variance = self.h**2 + sigma**2
        flat = x.flatten(1).double()
        mean = torch.empty_like(flat)
        for rows, part in self._groups(flat, condition):
            mean[rows] = self._posterior_mean(flat[rows], variance, *part)
        x0 = (self.h**2 * flat + sigma**2 * mean) / variance
        return x0.view(x.shape).to(x.dtype)

    def log_density(self, x: Tensor, sigma: float, labels: Tensor | None = None) -> Tensor:
        """log p(x; sigma | labels), [B], float64, differentiable in x."""
        variance = self.h**2 + sigma**2
        flat = x.flatten(1).double()
        out = torch.empty(len(flat), dtype=torch.float64, device=flat.device)
        for rows, (start, stop) in self._groups(flat, labels):
            members = flat[rows]  # one copy, which every tile keeps for the backward pass
            part = [
                checkpoint(self._log_kernels, members, a, b, variance, use_reentrant=False)
                for a, b in self._chunks(start, stop, rows_count=len(flat))
            ]
            log_sum = torch.logsumexp(torch.stack(part), 0) - members.square().sum(1) / 2 / variance
            out = out.index_put((rows,), log_sum - math.log(stop - start))
        return out - flat.shape[1] / 2 * math.log(2 * math.pi * variance)

    def sample(self, labels: Tensor | None, count: int, generator: torch.Generator) -> Tensor:
        """Draw clean samples [count, *shape]: a centre of the class plus noise of bandwidth h,
        float64."""
        device = self.centres.device
        low = torch.zeros(count, dtype=torch.int64, device=device)
        high = torch.full_like(low, len(self.centres))
        if self.conditional and labels is not None:
            self.conditions.check(labels, count)
            offsets = torch.tensor(self.offsets, device=device)
            low, high = offsets[labels], offsets[labels + 1]
        uniform = torch.rand(count, dtype=torch.float64, generator=generator, device=device)
        picked = low + (uniform * (high - low)).long()
        noise = torch.randn(
            count, self.centres.shape[1], dtype=torch.float64, generator=generator, device=device
        )
        return (to_float(self.centres[picked]) + self.h * noise).view(count, *self.shape)

    def reference(self, count: int, seed: int) -> tuple[Tensor, Tensor | None]:
        """All images of the data set, uint8 [N, C, H, W], and their classes."""
        labels = None
        if self.conditional:
            counts = torch.tensor(self.offsets).diff()
            labels = torch.repeat_interleave(torch.arange(self.num_classes), counts)
        return self.centres.cpu().view(-1, *self.shape), labels

    def _groups(
        self, flat: Tensor, labels: Tensor | None
    ) -> Iterator[tuple[Tensor, tuple[int, int]]]:
        """The rows of each class that occurs, with the range of its centres."""
        if not self.conditional or labels is None:
            yield torch.arange(len(flat), device=flat.device), (0, len(self.centres))
            return
        self.conditions.check(labels, len(flat))
        for label in labels.unique().tolist():
            rows = (labels == label).nonzero().squeeze(1)
            yield rows, (self.offsets[label], self.offsets[label + 1])

    def _posterior_mean(self, x: Tensor, variance: float, start: int, stop: int) -> Tensor:
        """sum_i p_i c_i over the centres start..stop, one tile at a time (an online softmax)."""
        top = torch.full((len(x), 1), -math.inf, dtype=x.dtype, device=x.device)
        total, mean = torch.zeros_like(top), torch.zeros_like(x)
        for a, b in self._chunks(start, stop, len(x)):
            centres = self._float_centres(a, b)
            # |x|^2 is the same for every centre and drops out of the softmax.
            logits = torch.addmm(self.half_norms[a:b], x, centres.T, beta=-1).div_(variance)
            new_top = torch.maximum(top, logits.amax(1, keepdim=True))
            weights = logits.sub_(new_top).exp_()
            shrink = (top - new_top).exp()
            total = total * shrink + weights.sum(1, keepdim=True)
            mean = torch.addmm(mean * shrink, weights, centres)
            top = new_top
        return mean / total

    def _log_kernels(self, x: Tensor, start: int, stop: int, variance: float) -> Tensor:
        logits = (x @ self._float_centres(start, stop).T - self.half_norms[start:stop]) / variance
        return torch.logsumexp(logits, 1)

    def _chunks(self, start: int, stop: int, rows_count: int) -> Iterator[tuple[int, int]]:
        size = max(1, CHUNK_BYTES // (8 * max(self.centres.shape[1], rows_count)))
        for a in range(start, stop, size):
            yield a, min(a + size, stop)

    def _float_centres(self, start: int, stop: int) -> Tensor:
        return to_float(self.centres[start:stop])


@functools.lru_cache(maxsize=4)
def _load(
    data: str, resize: int | None
) -> tuple[Tensor, Tensor | None, tuple[str, ...], dict[str, str]]:
    """Images uint8 [N, C, H, W], their classes [N] or None, names of classes, and the origin."""
    images = digits(resize) if data == "digits" else open_images(data, resize=resize)
    pixels = images.read(range(len(images)))
    labels = None if images.labels is None else torch.as_tensor(images.labels, dtype=torch.int64)
    origin = {}
    if data != "digits":
        origin = {"source": data, "path": data, "sha256": images.fingerprint()}
    elif Path(data).exists():
        print(
            "guidex: warning: model.data=digits is scikit-learn's digits; "
            "write model.data=./digits for the folder of that name",
            file=sys.stderr,
        )
    return torch.from_numpy(pixels), labels, tuple(images.class_names or ()), origin


def kernel(
    data: str, h: float, conditional: bool = True, resize: int | None = None
) -> KernelDenoiser:
    """The ideal denoiser of the images in a folder, zip or npz (class = subfolder), or of "digits".

    Arguments:
        data: path of the images, or "digits" for scikit-learn's handwritten digits (1797 of 8x8,
            grey).
        h: bandwidth of the kernels, in units of [-1, 1] pixels.
        conditional: use the classes.
        resize: side in pixels to which images are resized, or None to require equal sizes.
    """
    pixels, labels, names, origin = _load(data, resize)
    model = KernelDenoiser(pixels, labels, h, conditional, names)
    model.origin = origin
    return model
