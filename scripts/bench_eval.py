"""What evaluation costs: guidex beside torch-fidelity, a matrix square root and full tables of
distances, on the same images and features; and what the precision of a detector does to a distance.

Run on a CPU (3 minutes on two cores), or at the scale of papers on a GPU, where each line should
fit into ten minutes:

    python scripts/bench_eval.py
    python scripts/bench_eval.py --device cuda --sections end --images 50000
    python scripts/bench_eval.py --device cuda --sections frechet prdc precision --features 50000

Every contestant runs in a process started for it alone, so that its peak of memory is its own.
Packages are imported and inputs read before the clock starts; what takes less than 5 s runs again,
and the fastest run counts. torch-fidelity keeps features for a second evaluation only under a name
that the user vouches for; it is not given one. On a GPU, it computes convolutions in TF32, and
guidex in float32. Nothing is downloaded. Rows are Markdown, printed as soon as they are measured.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import resource
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from bench_tools import Skipped, describe, head, reported, row, say, wait
from torch import Tensor

from guidex.data.codec import from_pixels
from guidex.data.image_set import map_ahead
from guidex.features.dinov2 import dinov2
from guidex.features.features import FeatureSet
from guidex.features.inception import inception
from guidex.features.networks import NetworkDetector
from guidex.features.statistics import GaussianStatistics
from guidex.metrics.frechet import frechet_distance
from guidex.metrics.prdc import PRDC

SECTIONS = ("end", "frechet", "prdc", "precision")
K = 3  # neighbours
AGAIN = 5.0  # seconds within which a contestant runs again

Values = dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """What a contestant took.

    Attributes:
        seconds: of its fastest run.
        cpu: CPU seconds of its cheapest run, over all threads and readers; on a busy machine they
            say more than seconds.
        memory: largest resident size of its process, in GB.
        added: what of that came after its inputs were there.
        device_memory: largest memory allocated on the GPU, in GB; None on a CPU.
        values: what it found.
    """

    seconds: float
    cpu: float
    memory: float
    added: float
    device_memory: float | None
    values: Values


def main() -> None:
    args = arguments()
    device = torch.device(args.device)
    say(f"{describe(device)}; torch-fidelity {version('torch-fidelity')}")
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        if args.weights is None:
            args.weights = write_random_inception(args.folder / "inception.pth")
            say("Inception has random weights; its speed does not depend on them.")
        for section in args.sections:
            with reported(section):
                {
                    "end": end_to_end,
                    "frechet": frechet_distances,
                    "prdc": precision_and_recall,
                    "precision": precision_of_detectors,
                }[section](args)


def arguments() -> argparse.Namespace:
    """The command line; what is not given depends on the device."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")
    parser.add_argument("--images", type=int, default=100, help="of each side, end to end")
    parser.add_argument("--size", type=int, default=64, help="side of the images")
    parser.add_argument("--features", type=int, default=8000, help="of each side, in section prdc")
    parser.add_argument("--looks", type=int, help="images of each side, in section precision")
    parser.add_argument("--weights", help="of Inception; random if not given")
    parser.add_argument("--dinov2-weights", help="of ViT-L/14; left out if not given")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction)
    parser.add_argument("--float16", action=argparse.BooleanOptionalAction)
    args = parser.parse_args()
    on_cpu = torch.device(args.device).type == "cpu"
    if not on_cpu and not torch.cuda.is_available():
        parser.error(f"there is no {args.device} here")
    if args.looks is None:
        args.looks = 32 if on_cpu else 10_000
    # CPUs compile for a minute, and have no fast arithmetic for float16.
    args.compile = not on_cpu if args.compile is None else args.compile
    args.float16 = not on_cpu if args.float16 is None else args.float16
    return args


# Processes


def in_process(
    device: str,
    prepare: Callable[..., Callable[[], Values]],
    *inputs: object,
    again: float,
) -> Outcome:
    """See `Contest.run`."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_run, device, prepare, inputs, again).result()


def _run(
    device_name: str,
    prepare: Callable[..., Callable[[], Values]],
    inputs: tuple[object, ...],
    again: float,
) -> Outcome:
    # A spawned process would spawn torch-fidelity's readers, which takes them longer than to read.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    warnings.simplefilter("ignore")
    device = torch.device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.zeros(1, device=device)  # starts CUDA
    contestant = prepare(*inputs)
    before, seconds, cpu, began = _resident(), [], [], time.perf_counter()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    while not seconds or (len(seconds) < 3 and time.perf_counter() - began < again):
        wait(device)
        start, spent = time.perf_counter(), _cpu()
        values = contestant()
        wait(device)
        seconds.append(time.perf_counter() - start)
        cpu.append(_cpu() - spent)
    allocated = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
    return Outcome(min(seconds), min(cpu), _resident(), _resident() - before, allocated, values)


def _cpu() -> float:
    """CPU seconds of this process so far, and of its own that have ended."""
    return sum(os.times()[:4])


def _resident() -> float:
    """Largest resident size of this process so far, in GB."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, where getrusage counts what a process was before it began
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9


class Contest:
    """A table of contestants, the first one being the baseline. One that fails costs its row only.

    Arguments:
        title: above the table.
        values: names of the values that are shown.
    """

    def __init__(self, title: str, *values: str) -> None:
        self.values = values
        self.outcomes: list[Outcome | None] = []
        columns = (
            "seconds",
            "CPU s",
            "times faster",
            "GB at the peak",
            "GB beyond inputs",
            "GB on the GPU",
        )
        head(title, "contestant", *columns, *values)

    def run(
        self,
        name: str,
        device: str,
        prepare: Callable[..., Callable[[], Values]],
        *inputs: object,
        again: float = AGAIN,
    ) -> None:
        """Run what `prepare` makes of its inputs, in a process of its own: up to three times, as
        long as runs begin within `again` seconds."""
        self.outcomes.append(None)
        with reported(name):
            self.outcomes[-1] = outcome = in_process(device, prepare, *inputs, again=again)
            first, found = self.outcomes[0], outcome.values
            row(
                name,
                outcome.seconds,
                outcome.cpu,
                None if first is None else first.seconds / outcome.seconds,
                outcome.memory,
                outcome.added,
                outcome.device_memory,
                *(f"{found[name]:.8g}" if name in found else None for name in self.values),
            )

    def compare(self, number: int) -> None:
        """A row of what a contestant's values differ by from the baseline's, relative to them."""
        first, other = self.outcomes[0], self.outcomes[number]
        if first is not None and other is not None:
            pairs = [(first.values[name], other.values[name]) for name in self.values]
            cells = (f"{(b - a) / max(abs(a), 1e-30):.1e}" for a, b in pairs)
            row("relative difference", *[None] * 6, *cells)


# Images and weights


def pictures(count: int, size: int, side: str, first: int = 0) -> Tensor:
    """Images uint8 [count, 3, size, size]: smooth colours under noise. Fakes are paler and have
    less noise."""
    contrast, noise = {"real": (80, 16), "fake": (70, 12)}[side]
    generator = torch.Generator().manual_seed(2 * first + (side == "fake"))
    coarse = torch.randn(count, 3, 5, 5, generator=generator)
    smooth = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=True)
    values = 128 + contrast * smooth + noise * torch.randn(smooth.shape, generator=generator)
    return values.clamp(0, 255).to(torch.uint8)


def write_pictures(folder: Path, count: int, size: int, side: str) -> Path:
    """A folder of PNG files."""
    folder.mkdir()

    def write(first: int) -> None:
        images = pictures(min(500, count - first), size, side, first)
        for index, image in enumerate(images.numpy(), first):
            from_pixels(image).save(folder / f"{index:06d}.png")

    for _ in map_ahead(write, range(0, count, 500)):
        pass
    return folder


def write_random_inception(path: Path) -> str:
    """Weights in the published layout that keep signals at the same size from layer to layer."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Bare(FeatureExtractorInceptionV3):
        def load_state_dict(self, state: object) -> None:
            """Keep torch's own initialisation."""

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    tensors = Bare("bare", ["2048"], feature_extractor_weights_path=empty).state_dict()
    generator = torch.Generator().manual_seed(0)
    for name, value in tensors.items():
        if name.endswith("conv.weight"):
            scale = (2 / value[0].numel()) ** 0.5
            tensors[name] = torch.randn(value.shape, generator=generator) * scale
        elif name.endswith(("bn.bias", "fc.weight", "fc.bias")):
            tensors[name] = torch.randn(value.shape, generator=generator) * 0.1
    torch.save(tensors, path)
    return str(path)


# End to end


def end_to_end(args: argparse.Namespace) -> None:
    """Two folders of images to distances."""
    columns = {"FID": "fd", "KID": "kid", "precision": "precision", "recall": "recall"}
    count, size = args.images, args.size
    table = Contest(f"End to end: {count:,} against {count:,} PNG files of {size}x{size}", *columns)
    real, fake = (
        write_pictures(args.folder / side, count, size, side) for side in ("real", "fake")
    )
    look, subset = (args.device, str(real), str(fake), args.weights), min(1000, count)
    table.run(
        "torch-fidelity: fid, kid, prc", args.device, torch_fidelity_folders, *look, subset, again=0
    )
    metrics = ["metrics=[frechet,kid,prdc]", f"metrics.kid.subset_size={subset}"]
    metrics += [f"metrics.prdc.k={K}", "metrics.prdc.rule='<='"]
    look = *look, str(args.folder / "work")
    table.run(
        "guidex eval: the same", args.device, guidex_folders, *look, metrics, columns, again=0
    )
    mind = ["metrics=mind"]
    table.run("guidex eval again: mind", args.device, guidex_folders, *look, mind, {}, again=0)
    table.compare(1)


def torch_fidelity_folders(
    device: str, real: str, fake: str, weights: str, subset: int
) -> Callable[[], Values]:
    """torch-fidelity from folders to metrics, in batches of its own default size."""
    import torch_fidelity

    names = {
        "FID": torch_fidelity.KEY_METRIC_FID,
        "KID": torch_fidelity.KEY_METRIC_KID_MEAN,
        "precision": torch_fidelity.KEY_METRIC_PRECISION,
        "recall": torch_fidelity.KEY_METRIC_RECALL,
    }

    def measure() -> Values:
        metrics = torch_fidelity.calculate_metrics(
            input1=fake,
            input2=real,
            cuda=device != "cpu",
            fid=True,
            kid=True,
            prc=True,
            feature_extractor="inception-v3-compat",
            feature_extractor_weights_path=weights,
            kid_subset_size=subset,
            prc_neighborhood=K,
            cache=False,
            verbose=False,
        )
        return {name: metrics[key] for name, key in names.items()}

    return measure


def guidex_folders(
    device: str,
    real: str,
    fake: str,
    weights: str,
    work: str,
    metrics: list[str],
    columns: dict[str, str],
) -> Callable[[], Values]:
    """`guidex eval` from folders to metrics. The first one finds its cache of features empty."""
    from guidex.commands.evaluate import evaluate
    from guidex.models.pretrained import library

    library("torch_fidelity.feature_extractor_inceptionv3", "eval")
    os.environ["GUIDEX_CACHE"] = f"{work}/cache"
    out = Path(work, metrics[0])
    words = [fake, f"ref={real}", f"out={out}", f"device={device}", *metrics]
    words += ["detector=inception", f"detector.weights={weights}"]

    def measure() -> Values:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            evaluate(words)
        found = json.loads((out / "rows.jsonl").read_text())["metrics"]
        return {column: found[f"{name}_inception"] for column, name in columns.items()}

    return measure


# The Fréchet distance


def frechet_distances(args: argparse.Namespace) -> None:
    """From statistics of 2048 features."""
    for title, count in (("of full rank", 20_000), ("of rank 999", 1000)):
        table = Contest(f"Fréchet distance of 2048 features, covariances {title}", "value")
        files = []
        for side in ("real", "fake"):
            statistics = GaussianStatistics.from_features(activations(count, 2048, side))
            files.append(str(args.folder / f"{side}-{count}.npz"))
            np.savez(files[-1], count=count, mean=statistics.mean, scatter=statistics.scatter)
        table.run("scipy.linalg.sqrtm", "cpu", square_root, *files)
        table.run("eigvals (torch-fidelity)", "cpu", eigenvalues, *files)
        table.run("guidex", args.device, symmetric, args.device, *files)
        table.compare(2)


def activations(count: int, dim: int, side: str) -> Tensor:
    """Features [count, dim], float32, that are like a network's: not negative, correlated, and of
    fast decaying variances."""
    mix = torch.randn(256, dim, generator=torch.Generator().manual_seed(99))
    mix *= torch.linspace(1, 0.05, 256)[:, None] ** 2 / 6
    generator = torch.Generator().manual_seed(int(side == "fake"))
    hidden = torch.randn(count, 256, generator=generator) @ mix
    own = 0.1 * torch.randn(count, dim, generator=generator)
    return (hidden + own + {"real": 0.3, "fake": 0.35}[side]).relu_()


def _statistics(path: str) -> GaussianStatistics:
    with np.load(path) as file:
        mean, scatter = (torch.from_numpy(file[name]) for name in ("mean", "scatter"))
        return GaussianStatistics(int(file["count"]), mean, scatter)


def _moments(path: str) -> tuple[np.ndarray, np.ndarray]:
    statistics = _statistics(path)
    return statistics.mean.numpy(), statistics.covariance.numpy()


def square_root(real: str, fake: str) -> Callable[[], Values]:
    """As pytorch-fid and others do it."""
    import scipy.linalg

    (mean_r, covariance_r), (mean_f, covariance_f) = _moments(real), _moments(fake)

    def measure() -> Values:
        root = scipy.linalg.sqrtm(covariance_r @ covariance_f)
        if not np.isfinite(root).all():
            offset = 1e-6 * np.eye(len(root))
            root = scipy.linalg.sqrtm((covariance_r + offset) @ (covariance_f + offset))
        trace = np.trace(covariance_r) + np.trace(covariance_f) - 2 * np.trace(root.real)
        return {"value": float(np.square(mean_r - mean_f).sum() + trace)}

    return measure


def eigenvalues(real: str, fake: str) -> Callable[[], Values]:
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    sides = [dict(zip(("mu", "sigma"), _moments(path), strict=True)) for path in (real, fake)]
    return lambda: {"value": next(iter(fid_statistics_to_metric(*sides, False).values()))}


def symmetric(device: str, real: str, fake: str) -> Callable[[], Values]:
    sides = {"real": _statistics(real).to(device), "fake": _statistics(fake).to(device)}
    return lambda: {"value": frechet_distance(**sides)}


# Precision and recall


def precision_and_recall(args: argparse.Namespace) -> None:
    """From features of 1024 dimensions."""
    count = args.features
    table = Contest(
        f"Precision and recall, {count:,} x {count:,} x 1024, k = {K}, <=", "precision", "recall"
    )
    files = []
    for side in ("real", "fake"):
        files.append(str(args.folder / f"features-{side}.npy"))
        np.save(files[-1], activations(count, 1024, side))
    table.run("torch.cdist, full tables", args.device, full_tables, args.device, *files)
    table.run("torch-fidelity", args.device, torch_fidelity_features, args.device, *files)
    table.run("guidex", args.device, guidex_features, args.device, *files)
    table.compare(2)


def _features(device: str, path: str) -> Tensor:
    return torch.from_numpy(np.load(path)).to(device)


def _require_tables(device: str, count: int) -> None:
    """Raise Skipped where a float32 table of all distances, with what it takes to make it and to
    select from it (four times as much in all), is more than there is."""
    if torch.device(device).type == "cuda":
        there = torch.cuda.mem_get_info(torch.device(device))[0]
    else:
        there = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = 4 * 4 * count**2
    if needed > there:
        raise Skipped(f"it needs {needed / 1e9:.0f} GB, and {there / 1e9:.0f} GB are free")


def full_tables(device: str, real: str, fake: str) -> Callable[[], Values]:
    """All distances at once, in float32."""
    reals, fakes = _features(device, real), _features(device, fake)
    _require_tables(device, len(reals))

    def measure() -> Values:
        radii_r, radii_f = (
            torch.cdist(values, values).kthvalue(K + 1).values for values in (reals, fakes)
        )
        between = torch.cdist(reals, fakes)
        return {
            "precision": (between <= radii_r[:, None]).any(0).double().mean().item(),
            "recall": (between <= radii_f[None]).any(1).double().mean().item(),
        }

    return measure


def torch_fidelity_features(device: str, real: str, fake: str) -> Callable[[], Values]:
    from torch_fidelity.metric_prc import prc_features_to_metric

    reals, fakes = _features(device, real), _features(device, fake)
    _require_tables(device, len(reals))
    return lambda: prc_features_to_metric(fakes, reals, prc_neighborhood=K, verbose=False)


def guidex_features(device: str, real: str, fake: str) -> Callable[[], Values]:
    reals, fakes = _features(device, real), _features(device, fake)
    real, fake = (FeatureSet("d", values) for values in (reals, fakes))
    metric = PRDC(k=K, rule="<=")
    return lambda: {k.removesuffix("_d"): v for k, v in metric(real=real, fake=fake).items()}


# Precision of detectors


def precision_of_detectors(args: argparse.Namespace) -> None:
    """The same images by the same network in several kinds of arithmetic."""
    changes = ("of features", "of the distance", "where only fakes are so")
    head(
        f"Precision of detectors, {args.looks:,} against {args.looks:,} images",
        "network",
        "images/s",
        "distance",
        *(f"change {what}" for what in changes),
    )
    variants = [("float32", False), ("bfloat16", False)]
    variants += [("float16", False)] if args.float16 else []
    variants += [("float32", True)] if args.compile else []
    networks = {"inception": args.weights, "dinov2": args.dinov2_weights}
    for network, weights in networks.items():
        exact: dict[str, Tensor] = {}
        for precision, compiled in variants if weights is not None else ():
            name = f"{network} {precision}{' compiled' if compiled else ''}"
            path = str(args.folder / "looks")
            look = network, weights, precision, compiled, args.looks, args.size, args.device, path
            with reported(name):
                outcome = in_process(args.device, looked_at, *look, again=AGAIN)
                found = {side: torch.load(f"{path}-{side}.pt") for side in ("real", "fake")}
                exact = exact or found
                row(
                    name,
                    2 * args.looks / outcome.seconds,
                    f"{_distance(found, found):.6g}",
                    f"{_change(exact, found):.1e}",
                    f"{_distance(found, found) / _distance(exact, exact) - 1:+.1e}",
                    f"{_distance(exact, found) / _distance(exact, exact) - 1:+.1e}",
                )
    say(
        "\nFeatures: root of the mean squared change over that of the features about their mean. "
        "Distances: relative to float32."
    )
    if str(args.folder) in args.weights:
        say("These are random weights and synthetic images: they tell the order of magnitude only.")


def looked_at(
    network: str,
    weights: str,
    precision: str,
    compiled: bool,
    count: int,
    size: int,
    device: str,
    path: str,
) -> Callable[[], Values]:
    """Features of both sides, written to files."""
    make: Callable[..., NetworkDetector] = {"inception": inception, "dinov2": dinov2}[network]
    detector = make(weights=weights, precision=precision, compile=compiled).to(device)
    images = {side: pictures(count, size, side) for side in ("real", "fake")}
    detector(images["real"])  # builds and compiles

    def measure() -> Values:
        for side, values in images.items():
            torch.save(detector(values).cpu(), f"{path}-{side}.pt")
        return {}

    return measure


def _change(exact: dict[str, Tensor], found: dict[str, Tensor]) -> float:
    changed = sum((found[side] - exact[side]).double().square().sum() for side in exact)
    spread = sum((exact[side] - exact[side].mean(0)).double().square().sum() for side in exact)
    return float((changed / spread).sqrt())


def _distance(real: dict[str, Tensor], fake: dict[str, Tensor]) -> float:
    return frechet_distance(
        real=GaussianStatistics.from_features(real["real"]),
        fake=GaussianStatistics.from_features(fake["fake"]),
    )


if __name__ == "__main__":
    main()
