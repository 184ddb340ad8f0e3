"""Exact denoisers of Gaussian mixtures: every result on them can be checked against a closed form.

With data p(x0) = sum_k w_k N(x0; mu_k, Sigma_k), the noisy density is the mixture with covariances
C_k = Sigma_k + sigma^2 I, and the ideal denoiser (Karras et al. 2022, arXiv 2206.00364, eq. 2) is

    D(x; sigma) = sum_k r_k [mu_k + Sigma_k C_k^-1 (x - mu_k)],    r_k ~ w_k N(x; mu_k, C_k).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from guidex.errors import UsageError
from guidex.models.condition import Condition, Conditions
from guidex.models.denoiser import ExactDenoiser

# Pairs of row and component at a time: 512 KiB of float64, which stays in a CPU's cache; a GPU
# wants few large kernels instead.
PAIRS_AT_ONCE = {"cpu": 2**16, "cuda": 2**24}

# Rows are padded to full tiles, because a matrix product rounds the rows of a last, partial tile
# differently: so one sample keeps its bits whatever the batch that it is part of.
TILE = 16


class _Components(NamedTuple):
    """The components of one class at one noise level, in the form that evaluation needs.

    With Sigma_k = U_k diag(lambda_k) U_k^T and W_k = diag(lambda_k + sigma^2)^(-1/2) U_k^T, the
    density of component k depends on x through |W_k x - W_k mu_k|^2 alone. Whitening before
    squaring keeps the digits that expanding the square would cancel far from the origin.
    """

    constants: Tensor  # [K], log of the weight and of the normaliser
    whitening: Tensor  # [d, d, K], W_k by row, then column, then component
    centres: Tensor  # [d, K], W_k mu_k
    posterior: Tensor  # [K, d * (d + 1)], [A_k | b_k] by row: E[x0 | x, k] = A_k x + b_k

    def log_joint(self, x: Tensor) -> Tensor:
        """log w_k N(x; mu_k, C_k), from x [B, d] to [B, K]."""
        log_joint = self.constants.expand(len(x), -1)
        for rows, centre in zip(self.whitening, self.centres, strict=True):
            whitened = torch.addmm(centre, x, rows, beta=-1)
            log_joint = torch.addcmul(log_joint, whitened, whitened, value=-0.5)
        return log_joint

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x; sigma), from [B, d] to [B]."""
        return self.log_joint(x).logsumexp(dim=1)

    def denoise(self, x: Tensor) -> Tensor:
        """E[x0 | x], from [B, d] to [B, d]. Averaging A and b first needs no array [B, K, d]."""
        size, dimension = x.shape
        responsibilities = self.log_joint(x).softmax(dim=1)
        averaged = (responsibilities @ self.posterior).view(size, dimension, dimension + 1)
        return (averaged[:, :, :-1] * x[:, None, :]).sum(dim=2) + averaged[:, :, -1]


class GaussianMixture(ExactDenoiser):
    """The ideal denoiser of a mixture of Gaussians with full covariances, with or without classes,
    in float64; valid at any sigma >= 0, and far from the data.

    Arguments:
        weights: mixture weights [K], positive, of any sum (they are normalised).
        means: component means [K, d], in the units of x.
        covariances: component covariances [K, d, d], symmetric positive definite.
        classes: the label of each component [K], int64, 0 or more.
        modes: the mode (cluster, branch) that each component is a part of [K], int64.
        conditional: whether labels restrict the mixture to the components of the class.
        blur: standard deviation of extra Gaussian blur, 0 or more: a weaker model of the same data,
            with covariances Sigma_k + blur^2 I.
        sigma_data: standard deviation of the data; by default that of the whole mixture (root of
            the mean variance over the dimensions), which the blur does not belong to.

    Attributes:
        weights, means, covariances, classes, modes: as given, but normalised and blurred; buffers.
        gflops: of the components that one evaluation visits: all, or the mean number per class.
    """

    sigma_min = 0.0
    sigma_max = math.inf
    space = "points"

    def __init__(
        self,
        weights: Tensor | Sequence[float],
        means: Tensor | Sequence[Sequence[float]],
        covariances: Tensor | Sequence[Sequence[Sequence[float]]],
        classes: Tensor | Sequence[int],
        modes: Tensor | Sequence[int],
        conditional: bool,
        blur: float = 0.0,
        sigma_data: float | None = None,
    ) -> None:
        super().__init__()
        weights, means, covariances = (
            torch.as_tensor(numbers, dtype=torch.float64)
            for numbers in (weights, means, covariances)
        )
        classes, modes = (torch.as_tensor(of, dtype=torch.int64) for of in (classes, modes))
        count, dimension = means.shape
        if any(len(of) != count for of in (weights, covariances, classes, modes)):
            raise UsageError("weights, means, covariances, classes and modes must be equally many")
        if not bool((weights > 0).all()):
            raise UsageError(f"weights must be above 0, not {weights.tolist()}")
        weights = weights / weights.sum()
        self.shape = (dimension,)
        self.conditional = conditional
        self.conditions = Conditions(int(classes.max()) + 1 if conditional else 0)
        self.sigma_data = sigma_data
        if sigma_data is None:
            centred = means - weights @ means
            spread = covariances.diagonal(dim1=1, dim2=2) + centred.square()
            self.sigma_data = math.sqrt(float((weights @ spread).mean()))
        visited = count / len(classes.unique()) if conditional else count
        self.gflops = visited * (4 * dimension**2 + 5 * dimension + 4) / 1e9

        covariances = covariances + blur**2 * torch.eye(dimension, dtype=torch.float64)
        variances, axes = torch.linalg.eigh(covariances)
        if not bool((variances > 0).all()) or not torch.allclose(covariances, covariances.mT):
            raise UsageError(
                "covariances must be symmetric and positive definite, but the smallest eigenvalue "
                f"is {float(variances.min()):.3g}; widen them, or give the mixture some blur"
            )
        components = {"weights": weights, "means": means, "covariances": covariances}
        components |= {"classes": classes, "modes": modes}
        # lambda_k [K, d]; U_k [K, d, d], one eigenvector per column.
        for name, array in {**components, "_variances": variances, "_axes": axes}.items():
            self.register_buffer(name, array)

    def forward(self, x: Tensor, sigma: float, condition: Condition = None) -> Tensor:
        return self._evaluate(_Components.denoise, x, sigma, condition)

    def log_density(self, x: Tensor, sigma: float, labels: Tensor | None = None) -> Tensor:
        return self._evaluate(_Components.log_density, x, sigma, labels)

    def reference(self, count: int, seed: int) -> tuple[Tensor, Tensor | None]:
        """`count` draws of the distribution, float64 [count, d], with classes in equal shares."""
        labels = torch.arange(count) % self.num_classes if self.num_classes else None
        drawn = self.sample(labels, count, torch.Generator().manual_seed(seed))
        return drawn.cpu(), labels

    def sample(self, labels: Tensor | None, count: int, generator: torch.Generator) -> Tensor:
        """See ExactDenoiser; float64, on the model's device. The generator may be of any device."""
        options = {"dtype": torch.float64, "device": generator.device, "generator": generator}
        quantiles = torch.rand(count, **options).to(self.means.device)
        normals = torch.randn(count, *self.shape, **options).to(self.means.device)

        def component_at(quantiles: Tensor, label: int | None) -> Tensor:
            members = self._members(label)
            cumulative = self.weights[members].cumsum(dim=0)
            position = torch.searchsorted(cumulative, quantiles * cumulative[-1], right=True)
            # A quantile next to 1 may round up to the whole.
            return members[position.clamp(max=len(members) - 1)]

        chosen = self.by_class(component_at, quantiles, labels)
        scaled = self._variances[chosen].sqrt() * normals
        return self.means[chosen] + (self._axes[chosen] * scaled[:, None, :]).sum(dim=2)

    def _evaluate(
        self,
        function: Callable[[_Components, Tensor], Tensor],
        x: Tensor,
        sigma: float,
        labels: Tensor | None,
    ) -> Tensor:
        """Apply a method of the components to x, in padded chunks of rows of one class each."""
        if x.shape[1:] != self.shape:
            raise UsageError(f"x must be [B, {self.shape[0]}], not {list(x.shape)}")

        def evaluate(rows: Tensor, label: int | None) -> Tensor:
            components = self._at_noise(self._members(label), sigma)
            pairs = PAIRS_AT_ONCE.get(rows.device.type, PAIRS_AT_ONCE["cpu"])
            at_once = max(pairs // len(components.constants) // TILE, 1) * TILE
            padded = F.pad(rows, (0, 0, 0, -len(rows) % TILE))
            results = [function(components, part) for part in padded.split(at_once)]
            return torch.cat(results)[: len(rows)]

        return self.by_class(evaluate, x.double(), labels).to(x.dtype)

    def _members(self, label: int | None) -> Tensor:
        """Indices of the components of a class, or of all, int64."""
        if label is None:
            return torch.arange(len(self.weights), device=self.weights.device)
        members = (self.classes == label).nonzero()[:, 0]
        if len(members) == 0:
            raise UsageError(f"class {label} of this mixture has no components")
        return members

    def _at_noise(self, members: Tensor, sigma: float) -> _Components:
        """The given components, blurred with noise of level sigma."""
        log_weights = self.weights[members].log().log_softmax(dim=0)
        means, variances, axes = self.means[members], self._variances[members], self._axes[members]
        noisy = variances + sigma**2
        whitening = noisy.rsqrt()[:, :, None] * axes.mT
        # A = U diag(lambda / (lambda + sigma^2)) U^T; b = (I - A) mu, without the subtraction.
        kept = (axes * (variances / noisy)[:, None, :]) @ axes.mT
        replaced = (axes * (sigma**2 / noisy)[:, None, :]) @ axes.mT
        return _Components(
            constants=log_weights - 0.5 * (noisy.log() + math.log(2 * math.pi)).sum(dim=1),
            whitening=whitening.permute(1, 2, 0).contiguous(),
            centres=(whitening @ means[:, :, None])[:, :, 0].T.contiguous(),
            posterior=torch.cat([kept, replaced @ means[:, :, None]], dim=2).flatten(1),
        )
