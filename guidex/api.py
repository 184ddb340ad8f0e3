"""The Python API in one place: everything that the README's example needs, and its neighbours.

from guidex.api import Heun, Interval, Karras, difference, kernel, sample
"""

# ruff: noqa: F401
from guidex.data.codec import to_float, to_uint8
from guidex.features.detectors import Coordinates, Pixels, detect
from guidex.features.features import FeatureSet
from guidex.features.samples import model_features
from guidex.guidance.directions import ClassifierGradient, Difference, Direction, PerturbedAttention
from guidex.guidance.guidance import Guidance, Guided, Term
from guidex.guidance.methods import classifier, difference, none, perturbed_attention, single
from guidex.guidance.plan import Plan
from guidex.guidance.queries import Query
from guidex.guidance.rules import APG, Extrapolate, Offset, Rescale, Rule
from guidex.guidance.schedules import Constant, Cosine, Hole, Interval, Linear, Product, Schedule
from guidex.metrics.accuracy import KNNAccuracy
from guidex.metrics.frechet import Frechet, frechet_distance
from guidex.metrics.prdc import PRDC
from guidex.metrics.toy_quality import ToyQuality
from guidex.models.condition import Condition, Conditions
from guidex.models.denoiser import Denoiser, ExactDenoiser
from guidex.models.kernel import KernelDenoiser, kernel
from guidex.models.mixture import GaussianMixture
from guidex.models.toys import fractal2d, mixture1d
from guidex.sampling.grids import DDPM, IDDPM, VP, Karras, Log
from guidex.sampling.solvers import DDIM, DPMpp2M, Euler, Heun
from guidex.sampling.trajectories import sample
