"""Classifiers of noisy samples, for classifier guidance."""

from torch import Tensor, nn

from guidex.models.denoiser import ExactDenoiser


class BayesClassifier(nn.Module):
    """The exact p(c | x; sigma) of a known distribution, by Bayes' rule.

    log p(c | x) = log p(x | c) - log p(x) + log p(c); the prior is constant in x and left out.
    """

    def __init__(self, conditional: ExactDenoiser, unconditional: ExactDenoiser) -> None:
        super().__init__()
        self.conditional = conditional
        self.unconditional = unconditional
        self.gflops = conditional.gflops + unconditional.gflops

    def forward(self, x: Tensor, sigma: float, labels: Tensor) -> Tensor:
        """log p(labels | x; sigma) up to a constant, [B], differentiable in x [B, *shape]."""
        conditional = self.conditional.log_density(x, sigma, labels)
        return conditional - self.unconditional.log_density(x, sigma)
