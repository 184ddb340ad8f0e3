"""What only a GPU can show. Everything here is skipped without one.

float16 rounds by 5e-4. A network of random weights, whose gains are larger than trained ones, is
about 2e-3 away from float32 (measured on a CPU, plain and folded); published networks are nearer.
"""

import gc
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from edm2_networks import relative, tiny_model
from torch import Tensor

from guidex.cli import main
from guidex.data.images import open_images
from guidex.features.networks import full_float32
from guidex.guidance.guidance import Guidance, Guided
from guidex.guidance.methods import difference, none, perturbed_attention
from guidex.guidance.rules import Extrapolate
from guidex.guidance.schedules import Constant
from guidex.models.attention import Perturbation
from guidex.models.denoiser import View
from guidex.models.edm2.checkpoints import Checkpoint, write_checkpoint
from guidex.models.edm2.folded import fold
from guidex.models.edm2.network import EDM2, Config
from guidex.models.kernel import kernel
from guidex.models.spec import compile_network
from guidex.runs.threads import Arriving
from guidex.sampling.grids import Karras
from guidex.sampling.solvers import Heun
from guidex.sampling.trajectories import sample

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    # Compilers and libraries of GPUs warn of things that differ from version to version.
    pytest.mark.filterwarnings("default"),
]

GPU = torch.device("cuda")
CPU = torch.device("cpu")
HALF = 4e-3  # twice what float16 is away from float32
SHAPE = (4, 32, 32)
CLASSES = 10


def random_network(
    dtype: torch.dtype = torch.float16, classes: int = CLASSES, channels: int = 4
) -> EDM2:
    """The published architecture at the size XXS in which every layer has a say in the output."""
    return tiny_model(Config(32, channels, classes, model_channels=64), dtype).half().eval()


@pytest.fixture(scope="module")
def folded() -> EDM2:
    return fold(random_network().to(GPU))


@pytest.fixture(scope="module")
def guide() -> EDM2:
    return fold(random_network(classes=0).to(GPU))


def noisy(batch: int, sigma: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    x = (sigma**2 + 0.25) ** 0.5 * torch.randn(batch, *SHAPE, generator=generator)
    return x.to(GPU), torch.randint(CLASSES, [batch], generator=generator).to(GPU)


def cfg(guide: EDM2, w: float = 1.5) -> Guidance:
    return difference(guide, Constant(w=w), Extrapolate())


@pytest.fixture
def pixels_run(tmp_path: Path) -> list[str]:
    """Words of a run with two networks of 32x32 pixels, without what a test chooses."""
    for name, classes in (("net", CLASSES), ("guide", 0)):
        model = random_network(classes=classes, channels=3)
        network = Checkpoint(asdict(model.config), model.state_dict(), {"source": name})
        write_checkpoint(network, tmp_path / f"{name}.safetensors")
    words = ["sample", "model=edm2", f"model.checkpoint={tmp_path / 'net.safetensors'}"]
    words += ["guidance=cfg", f"guidance.reference.checkpoint={tmp_path / 'guide.safetensors'}"]
    return [*words, "sampler.grid.steps=3", "device=cuda"]


def images_of(folder: Path) -> np.ndarray:
    """Pixels of a run, as numbers that can be subtracted."""
    images = open_images(folder)
    return images.read(range(len(images))).astype(int)


def assert_alike(a: Path, b: Path) -> None:
    """Images of two runs that round in other ways; a few pixels of these random networks, which
    turn noise into black and white, then tip over."""
    assert np.abs(images_of(a) - images_of(b)).mean() < 1 < images_of(a).std()


# Networks


@pytest.mark.parametrize("sigma", [0.05, 1.0, 5.0, 50.0])
def test_float16_is_near_float32(folded, sigma):
    plain = random_network().to(GPU)
    exact = random_network(torch.float32).to(GPU)
    x, labels = noisy(8, sigma)
    with torch.no_grad(), full_float32():
        expected = exact(x, sigma, labels)
    with torch.no_grad():
        errors = [relative(model(x, sigma, labels), expected) for model in (plain, folded)]
    assert all(0 < error < HALF for error in errors)
    assert errors[1] < 1.25 * errors[0]


def test_the_gpu_computes_what_the_cpu_does():
    exact = fold(random_network(torch.float32))
    x, labels = noisy(2, 1.0)
    with torch.no_grad(), full_float32():
        on_cpu = exact(x.cpu(), 1.0, labels.cpu())
        on_gpu = exact.to(GPU)(x, 1.0, labels)
    assert relative(on_gpu.cpu(), on_cpu) < 1e-4


def test_a_compiled_network_computes_the_same(folded):
    compiled = fold(random_network().to(GPU))
    compile_network(compiled, compiled.unet)
    with torch.no_grad():
        for sigma in (1.0, 50.0):
            x, labels = noisy(4, sigma)
            assert relative(compiled(x, sigma, labels), folded(x, sigma, labels)) < HALF
            assert compiled(x.double(), sigma, labels).dtype == torch.float64


def test_a_run_compiles_once_for_each_network(pixels_run, tmp_path):
    """Neither noise levels nor blocks that end in a short batch make another graph."""
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    words = [*pixels_run, "model.compile=true", "seeds=0-9", "block=6", "batch=4"]
    assert main([*words, f"out={tmp_path / 'compiled'}"]) == 0
    assert counters["stats"]["unique_graphs"] == 2
    words = [*pixels_run, "seeds=0-9", "block=6", "batch=4"]
    assert main([*words, f"out={tmp_path / 'eager'}"]) == 0
    assert_alike(tmp_path / "compiled", tmp_path / "eager")


def test_an_evaluation_never_waits_for_the_device(folded, guide):
    """Nor does a guided one; waiting would leave the device without work until the next launch."""
    timeline = Heun(grid=Karras(steps=3)).timeline()
    pag = perturbed_attention(folded, Constant(w=2.0), Extrapolate(), "dec.*_in0")
    x, labels = noisy(2, 1.0)
    with torch.no_grad():
        for guidance in (none(), cfg(guide), pag):
            guided = Guided(folded, guidance, guidance.plan(timeline))
            guided(x.double(), 1.0, labels, 0, 0)  # libraries may wait when they are loaded
            torch.cuda.set_sync_debug_mode("error")
            try:
                guided(x.double(), 1.0, labels, 0, 0)
            finally:
                torch.cuda.set_sync_debug_mode("default")


# Several predictions in one call, and perturbed attention


def test_a_joint_call_equals_separate_ones(folded):
    x, labels = noisy(4, 0.7)
    modes = Perturbation(("*",)), Perturbation(("*",), "mask", 0.8), Perturbation(("*",), "noise")
    views = [View(0.7, labels), View(0.7, None), View(1.4, labels)]
    views += [View(0.7, labels, perturbation) for perturbation in modes]
    with torch.no_grad():
        together = folded.joint(x, views)
        alone = [folded.joint(x, [view])[0] for view in views]
    for one, other in zip(together, alone, strict=True):
        assert relative(one, other) < HALF
    assert all(relative(one, together[0]) > 2 * HALF for one in together[1:])


# Runs


def test_samples_do_not_depend_on_the_batch(folded, guide):
    solver = Heun(grid=Karras(steps=4, sigma_max=5.0))
    xs = [sample(folded, cfg(guide), solver, range(6), batch=batch)[0] for batch in (6, 4, 1)]
    assert relative(xs[1], xs[0]) < 5 * HALF and relative(xs[2], xs[0]) < 5 * HALF


def test_samples_arrive_whole():
    samples = torch.randn(64, 3, 128, 128, device=GPU)
    for part in (samples, samples.contiguous(memory_format=torch.channels_last), samples[::2].mT):
        arriving = Arriving(part)
        expected = part.cpu().numpy()
        np.testing.assert_array_equal(arriving.numpy(), expected)


def test_too_little_memory_halves_the_batch(pixels_run, tmp_path, capsys):
    """The device itself refuses, for this process may use no more than a small run does."""
    words = [*pixels_run, "seeds=0-255", "block=256"]

    def run(batch: int, name: str) -> int:
        """Bytes that a run takes from the device at most."""
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        assert main([*words, f"batch={batch}", f"out={tmp_path / name}"]) == 0
        return torch.cuda.max_memory_reserved()

    small, large = run(16, "small"), run(256, "large")
    assert large > 1.5 * small
    total = torch.cuda.get_device_properties(GPU).total_memory
    capsys.readouterr()
    torch.cuda.set_per_process_memory_fraction((small + large) / 2 / total)
    try:
        run(256, "scarce")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory: going on with batches of" in capsys.readouterr().err
    assert_alike(tmp_path / "scarce", tmp_path / "large")


def test_an_exact_model_is_the_same_everywhere():
    solver = Heun(grid=Karras(steps=8))
    found = []
    for device in (CPU, GPU):
        model = kernel("digits", h=0.25).to(device)
        reference = kernel("digits", h=0.5, conditional=False).to(device)
        guidance = difference(reference, Constant(w=2.0), Extrapolate())
        x, labels = sample(model, guidance, solver, range(16), batch=5)
        found.append((x.cpu(), labels.cpu()))
    assert torch.equal(found[0][1], found[1][1])
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=1e-8)


# Decoders and detectors


def test_the_decoder_on_a_gpu(tmp_path):
    from test_decoders import latents, write_vae

    from guidex.models.decoders import StabilityVAE

    folder = str(write_vae(tmp_path))
    expected = StabilityVAE(folder)(latents()).int()
    with full_float32():
        exact = StabilityVAE(folder, batch=2).to(GPU)(latents().to(GPU))
    assert (exact.cpu().int() - expected).abs().max() <= 1
    for options in ({"dtype": "float16"}, {"dtype": "float16", "compile": True}):
        fast = StabilityVAE(folder, batch=2, **options).to(GPU)
        for count in (5, 1):
            difference = fast(latents(count).to(GPU)).cpu().int() - expected[:count]
            assert difference.abs().max() <= 4


def test_detectors_on_a_gpu(tmp_path):
    from test_dinov2 import SMALL, hub_tensors
    from test_inception import images, random_weights

    from guidex.features.dinov2 import dinov2
    from guidex.features.inception import inception

    path = str(tmp_path / "weights.pth")
    for weights, make, tolerances in (
        (random_weights(), inception, (1e-4, 2e-2)),
        (hub_tensors(SMALL), partial(dinov2, size="s"), (1e-3, 5e-2)),
    ):
        torch.save(weights, path)
        on_cpu = make(path)(images(5))
        for precision, tolerance in zip(("float32", "float16"), tolerances, strict=True):
            features = make(path, precision=precision).to(GPU)(images(5).to(GPU))
            assert features.dtype == torch.float32 and features.is_cuda
            assert relative(features.cpu(), on_cpu) < tolerance
