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
    """The ideal denoiser of a mixture of Gaussians with full covariances, with or without classes.

    All is computed in the dtype of the buffers, float64, and returned in the dtype of `x`. The
    density, the denoiser and its derivatives are valid at any sigma >= 0, and far from the data.

    Arguments:
        weights: mixture weights [K], positive, of any sum (they are normalised).
        means: component means [K, d], in the units of x.
        covariances: component covariances [K, d, d], symmetric positive definite.
        classes: the label of each component [K], int64, 0 or more.
        modes: the mode (cluster, branch) that each component is a part of [K], int64.
        conditional: whether labels restrict the mixture to the components of the class, with
            weights renormalised within it. If not, labels are accepted and ignored.
        blur: standard deviation of extra Gaussian blur, 0 or more: a weaker model of the same data,
            with covariances Sigma_k + blur^2 I (what autoguidance, arXiv 2406.02507, guides with).
        sigma_data: standard deviation of the data; by default that of the whole mixture (root of
            the mean variance over the dimensions), which the blur does not belong to.

    Attributes:
        weights, means, covariances, classes, modes: as given, but normalised and blurred; buffers.
        gflops: of the components that one evaluation visits: all, or the mean number per class.

    Raises:
        UsageError: an argument of the wrong shape or range.
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
        weights = _tensor("weights", weights, torch.float64)
        means = _tensor("means", means, torch.float64)
        covariances = _tensor("covariances", covariances, torch.float64)
        classes = _tensor("classes", classes, torch.int64)
        modes = _tensor("modes", modes, torch.int64)
        _check_components(weights, means, covariances, classes, modes)
        if not 0 <= blur < math.inf:
            raise UsageError(f"blur must be a finite number of 0 or more, not {blur}")
        if sigma_data is not None and not 0 < sigma_data < math.inf:
            raise UsageError(f"sigma_data must be a positive number, not {sigma_data}")
        weights = weights / weights.sum()
        count, dimension = means.shape
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
        if not bool((variances > 0).all()):
            worst = int(variances[:, 0].argmin())
            raise UsageError(
                f"covariance {worst} is not positive definite: its smallest eigenvalue is "
                f"{float(variances[worst, 0]):.3g}; widen it, or give the mixture some blur"
            )
        given = {"weights": weights, "means": means, "covariances": covariances}
        for name, value in {**given, "classes": classes, "modes": modes}.items():
            self.register_buffer(name, value)
        self.register_buffer("_variances", variances)  # [K, d], lambda_k
        self.register_buffer("_axes", axes)  # [K, d, d], U_k, one eigenvector per column

    def forward(self, x: Tensor, sigma: float, condition: Condition = None) -> Tensor:
        """E[x0 | x] in closed form; see Denoiser.forward. Differentiable in x."""
        return self._evaluate(_Components.denoise, x, sigma, condition)

    def log_density(self, x: Tensor, sigma: float, labels: Tensor | None = None) -> Tensor:
        """log p(x; sigma | labels), from x [B, d] to [B], differentiable in x; sigma may be 0."""
        return self._evaluate(_Components.log_density, x, sigma, labels)

    def reference(self, count: int, seed: int) -> tuple[Tensor, Tensor | None]:
        """`count` draws of the distribution, float64 [count, d], with classes in equal shares."""
        generator = torch.Generator(self.means.device).manual_seed(seed)
        labels = None
        if self.num_classes > 0:
            labels = torch.arange(count, device=self.means.device) % self.num_classes
        drawn = self.sample(labels, count, generator)
        return drawn.cpu(), None if labels is None else labels.cpu()

    def sample(self, labels: Tensor | None, count: int, generator: torch.Generator) -> Tensor:
        """Draw clean samples, float64 [count, d] on the model's device; the generator may be of any
        device, and the draws follow from it."""
        options = {"dtype": self.means.dtype, "device": generator.device, "generator": generator}
        quantiles = torch.rand(count, **options).to(self.means.device)
        normals = torch.randn(count, *self.shape, **options).to(self.means.device)
        chosen = self._per_class(self._component_at, quantiles, labels)
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
        if x.shape[1:] != self.shape or not x.is_floating_point():
            raise UsageError(f"x must be floats [B, {self.shape[0]}], not {list(x.shape)}")

        def evaluate(rows: Tensor, members: Tensor) -> Tensor:
            components = self._at_noise(members, sigma)
            pairs = PAIRS_AT_ONCE.get(rows.device.type, PAIRS_AT_ONCE["cpu"])
            at_once = max(pairs // len(members) // TILE, 1) * TILE
            padded = F.pad(rows, (0, 0, 0, -len(rows) % TILE))
            results = [function(components, part) for part in padded.split(at_once)]
            return torch.cat(results)[: len(rows)]

        return self._per_class(evaluate, x.to(self.means.dtype), labels).to(x.dtype)

    def _per_class(
        self, function: Callable[[Tensor, Tensor], Tensor], rows: Tensor, labels: Tensor | None
    ) -> Tensor:
        """Apply function(rows of one class, indices of its components) to each class in turn."""
        restricted = labels is not None and self.conditional
        if restricted:
            self.conditions.check(labels, len(rows))
        if not restricted or len(rows) == 0:
            return function(rows, torch.arange(len(self.weights), device=self.weights.device))
        labels = labels.to(rows.device)
        order = labels.argsort(stable=True)
        sizes = labels.bincount(minlength=self.num_classes).tolist()
        results = [
            function(part, self._members(label))
            for label, part in enumerate(rows[order].split(sizes))
            if len(part) > 0
        ]
        return torch.cat(results)[order.argsort()]

    def _members(self, label: int) -> Tensor:
        """Indices of the components of a class, int64."""
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
        log_normaliser = 0.5 * (noisy.log() + math.log(2 * math.pi)).sum(dim=1)
        return _Components(
            constants=log_weights - log_normaliser,
            whitening=whitening.permute(1, 2, 0).contiguous(),
            centres=(whitening @ means[:, :, None])[:, :, 0].T.contiguous(),
            posterior=torch.cat([kept, replaced @ means[:, :, None]], dim=2).flatten(1),
        )

    def _component_at(self, quantiles: Tensor, members: Tensor) -> Tensor:
        """Invert the cumulative weights of the given components: from [B] in [0, 1) to indices."""
        cumulative = self.weights[members].cumsum(dim=0)
        position = torch.searchsorted(cumulative, quantiles * cumulative[-1], right=True)
        # A quantile next to 1 may round up to the whole.
        return members[position.clamp(max=len(members) - 1)]


def _tensor(name: str, given: Tensor | Sequence, dtype: torch.dtype) -> Tensor:
    """An array, or the nested lists of a configuration file, as a tensor of our own on the CPU."""
    try:
        return torch.as_tensor(given, dtype=dtype, device="cpu").detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{name} must be an array of numbers: {error}") from error


def _check_components(
    weights: Tensor, means: Tensor, covariances: Tensor, classes: Tensor, modes: Tensor
) -> None:
    """Refuse components whose arrays do not fit together or hold impossible values."""
    if means.ndim != 2 or means.numel() == 0:
        raise UsageError(f"means must be [K, d] with K and d at least 1, not {list(means.shape)}")
    count, dimension = means.shape
    for name, given, shape in (
        ("weights", weights, [count]),
        ("covariances", covariances, [count, dimension, dimension]),
        ("classes", classes, [count]),
        ("modes", modes, [count]),
    ):
        if list(given.shape) != shape:
            raise UsageError(
                f"{name} must be {shape} to go with means of {[count, dimension]}, "
                f"not {list(given.shape)}"
            )
    asymmetry = (covariances - covariances.mT).abs().amax(dim=(1, 2))
    for valid, what in (
        (means.isfinite(), "means must be finite numbers"),
        (covariances.isfinite(), "covariances must be finite numbers"),
        (weights.isfinite() & (weights > 0), "weights must be positive numbers"),
        (classes >= 0, "classes must be 0 or more"),
        (asymmetry <= 1e-6 * covariances.abs().amax(dim=(1, 2)), "covariances must be symmetric"),
    ):
        if not bool(valid.all()):
            raise UsageError(what)
