"""Precision, recall, density, coverage against golden numbers and plain definitions."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers import feature_set, golden, normal
from torch import Tensor

from guidex.metrics import prdc as module
from guidex.metrics.prdc import PRDC, nearest_neighbours


def prdc(real: Tensor, fake: Tensor, **options: Any) -> dict[str, float]:
    numbers = PRDC(**options)(real=feature_set(real), fake=feature_set(fake))
    return {name.removesuffix("_d"): value for name, value in numbers.items()}


@pytest.fixture(params=[37, 1024])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles that cut all sets, and one that holds them."""
    monkeypatch.setattr(module, "CPU_TILE", request.param)


def by_definition(real: Tensor, fake: Tensor, k: int, rule: str) -> dict[str, float]:
    """The definitions on tables of all distances, without cancellation; exact for integers."""

    def squared(a: Tensor, b: Tensor) -> Tensor:
        return (a.double()[:, None] - b.double()[None]).square().sum(2)

    def radii(a: Tensor) -> Tensor:
        return squared(a, a).sort(dim=1).values[:, k]

    compare = torch.lt if rule == "<" else torch.le
    in_real = compare(squared(real, fake), radii(real)[:, None])
    in_fake = compare(squared(real, fake), radii(fake)[None])
    return {
        "precision": in_real.any(0).double().mean().item(),
        "recall": in_fake.any(1).double().mean().item(),
        "density": in_real.double().sum(0).mean().item() / k,
        "coverage": in_real.any(1).double().mean().item(),
    }


@pytest.mark.parametrize("k", [3, 5])
def test_the_reference_numbers(k: int, tile: None) -> None:
    numbers = golden("prdc.npz")
    real, fake = (torch.from_numpy(numbers[name]) for name in ("real", "fake"))
    for name, value in prdc(real, fake, k=k).items():
        assert value == pytest.approx(float(numbers[f"k{k}_{name}"]), abs=1e-6)


def test_counted_by_hand() -> None:
    # With k = 1 the real balls are (-1, 1), (0, 2), (1, 3), (2, 14) and the fake ones (-1, 2),
    # (0.5, 3.5), (-100.5, 0.5). 0.5 lies in the first two real balls, 2 in the third and on the
    # edge of the second and fourth, -50 in none; 8 lies in no fake ball.
    real = torch.tensor([[0.0], [1], [2], [8]])
    fake = torch.tensor([[0.5], [2], [-50]])
    assert list(prdc(real, fake, k=1, rule="<").values()) == [2 / 3, 3 / 4, 1, 3 / 4]
    assert list(prdc(real, fake, k=1, rule="<=").values()) == [2 / 3, 3 / 4, 5 / 3, 1]


@pytest.mark.parametrize("rule", ["<", "<="])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_ties_and_duplicates_follow_the_rule(rule: str, offset: float, tile: None) -> None:
    # Points of a small grid: nearly every distance occurs as a radius, and many points twice. A
    # centre that is no grid point makes every product round.
    generator = torch.Generator().manual_seed(3)
    real = torch.randint(4, (60, 3), generator=generator).float() + offset
    fake = torch.randint(4, (45, 3), generator=generator).float() + offset
    assert len(real.unique(dim=0)) < 50
    for k in (1, 4):
        expected = by_definition(real, fake, k, rule)
        assert prdc(real, fake, k=k, rule=rule) == pytest.approx(expected)
    assert by_definition(real, fake, 1, "<") != by_definition(real, fake, 1, "<=")


@pytest.mark.parametrize("doubts", [0.0, 1.0])
@pytest.mark.parametrize("rule", ["<", "<="])
def test_products_in_float32_change_no_number(
    rule: str, doubts: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Within a cluster, all comparisons are closer than float32 products: they are decided one by
    # one, or any of them sends its tiles to float64.
    monkeypatch.setattr(module, "_DOUBTS", doubts)
    monkeypatch.setattr(module, "CPU_TILE", 70)
    centres = 100 * normal(20, 64).repeat(10, 1)
    real = (centres + 0.02 * normal(200, 64, seed=1)).float()
    fake = (centres + 0.02 * normal(200, 64, seed=2)).float()
    expected = by_definition(real, fake, 3, rule)
    assert 0.1 < expected["precision"] < 1 and 0.1 < expected["recall"] < 1
    assert prdc(real, fake, rule=rule) == pytest.approx(expected)
    assert prdc(real.double(), fake.double(), rule=rule) == pytest.approx(expected)


@pytest.mark.parametrize("scale", [1e-22, 1e-3, 1e16, 1e30])
def test_float32_features_of_any_size(scale: float) -> None:
    real, fake = (scale * normal(90, 12, seed=seed).float() for seed in (0, 1))
    expected = by_definition(real, fake, 3, "<")
    assert 0 < expected["precision"] < 1
    assert prdc(real, fake) == pytest.approx(expected)


@pytest.mark.parametrize(("rule", "precision", "density"), [("<", 0.0, 0.0), ("<=", 1.0, 2.0)])
def test_balls_of_images_that_occur_twice_have_radius_zero(
    rule: str, precision: float, density: float, tile: None
) -> None:
    twice = normal(30, 50).repeat(2, 1)
    numbers = prdc(twice, twice.clone(), k=1, rule=rule)
    assert numbers["precision"] == precision and numbers["density"] == density


@pytest.mark.parametrize(("rule", "precision"), [("<", 0.0), ("<=", 1.0)])
def test_distances_that_differ_by_rounding_are_equal(rule: str, precision: float) -> None:
    # All fakes are as far from the first real as the second one is, summed in another order.
    far = normal(64)
    real = torch.stack([torch.zeros(64).double(), far])
    fake = torch.stack([far.roll(turns) for turns in range(1, 64)])
    assert len(set(fake.square().sum(1).tolist())) > 1
    assert prdc(real, fake, k=1, rule=rule)["precision"] == precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("apart", [0.0, 1000.0])
def test_nearest_neighbours_are_those_of_the_table_of_distances(
    apart: float, dtype: torch.dtype, tile: None
) -> None:
    # In two sets far apart, float32 products cannot tell the points of one set from each other.
    points = (apart * (torch.arange(60) % 2)[:, None] + normal(60, 40)).to(dtype)
    queries = (normal(25, 40, seed=1) + 4).to(dtype)
    for asked, k in ((queries, 60), (queries, 4), (None, 4)):
        starts = points if asked is None else asked
        table = (starts.double()[:, None] - points.double()[None]).square().sum(2)
        if asked is None:
            table.fill_diagonal_(torch.inf)
        expected = table.sort(dim=1)
        distances, indices = nearest_neighbours(queries=asked, points=points, k=k)
        torch.testing.assert_close(distances, expected.values[:, :k])
        assert torch.equal(indices, expected.indices[:, :k])


def test_at_most_so_many_images_and_as_many_of_each_side() -> None:
    real, fake = normal(60, 3), normal(50, 3, seed=1)
    whole = prdc(real, fake)
    assert prdc(real, fake, reals=60, fakes=1000) == whole
    some = prdc(real, fake, reals=20, fakes=10)
    assert some == prdc(real, fake, reals=20, fakes=10) != whole
    assert some != prdc(real, fake, reals=20, fakes=10, seed=1)
    assert some["precision"] * 10 == pytest.approx(round(some["precision"] * 10))
    assert some["recall"] * 20 == pytest.approx(round(some["recall"] * 20))
    equal = prdc(real, fake[:20], reals=50, equal=True)
    assert equal == prdc(real, fake[:20], reals=20) != prdc(real, fake[:20], reals=50)


# ADM's arithmetic


def brute_adm(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float]:
    """Precision and recall by full tables of float16, one operation after the other."""

    def table(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = a.astype(np.float16), b.astype(np.float16)
        norms = [np.square(x).astype(np.float32).sum(1).astype(np.float16) for x in (a, b)]
        products = (a.astype(np.float32) @ b.astype(np.float32).T).astype(np.float16)
        rows = (norms[0][:, None] - np.float16(2) * products).astype(np.float16)
        return np.maximum((rows + norms[1]).astype(np.float16), 0).astype(np.float32)

    radii = [np.sort(table(x, x), axis=1)[:, k] for x in (real, fake)]
    across = table(real, fake)
    precision = (across <= radii[0][:, None]).any(axis=0).mean()
    return precision, (across <= radii[1]).any(axis=1).mean()


def test_adm_compares_distances_of_float16(tile: None) -> None:
    rng = np.random.default_rng(0)
    # Tightly packed, far from the origin: float16 leaves few different distances.
    real = (5 + 0.1 * rng.normal(size=(60, 16))).astype(np.float32)
    fake = (5.02 + 0.1 * rng.normal(size=(50, 16))).astype(np.float32)
    sets = torch.from_numpy(real), torch.from_numpy(fake)
    found = prdc(*sets, rule="<=", arithmetic="adm")
    assert (found["precision"], found["recall"]) == pytest.approx(brute_adm(real, fake, 3))
    assert prdc(*sets, rule="<=")["precision"] != pytest.approx(found["precision"], abs=0.02)


def test_adm_falls_back_to_float32_beyond_float16() -> None:
    real = normal(40, 4).float()
    fake = real.flip(0) * 0.9
    near = prdc(real, fake, rule="<=", arithmetic="adm")
    far = prdc(400 * real, 400 * fake, rule="<=", arithmetic="adm")
    exact = prdc(real, fake, rule="<=")
    assert near == pytest.approx(exact, abs=0.1) and far == pytest.approx(exact)
