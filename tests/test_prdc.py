"""Precision, recall, density, coverage against golden numbers and plain definitions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from guidex.features.features import FeatureSet
from guidex.metrics import prdc as module
from guidex.metrics.prdc import PRDC, nearest_neighbours, prdc

GOLDEN = Path(__file__).parent / "golden" / "prdc.npz"


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def feature_set(values: Tensor) -> FeatureSet:
    return FeatureSet.from_values(detector="d", values=values)


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


@pytest.mark.parametrize("tile", [37, 1024])
@pytest.mark.parametrize("k", [3, 5])
def test_the_reference_numbers(k: int, tile: int) -> None:
    if not GOLDEN.exists():
        pytest.skip(f"no golden file {GOLDEN}")
    golden = np.load(GOLDEN, allow_pickle=False)
    real, fake = (torch.from_numpy(golden[name]) for name in ("real", "fake"))
    for name, value in prdc(real=real, fake=fake, k=k, tile=tile).items():
        assert value == pytest.approx(float(golden[f"k{k}_{name}"]), abs=1e-6)


def test_counted_by_hand() -> None:
    # With k = 1 the real balls are (-1, 1), (0, 2), (1, 3), (2, 14) and the fake ones (-1, 2),
    # (0.5, 3.5), (-100.5, 0.5). 0.5 lies in the first two real balls, 2 in the third and on the
    # edge of the second and fourth, -50 in none; 8 lies in no fake ball.
    real = torch.tensor([[0.0], [1], [2], [8]])
    fake = torch.tensor([[0.5], [2], [-50]])
    strict = prdc(real=real, fake=fake, k=1, rule="<")
    assert strict == {"precision": 2 / 3, "recall": 3 / 4, "density": 1.0, "coverage": 3 / 4}
    closed = prdc(real=real, fake=fake, k=1, rule="<=")
    assert closed == {"precision": 2 / 3, "recall": 3 / 4, "density": 5 / 3, "coverage": 1.0}


def test_a_lost_mode_costs_recall_and_coverage_but_no_precision() -> None:
    modes = torch.tensor([[0.0, 0], [100, 0]]).double()
    real = modes.repeat_interleave(200, 0) + normal(400, 2)
    fake = modes[0] + normal(400, 2, seed=1)
    result = prdc(real=real, fake=fake, k=5)
    assert result["precision"] > 0.9
    assert result["recall"] == pytest.approx(0.5, abs=0.05)
    assert result["coverage"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("tile", [7, 1024])
@pytest.mark.parametrize("rule", ["<", "<="])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_ties_and_duplicates_follow_the_rule(rule: str, offset: float, tile: int) -> None:
    # Points of a small grid: nearly every distance occurs as a radius, and many points twice. A
    # centre that is no grid point makes every product round.
    generator = torch.Generator().manual_seed(3)
    real = torch.randint(4, (60, 3), generator=generator).float() + offset
    fake = torch.randint(4, (45, 3), generator=generator).float() + offset
    assert len(real.unique(dim=0)) < 50
    for k in (1, 4):
        expected = by_definition(real, fake, k, rule)
        assert prdc(real=real, fake=fake, k=k, rule=rule, tile=tile) == pytest.approx(expected)
    assert by_definition(real, fake, 1, "<") != by_definition(real, fake, 1, "<=")


def test_near_duplicates_far_from_the_origin_keep_their_digits() -> None:
    # Clusters of 2^-10 at 2^13 from each other: float32 products would see distance zero.
    centres = 8192 * torch.randint(2, (8, 16), generator=torch.Generator().manual_seed(0))
    real = (centres.repeat(10, 1) + 2.0**-10 * normal(80, 16).round()).float()
    fake = (centres.repeat(9, 1) + 2.0**-10 * normal(72, 16, seed=1).round()).float()
    expected = by_definition(real, fake, 3, "<")
    assert 0.1 < expected["recall"] < 0.9
    assert prdc(real=real, fake=fake, k=3, tile=32) == pytest.approx(expected)


@pytest.mark.parametrize("doubts", [0.0, 1.0])
@pytest.mark.parametrize("rule", ["<", "<="])
def test_products_in_float32_change_no_number(
    rule: str, doubts: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Within a cluster, all comparisons are closer than float32 products: they are decided one by
    # one, or any of them sends its tiles to float64.
    monkeypatch.setattr(module, "_DOUBTS", doubts)
    centres = 100 * normal(20, 64).repeat(20, 1)
    real = (centres + 0.02 * normal(400, 64, seed=1)).float()
    fake = (centres + 0.02 * normal(400, 64, seed=2)).float()
    expected = by_definition(real, fake, 3, rule)
    assert 0.1 < expected["precision"] < 1 and 0.1 < expected["recall"] < 1
    assert prdc(real=real, fake=fake, k=3, rule=rule, tile=150) == pytest.approx(expected)
    assert prdc(real=real.double(), fake=fake.double(), k=3, rule=rule) == pytest.approx(expected)


@pytest.mark.parametrize("scale", [1e-22, 1e-3, 1e16])
def test_float32_features_of_any_size(scale: float) -> None:
    real, fake = (scale * normal(90, 12, seed=seed).float() for seed in (0, 1))
    expected = by_definition(real, fake, 3, "<")
    assert 0 < expected["precision"] < 1
    assert prdc(real=real, fake=fake, k=3) == pytest.approx(expected)


@pytest.mark.parametrize("apart", [0.0, 1000.0])
def test_neighbours_of_float32_features_are_those_of_float64(apart: float) -> None:
    # In two sets far apart, float32 products cannot tell the points of one set from each other.
    points = (apart * (torch.arange(300) % 2)[:, None] + normal(300, 40)).float()
    distances, indices = nearest_neighbours(queries=None, points=points, k=4, tile=128)
    points = points.double()
    table = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    expected = table.fill_diagonal_(torch.inf).sort(dim=1)
    torch.testing.assert_close(distances, expected.values[:, :4].square())
    assert torch.equal(indices, expected.indices[:, :4])


@pytest.mark.parametrize(("rule", "density"), [("<", 1.0), ("<=", 4 / 3)])
def test_a_set_against_itself(rule: str, density: float) -> None:
    # The strict ball of each image holds itself and its k - 1 nearer neighbours.
    values = normal(150, 7).float()
    result = prdc(real=values, fake=values.clone(), k=3, rule=rule, tile=64)
    assert result == pytest.approx(
        {"precision": 1.0, "recall": 1.0, "density": density, "coverage": 1.0}
    )


@pytest.mark.parametrize(("rule", "precision", "density"), [("<", 0.0, 0.0), ("<=", 1.0, 2.0)])
def test_balls_of_images_that_occur_twice_have_radius_zero(
    rule: str, precision: float, density: float
) -> None:
    twice = normal(30, 50).repeat(2, 1)
    result = prdc(real=twice, fake=twice.clone(), k=1, rule=rule, tile=16)
    assert result["precision"] == precision and result["density"] == density


@pytest.mark.parametrize(("rule", "precision"), [("<", 0.0), ("<=", 1.0)])
def test_distances_that_differ_by_rounding_are_equal(rule: str, precision: float) -> None:
    # All fakes are as far from the first real as the second one is, summed in another order.
    far = normal(64)
    real = torch.stack([torch.zeros(64).double(), far])
    fake = torch.stack([far.roll(turns) for turns in range(1, 64)])
    assert len(set(fake.square().sum(1).tolist())) > 1
    assert prdc(real=real, fake=fake, k=1, rule=rule)["precision"] == precision


@pytest.mark.parametrize("tile", [7, 1024])
def test_nearest_neighbours_are_those_of_the_table_of_distances(tile: int) -> None:
    queries, points = normal(25, 6) + 40, normal(33, 6, seed=1) + 40
    table = torch.cdist(queries, points, compute_mode="donot_use_mm_for_euclid_dist").square()
    expected = table.sort(dim=1)
    distances, indices = nearest_neighbours(queries=queries, points=points, k=33, tile=tile)
    torch.testing.assert_close(distances, expected.values)
    assert torch.equal(indices, expected.indices)
    _, others = nearest_neighbours(queries=None, points=points, k=32, tile=tile)
    assert torch.equal(others.sort(dim=1).values[0], torch.arange(1, 33))


def test_at_most_so_many_images() -> None:
    real, fake = feature_set(normal(60, 3)), feature_set(normal(50, 3, seed=1))
    whole = PRDC()(real=real, fake=fake)
    assert PRDC(reals=60, fakes=1000)(real=real, fake=fake) == whole
    some = PRDC(reals=20, fakes=10)(real=real, fake=fake)
    assert some == PRDC(reals=20, fakes=10)(real=real, fake=fake) != whole
    assert some != PRDC(reals=20, fakes=10, seed=1)(real=real, fake=fake)
    assert some["precision_d"] * 10 == pytest.approx(round(some["precision_d"] * 10))
    assert some["recall_d"] * 20 == pytest.approx(round(some["recall_d"] * 20))


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


@pytest.mark.parametrize("tile", [7, 64])
def test_adm_compares_distances_of_float16(tile: int) -> None:
    rng = np.random.default_rng(0)
    # Tightly packed, far from the origin: float16 leaves few different distances.
    real = (5 + 0.1 * rng.normal(size=(60, 16))).astype(np.float32)
    fake = (5.02 + 0.1 * rng.normal(size=(50, 16))).astype(np.float32)
    found = prdc(
        real=torch.from_numpy(real),
        fake=torch.from_numpy(fake),
        k=3,
        rule="<=",
        arithmetic="adm",
        tile=tile,
    )
    assert (found["precision"], found["recall"]) == pytest.approx(brute_adm(real, fake, 3))
    exact = prdc(real=torch.from_numpy(real), fake=torch.from_numpy(fake), k=3, rule="<=")
    assert exact["precision"] != pytest.approx(found["precision"], abs=0.02)


def test_adm_falls_back_to_float32_beyond_float16() -> None:
    values = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    near = prdc(real=values, fake=values.flip(0) * 0.9, k=3, rule="<=", arithmetic="adm")
    far = prdc(real=400 * values, fake=360 * values.flip(0), k=3, rule="<=", arithmetic="adm")
    exact = prdc(real=values, fake=values.flip(0) * 0.9, k=3, rule="<=")
    assert near == pytest.approx(exact, abs=0.1) and far == pytest.approx(exact)


def test_dgm_eval_takes_as_many_of_each_side() -> None:
    values = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    real, fake = (
        FeatureSet.from_values(detector="d", values=some) for some in (values, values[:20] + 0.1)
    )
    equal = PRDC(k=3, reals=50, equal=True)(real=real, fake=fake)
    assert equal == PRDC(k=3, reals=20)(real=real, fake=fake)
    assert equal != PRDC(k=3, reals=50)(real=real, fake=fake)
