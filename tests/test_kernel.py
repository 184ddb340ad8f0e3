"""The kernel denoiser against brute force, Tweedie's formula and its memory limit."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from guidex.errors import UsageError
from guidex.models import kernel as module
from guidex.models.kernel import KernelDenoiser, kernel

SIGMAS = (0.01, 0.3, 2.0, 80.0)
H = 0.3


def pixels(count: int, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)


IMAGES = pixels(30, 3, 4, 4)
LABELS = torch.tensor([2, 0, 1, 2, 2]).repeat(6)


def model(h: float = H, conditional: bool = True) -> KernelDenoiser:
    return KernelDenoiser(IMAGES, LABELS, h, conditional)


def noisy(sigma: float, count: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    clean = IMAGES[:count].double() / 127.5 - 1
    noise = torch.randn(clean.shape, dtype=torch.float64, generator=generator)
    return clean + (H + sigma) * noise, (torch.arange(count) * 2 + 1) % 3


def brute_force(x: Tensor, sigma: float, label: int | None) -> tuple[Tensor, Tensor]:
    """D and log p of each sample, from all pairs at once."""
    centres = (IMAGES if label is None else IMAGES[label == LABELS]).double() / 127.5 - 1
    variance = H**2 + sigma**2
    squares = (x[:, None] - centres).flatten(2).square().sum(2)
    p = (-squares / 2 / variance).softmax(1)
    mean = torch.einsum("bn,nchw->bchw", p, centres)
    log_p = (-squares / 2 / variance).logsumexp(1) - math.log(len(centres))
    log_p -= centres[0].numel() / 2 * math.log(2 * math.pi * variance)
    return (H**2 * x + sigma**2 * mean) / variance, log_p


@pytest.mark.parametrize("sigma", SIGMAS)
def test_brute_force(sigma):
    x, labels = noisy(sigma)
    of_class = [brute_force(x[k : k + 1], sigma, y) for k, y in enumerate(labels.tolist())]
    each = tuple(torch.cat(parts) for parts in zip(*of_class, strict=True))
    for expected, given in ((brute_force(x, sigma, None), None), (each, labels)):
        found = model()(x, sigma, given), model().log_density(x, sigma, given)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("with_labels", [False, True])
def test_tweedie(sigma, with_labels):
    """D = x + sigma^2 grad log p(x; sigma)."""
    x, labels = noisy(sigma)
    labels = labels if with_labels else None
    leaf = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(model().log_density(leaf, sigma, labels).sum(), leaf)
    torch.testing.assert_close(
        model()(x, sigma, labels), x + sigma**2 * score, rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize("budget", [1, 2000, 5000])
def test_tiles_change_nothing(monkeypatch, budget):
    x, labels = noisy(0.5)

    def results() -> list[Tensor]:
        fresh = model()
        leaf = x.clone().requires_grad_()
        density = fresh.log_density(leaf, 0.5, labels)
        (score,) = torch.autograd.grad(density.sum(), leaf)
        tensors = [fresh(x, 0.5, labels), fresh(x, 0.5), density, score, fresh.half_norms]
        return [*tensors, torch.tensor(fresh.sigma_data)]

    whole = results()
    monkeypatch.setattr(module, "CHUNK_BYTES", budget)
    tiles = list(model()._tiles(0, 30, rows_count=9))
    assert len(tiles) == {1: 30, 2000: 6, 5000: 3}[budget]
    for one, other in zip(whole, results(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_memory_does_not_grow_with_the_images(monkeypatch):
    """20,000 images: neither all of them as floats (10 MB) nor all distances (41 MB) are kept."""
    denoiser = KernelDenoiser(pixels(20_000, 1, 8, 8), None, 0.3, conditional=False)
    limit = 2**20
    monkeypatch.setattr(module, "CHUNK_BYTES", limit)
    rows, numbers = 256, 64
    tiles = list(denoiser._tiles(0, 20_000, rows))
    assert max(stop - start for start, stop in tiles) * max(rows, numbers) * 8 == limit
    kept = {}  # for the backward pass

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.nbytes
        return tensor

    x = torch.zeros(rows, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        torch.autograd.grad(denoiser.log_density(x, 0.5).sum(), x)
    assert sum(kept.values()) < limit


def test_results_have_the_dtype_of_x_and_the_accuracy_of_float64():
    x, labels = noisy(0.5)
    single, exact = (model()(given, 0.5, labels) for given in (x.float(), x.float().double()))
    assert single.dtype == torch.float32 and torch.equal(single, exact.float())


def test_unconditional_models_ignore_labels():
    x, labels = noisy(0.5)
    for labels_of_images in (LABELS, None):
        whole = KernelDenoiser(IMAGES, labels_of_images, H, conditional=False)
        assert torch.equal(whole(x, 0.5, labels), whole(x, 0.5)) and whole.num_classes == 0
        torch.testing.assert_close(whole(x, 0.5), model()(x, 0.5))


def test_impossible_models_are_refused():
    with pytest.raises(UsageError, match="these images have no classes"):
        KernelDenoiser(IMAGES, None, H)
    with pytest.raises(UsageError, match="class 1 has no images"):
        KernelDenoiser(IMAGES, torch.where(LABELS == 1, 0, LABELS), H)
    for h in (0.0, -1.0, math.nan):
        with pytest.raises(UsageError, match="h is the bandwidth"):
            model(h)


def test_samples_are_images_plus_noise_of_the_bandwidth():
    labels = torch.arange(3).repeat(4000)
    generator = torch.Generator().manual_seed(0)
    drawn = model().sample(labels, 12_000, generator)
    assert drawn.shape == (12_000, 3, 4, 4) and drawn.dtype == torch.float64
    centres = IMAGES.double().flatten(1) / 127.5 - 1
    nearest = torch.cdist(drawn.flatten(1), centres).argmin(1)
    assert torch.equal(LABELS[nearest], labels)
    assert float((drawn.flatten(1) - centres[nearest]).std()) == pytest.approx(H, rel=0.01)
    shares = torch.bincount(nearest, minlength=30) * torch.bincount(LABELS)[LABELS] / 4000
    assert (shares - 1).abs().max() < 0.3  # each image of a class as often as any other


def test_the_reference_is_the_data():
    images, labels = model().reference(0, 0)
    found = sorted(zip(labels.tolist(), images.flatten(1).tolist(), strict=True))
    assert found == sorted(zip(LABELS.tolist(), IMAGES.flatten(1).tolist(), strict=True))


def test_facts_for_planning():
    denoiser = model()
    assert denoiser.shape == (3, 4, 4) and denoiser.num_classes == 3
    centres = IMAGES.double().flatten(1) / 127.5 - 1
    spread = centres.var(0, correction=0).mean() + H**2
    assert denoiser.sigma_data == pytest.approx(math.sqrt(spread))
    # Per image of a class: 2 d for the distances, 2 d for the mean; 10 images a class.
    assert denoiser.gflops == pytest.approx(4 * 10 * 48 / 1e9)
    assert model(conditional=False).gflops == pytest.approx(4 * 30 * 48 / 1e9)


def test_digits():
    denoiser = kernel("digits", 0.25)
    assert denoiser.shape == (1, 8, 8) and denoiser.num_classes == 10
    assert denoiser.conditions.names == tuple("0123456789")
    images, labels = denoiser.reference(0, 0)
    assert len(images) == 1797 and labels.bincount().tolist()[:2] == [178, 182]
    assert kernel("digits", 0.25, resize=4).shape == (1, 4, 4)


def test_your_own_images(tmp_path):
    arrays = IMAGES.permute(0, 2, 3, 1).numpy()
    for k in range(30):
        folder = tmp_path / "set" / f"class {LABELS[k]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(arrays[k]).save(folder / f"{k:02d}.png")
    np.savez(tmp_path / "set.npz", images=arrays, labels=LABELS.numpy())
    x, labels = noisy(0.5)
    for name in ("set", "set.npz"):
        found = kernel(str(tmp_path / name), H)
        torch.testing.assert_close(found(x, 0.5, labels), model()(x, 0.5, labels))
    assert kernel(str(tmp_path / "set"), H).conditions.names == ("class 0", "class 1", "class 2")
    assert kernel(str(tmp_path / "set"), H, resize=2).shape == (3, 2, 2)
    np.savez(tmp_path / "plain.npz", images=arrays)
    assert kernel(str(tmp_path / "plain.npz"), H, conditional=False).num_classes == 0
    with pytest.raises(UsageError, match="one subfolder per class makes them"):
        kernel(str(tmp_path / "plain.npz"), H)
