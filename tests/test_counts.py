"""Too few images: commands say it before any network runs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guidex.cli import main
from guidex.config.compose import compose
from guidex.errors import UsageError
from guidex.features.networks import NetworkDetector
from guidex.features.samples import PassSettings, Samples
from guidex.runs.measure import Measures

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def no_network_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GUIDEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(NetworkDetector, "__call__", lambda *_: pytest.fail("a network is run"))


@pytest.fixture
def inception(tmp_path: Path) -> list[str]:
    """A network with what looks like weights as long as nobody reads them."""
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")
    (tmp_path / "weights.pth").write_bytes(b"weights")
    return ["detector=inception", f"detector.weights={tmp_path / 'weights.pth'}"]


def images(path: Path, count: int, suffix: str = "png") -> Path:
    path.mkdir()
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{index}.{suffix}")
    return path


def test_eval_refuses_before_any_network(
    tmp_path: Path, inception: list[str], capsys: Captured
) -> None:
    reals, fakes = images(tmp_path / "reals", 12), images(tmp_path / "fakes", 1)
    for metrics, text in (
        ("kid", "KID with subset_size=1000 needs at least 1000 real images, and has 12"),
        ("fd_infinity", "FrechetInfinity with smallest=5000 and sizes=15 needs at least 5015 fake"),
        ("frechet", "Frechet needs at least 2 fake images, and has 1; use more images"),
        ("prdc", "PRDC with k=3 needs at least 4 fake images, and has 1"),
        ("frechet metrics.frechet.confidence=jackknife", "needs at least 4096 fake images"),
    ):
        words = ["eval", str(fakes), f"ref={reals}", *inception, *f"metrics={metrics}".split()]
        assert main([*words, f"out={tmp_path / 'out'}"]) == 2
        assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_statistics_of_unknown_number_suffice_and_single_images_are_counted(
    tmp_path: Path, inception: list[str]
) -> None:
    """ADM's files: statistics of all images, and some of the images."""
    statistics = {"mu": np.zeros(2048), "sigma": np.eye(2048)}
    np.savez(tmp_path / "virtual.npz", arr_0=np.zeros((3, 4, 4, 3), np.uint8), **statistics)
    measures = Measures(PassSettings())

    def config(metric: str) -> dict:
        words = ["images=a", f"ref={tmp_path / 'virtual.npz'}", *inception, f"metrics=[{metric}]"]
        return compose("eval", words).config | {"device": "cpu"}

    (one,) = measures.get(config("frechet"), count=2)
    measures.make_features()  # statistics alone, without any network
    assert one.real.values is None
    with pytest.raises(UsageError, match="at least 4 real images, and has 3"):
        Measures(PassSettings()).get(config("prdc"), count=50)


def test_eval_tells_what_is_compared_and_doubts_it_first(
    tmp_path: Path, inception: list[str], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    reals, fakes = images(tmp_path / "reals", 12, "jpg"), images(tmp_path / "fakes", 11)
    monkeypatch.setattr(Samples, "features", lambda *_: 1 / 0)
    words = ["eval", str(fakes), f"ref={reals}", *inception, "metrics=frechet"]
    assert main([*words, f"out={tmp_path / 'out'}"]) == 1
    captured = capsys.readouterr()
    assert f"real: {reals}: 12 images" in captured.out
    assert f"fake: {fakes}: 11 images" in captured.out
    assert "12 real images and 2,048 features" in captured.err
    assert "JPEG meets" in captured.err
    assert "division by zero" in captured.err.splitlines()[-2]  # by the reference's images


def test_of_default_metrics_those_with_too_few_images_are_left_out(
    tmp_path: Path, capsys: Captured
) -> None:
    reals, fakes = images(tmp_path / "reals", 12), images(tmp_path / "fakes", 3)
    assert main(["eval", str(fakes), f"ref={reals}", f"out={tmp_path / 'out'}"]) == 0
    out = capsys.readouterr().out
    assert "prdc is left out: PRDC with k=3 needs at least 4 fake images, and has 3" in out
    header = (tmp_path / "out" / "table.csv").read_text().splitlines()[0]
    assert "fd_pixels" in header and "precision" not in header
    one = images(tmp_path / "one", 1)
    assert main(["eval", str(one), f"ref={reals}", f"out={tmp_path / 'none'}"]) == 2
    captured = capsys.readouterr()
    assert "frechet is left out: Frechet needs at least 2 fake images" in captured.out
    assert "none that can be computed" in captured.err


SEEDS = ["guidance=cfg", "seeds=0-5", "gallery=1"]
SWEEP = ["sweep", *SEEDS, "sampler.grid.steps=2,3"]
SAMPLE = ["sample", "eval=true", *SEEDS, "sampler.grid.steps=2"]


def test_sweeps_and_samples_refuse_before_sampling(
    tmp_path: Path, inception: list[str], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guidex.commands.sweep.run", lambda *_: pytest.fail("too late"))
    network = [*inception, f"ref={images(tmp_path / 'reals', 12)}", "metrics=prdc"]
    for command in (SWEEP, SAMPLE):
        for more, text in (
            (["metrics=kid"], "at least 1000 fake images, and has 6"),
            ([*network, "seeds=0-2", "repeats=2"], "at least 4 fake images, and has 3"),
            ([*network, "metrics.prdc.k=12", "seeds=0-99"], "real images, and has 12"),
        ):
            assert main([*command, *more, f"out={tmp_path / 'out'}"]) == 2
            assert text in capsys.readouterr().err


def test_a_sweep_of_few_seeds_measures_what_it_can(tmp_path: Path, capsys: Captured) -> None:
    few = ["sampler.grid.steps=2", "seeds=0-2", "repeats=2", f"out={tmp_path / 'out'}"]
    assert main([*SWEEP, *few]) == 0
    assert "prdc is left out: PRDC with k=3 needs at least 4 fake" in capsys.readouterr().out
    header = (tmp_path / "out" / "table.csv").read_text().splitlines()[0]
    assert "fd_pixels" in header and "accuracy_pixels" in header and "precision" not in header
