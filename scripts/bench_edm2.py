"""How fast EDM2 is sampled: networks, the joint call of two predictions, the decoder, whole runs.

Run on a GPU with guidex installed (or PYTHONPATH=.); each of the first two ends within ten minutes:

    python scripts/bench_edm2.py --sections network kernels joint
    python scripts/bench_edm2.py --sections end decoder
    python scripts/bench_edm2.py --sections network --sizes s --batches 256 --compile-batches 256
    python scripts/bench_edm2.py --quick      # in small, on a CPU: it shows that all of it runs

Networks have the published sizes and random weights; nothing is downloaded. Ratios are to the
plain network (the form that is trained, eager) or to the baseline that a table names, in the same
process. What fails, or does not fit into --minutes, is told and left out. Rows are printed as
Markdown, as soon as they are measured.
"""

import argparse
import copy
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from bench_tools import (
    Deadline,
    Timers,
    captured,
    describe,
    head,
    in_dtype,
    memory_of,
    print_kernels,
    random_network,
    reported,
    row,
    say,
    seconds_per_call,
    smooth_latents,
    write_network,
    write_vae,
)
from torch import Tensor

from guidex.config.compose import compose
from guidex.config.instantiate import Models
from guidex.data.codec import write_png
from guidex.features.networks import full_float32
from guidex.models.attention import Perturbation
from guidex.models.decoders import StabilityVAE
from guidex.models.denoiser import View
from guidex.models.edm2.folded import fold
from guidex.models.edm2.load import CHANNELS
from guidex.models.edm2.network import EDM2
from guidex.models.spec import compile_network
from guidex.runs.engine import Task, grouped, run
from guidex.runs.folder import run_folder
from guidex.runs.outputs import Labels, PngFolder
from guidex.runs.points import Point, check, load
from guidex.runs.threads import Arriving, Writers
from guidex.sampling.seeds import start

SECTIONS = ("network", "kernels", "joint", "decoder", "end")
FORMS = ("plain", "folded", "folded-tuned", "compiled", "compiled-tuned", "graphs", "autotuned")
GPU_FORMS = ("folded-tuned", "compiled-tuned", "graphs", "autotuned")
SIGMA = 5.0  # the prediction is nearly all the network's there, so that its errors are seen

CFG = ["guidance=cfg", "guidance.schedule.w=1.4"]
INTERVAL = ["guidance=interval", "guidance.schedule.w=2"]
INTERVAL += ["guidance.schedule.lo=0.19", "guidance.schedule.hi=1.61"]

QUICK = {
    "sizes": ["xxs"],
    "guide": "xxs",
    "batches": [2],
    "forms": ["plain", "folded", "graphs"],
    "compile_batches": [],
    "dtype": "float32",
    "resolution": 16,
    "images": 4,
    "steps": 4,
    "end_batches": [2],
    "end_compile": False,
    "vae_channels": [32, 32, 32, 32],
    "decoder_images": 4,
    "decoder_compile": False,
    "seconds": 0.1,
}


class Bench:
    """The sections, by their names, and what they share."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device = args, torch.device(args.device)
        self.dtype = getattr(torch, args.dtype)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # of events, streams and graphs
        self.deadline = Deadline(args.minutes)
        self.networks: dict[tuple[str, str], EDM2] = {}
        self.best_product = 0.0  # TFLOP/s

    def seconds(self, call: Callable[[], object]) -> float:
        return seconds_per_call(call, self.device, self.args.seconds)

    def matrix_products(self) -> None:
        """What the rates of networks are shares of."""
        head(f"Products of square matrices, {self.args.dtype}", "side", "TFLOP/s")
        for side in (4096, 8192, 16384) if self.device.type == "cuda" else (1024,):
            a, b = torch.randn(2, side, side, device=self.device).to(self.dtype)
            rate = 2e-12 * side**3 / self.seconds(partial(torch.mm, a, b))
            self.best_product = max(self.best_product, rate)
            row(side, rate)

    # Networks

    def network(self) -> None:
        """Evaluations per second of all sizes, batches and forms."""
        columns = ["evaluations/s", "TFLOP/s", "% of matrix product", "x plain"]
        columns += ["error to float32", "GB beside weights", "first call, s"]
        head(f"Networks, {self.args.dtype}", "size, batch, form", *columns)
        for size in self.args.sizes:
            for batch in self.args.batches:
                with reported(f"{size}, {batch}"):
                    self._network_rows(size, batch)

    def _network_rows(self, size: str, batch: int) -> None:
        x, labels = self._inputs(batch)
        few = slice(min(batch, 4))
        with full_float32():
            exact = in_dtype(self._made(size, "plain"), torch.float32)(x[few], SIGMA, labels[few])
        plain = None
        for form in self._forms(batch):
            with reported(f"{size}, {batch}, {form}"):
                self.deadline.check()
                torch.backends.cudnn.benchmark = form.endswith("-tuned")
                began = time.perf_counter()
                call = self._evaluation(size, form, x, labels)
                error = ((call()[few] - exact).norm() / exact.norm()).item()  # waits for the device
                first = time.perf_counter() - began
                memory = memory_of(call, self.device)
                rate = batch / self.seconds(call)
                plain = rate if form == "plain" else plain
                teraflops = rate * self._made(size, "plain").gflops / 1000
                share = f"{100 * teraflops / self.best_product:.0f}"
                ratio = None if plain is None else rate / plain
                cells = (rate, teraflops, share, ratio, f"{error:.1e}", memory, first)
                row(f"{size}, {batch}, {form}", *cells)
        torch.backends.cudnn.benchmark = False

    def _inputs(self, batch: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(batch)
        shape = (batch, 4, self.args.resolution, self.args.resolution)
        x = (SIGMA**2 + 0.25) ** 0.5 * torch.randn(shape, generator=generator)
        labels = torch.randint(1000, [batch], generator=generator)
        return x.to(self.device), labels.to(self.device)

    def _forms(self, batch: int) -> Iterator[str]:
        """Those asked for that this machine has and this batch is to be compiled for."""
        for form in FORMS:
            compiled = form not in ("plain", "folded", "folded-tuned")
            if form not in self.args.forms or (compiled and batch not in self.args.compile_batches):
                continue
            if form in GPU_FORMS and self.device.type != "cuda":
                continue
            yield form

    def _made(self, size: str, form: str) -> EDM2:
        """A network, made once: plain, folded, compiled or autotuned."""
        if (size, form) not in self.networks:
            if form == "plain":
                model = random_network(size, self.dtype, self.args.resolution, 1000, self.device)
            else:
                model = fold(copy.deepcopy(self._made(size, "plain")))
            if form == "compiled":
                compile_network(model, model.unet)
            if form == "autotuned":
                model.unet.compile(dynamic=False, mode="max-autotune-no-cudagraphs")
            self.networks[size, form] = model
        return self.networks[size, form]

    def _evaluation(self, size: str, form: str, x: Tensor, labels: Tensor) -> Callable[[], Tensor]:
        """One evaluation of a batch, to be called again and again."""
        if form != "graphs":
            return partial(self._made(size, form.removesuffix("-tuned")), x, SIGMA, labels)
        sigmas = x.new_full(x.shape[:1], SIGMA)
        classes = torch.nn.functional.one_hot(labels, 1000)
        return captured(partial(self._made(size, "compiled").predict, x, sigmas, classes))

    def kernels(self) -> None:
        """What a batch's time goes to on the device, kernel by kernel."""
        batch = (self.args.compile_batches or self.args.batches)[0]
        x, labels = self._inputs(batch)
        for size in self.args.sizes:
            for form in ("folded", "compiled"):
                if form in self._forms(batch):
                    with reported(f"kernels of {size}, {form}"):
                        self.deadline.check()
                        call = self._evaluation(size, form, x, labels)
                        print_kernels(f"{size}, {batch}, {form}", call, self.device)

    def joint(self) -> None:
        """The main prediction and the perturbed one (PAG) in one call, folded."""
        columns = ["ms, two calls", "ms, one call", "x two calls"]
        head("Main and perturbed prediction, baseline two calls", "size, batch", *columns)
        perturbation = Perturbation(("dec.*_in0",))
        for size in self.args.sizes:
            for batch in sorted(self.args.batches)[:2]:
                with reported(f"{size}, {batch}"):
                    self.deadline.check()
                    model = self._made(size, "folded")
                    x, labels = self._inputs(batch)
                    views = [View(SIGMA, labels), View(SIGMA, labels, perturbation)]
                    alone = [partial(model.joint, x, [view]) for view in views]
                    two = sum(self.seconds(call) for call in alone)
                    one = self.seconds(partial(model.joint, x, views))
                    row(f"{size}, {batch}", 1000 * two, 1000 * one, two / one)

    # The decoder

    def decoder(self) -> None:
        """Images per second of Stability's VAE, and how its pixels differ from float32's."""
        columns = ["images/s", "x float32", "worst difference", "mean difference", "GB beside"]
        title = "Decoder, differences in levels of 0 … 255"
        what = self.args.vae or "random weights, so that differences are of the kind, not the size"
        head(f"{title} ({what})", "form", *columns)
        cuda = self.device.type == "cuda"
        with tempfile.TemporaryDirectory() as folder:
            path = self.args.vae or str(write_vae(Path(folder), self.args.vae_channels))
            x = smooth_latents(self.args.decoder_images, self.args.resolution, self.device)
            with full_float32():
                exact = self._vae(path, "float32", "planar")(x)
            baseline = None
            for dtype in ("float32", "float16"):
                for layout in ("planar", "channels-last", "compiled"):
                    if layout == "compiled" and not self.args.decoder_compile:
                        continue
                    form = f"{dtype}{' (TF32)' if dtype == 'float32' and cuda else ''}, {layout}"
                    with reported(form):
                        self.deadline.check()
                        vae = self._vae(path, dtype, layout)
                        difference = (vae(x).int() - exact.int()).abs()
                        worst, mean = difference.max().item(), difference.double().mean().item()
                        memory = memory_of(partial(vae, x), self.device)
                        rate = len(x) / self.seconds(partial(vae, x))
                        baseline = rate if baseline is None else baseline
                        row(form, rate, rate / baseline, worst, mean, memory)

    def _vae(self, path: str, dtype: str, layout: str) -> StabilityVAE:
        """The decoder as guidex makes it, or with its weights planar as diffusers has them."""
        vae = StabilityVAE(path, dtype, batch=8, compile=layout == "compiled").to(self.device)
        if layout == "planar":
            vae.vae.to(memory_format=torch.contiguous_format)
        return vae

    # Whole runs

    def end(self) -> None:
        """Images per second from seeds to PNG files, as `guidex sample` makes them."""
        self.networks.clear()
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            with reported("PNG"):
                self._png(place)
            for name in self.args.sizes:
                self._write_network(place / f"{name}.safetensors", name, 1000)
            self._write_network(place / "guide.safetensors", self.args.guide, 0)
            vae = self.args.vae or str(write_vae(place / "vae", self.args.vae_channels))
            title = f"Seeds to PNG files, {self.args.guide} guide, {self.args.steps} steps of Heun"
            columns = ["images/s", "x first row", "TFLOP per image", "kB per image"]
            head(title, "size, batch, networks, decoder, guidance", *columns)
            models, split = Models(), []
            for size in self.args.sizes:
                for batch in self.args.end_batches:
                    with reported(f"{size}, {batch}"):
                        split += self._end_rows(place, vae, size, batch, models)
            for name, point in split:
                with reported(name):
                    self.deadline.check()
                    self._print_parts(name, point, place)

    def _png(self, place: Path) -> None:
        """What a PNG file costs: random networks make noise, which is dearer than photographs."""
        side = 8 * self.args.resolution
        head("One PNG file, one thread", f"RGB, {side} x {side}", "ms", "kB")
        smooth = smooth_latents(1, side, torch.device("cpu"))[0, :3]
        noise = torch.randn(3, side, side) / 5
        grain = smooth / 2 + noise / 20
        for name, values in (("noise", noise), ("smooth", smooth / 2), ("smooth and grain", grain)):
            pixels = ((values + 0.5).clamp(0, 1) * 255).to(torch.uint8).numpy()
            write = partial(write_png, place / "one.png", pixels)
            ms = 1000 * seconds_per_call(write, torch.device("cpu"), self.args.seconds)
            row(name, ms, (place / "one.png").stat().st_size / 1000)

    def _write_network(self, path: Path, size: str, classes: int) -> None:
        model = random_network(size, self.dtype, self.args.resolution, classes, self.device)
        write_network(model, path)

    def _end_rows(
        self, place: Path, vae: str, size: str, batch: int, models: Models
    ) -> list[tuple[str, Point]]:
        """A row per form; returns what is worth to be taken apart."""
        fast = "compiled" if self.args.end_compile else "folded"
        cases = [
            ("folded", "float32", False, "CFG", CFG),
            *([(fast, "float32", False, "CFG", CFG)] if fast != "folded" else []),
            (fast, "float16", self.args.decoder_compile, "CFG", CFG),
            (fast, "float16", self.args.decoder_compile, "interval", INTERVAL),
        ]
        baseline, split = None, []
        for number, (form, dtype, compiled, guidance, chosen) in enumerate(cases):
            decoder = f"{dtype}{' compiled' if compiled else ''}"
            name = f"{size}, {batch}, {form}, {decoder}, {guidance}"
            with reported(name):
                self.deadline.check()
                torch.backends.cudnn.benchmark = self.args.tuned
                words = [
                    f"guidance.reference.checkpoint={place / 'guide.safetensors'}",
                    f"model.checkpoint={place / size}.safetensors",
                    f"model.compile={form == 'compiled'}",
                    f"decoder.path={vae}",
                    f"decoder.dtype={dtype}",
                    f"decoder.compile={compiled}",
                    f"batch={batch}",
                ]
                out = place / f"{size}-{batch}-{number}"
                # Compiles, and warms up all that the run needs.
                self._run(self._point(batch, 2, [*CFG, *words], models), out.with_suffix(".warm"))
                point = self._point(self.args.images, self.args.steps, [*chosen, *words], models)
                rate = self.args.images / self._run(point, out)
                baseline = rate if number == 0 else baseline
                ratio = None if baseline is None else rate / baseline
                files = list(out.rglob("*.png"))
                size_of_file = sum(file.stat().st_size for file in files) / len(files) / 1000
                row(name, rate, ratio, point.gflops / 1000, size_of_file)
                if dtype == "float16":
                    split.append((name, point))
        torch.backends.cudnn.benchmark = False
        return split

    def _point(self, images: int, steps: int, words: list[str], models: Models) -> Point:
        general = [
            "model=edm2",
            f"model.dtype={self.args.dtype}",
            "decoder=sd_vae",
            f"device={self.args.device}",
            f"seeds=0-{images - 1}",
            f"sampler.grid.steps={steps}",
        ]
        return load(check(compose("sample", [*general, *words]), {}), models)

    def _run(self, point: Point, out: Path) -> float:
        """Seconds from the first seed to the last file on disk; networks are loaded already."""
        out.mkdir()
        began = time.perf_counter()
        with run_folder(out, {"command": "sample"}, overwrite=False) as held:
            with run(grouped([Task(0, point, [Labels(), PngFolder(out)])], held), out / "result"):
                pass
        return time.perf_counter() - began

    def _print_parts(self, name: str, point: Point, place: Path) -> None:
        """The same run again, part by part."""
        guides = [q.network for t in point.guidance.terms.values() for q in t.direction.queries]

        def arrive(samples: Tensor) -> Arriving:
            arriving = Arriving(samples)
            arriving.numpy()
            return arriving

        outputs, writers = "guidex.runs.outputs", "guidex.runs.threads.Writers"
        with Timers(self.device) as timers:
            timers.replace("noise and classes", "guidex.runs.engine.start", start)
            timers.watch("main network", point.model)
            for guide in guides:
                timers.watch("guide network", guide)
            timers.watch("decoder", point.kind.decoder)
            timers.replace("copy to memory", f"{outputs}.Arriving", arrive)
            timers.replace("handing to writers", f"{writers}.submit", Writers.submit)
            timers.replace("last writers", f"{writers}.__exit__", Writers.__exit__)
            timers.replace_in_threads("encoding and writing", f"{outputs}.write_png", write_png)
            seconds = self._run(point, place / f"parts of {name}".replace(", ", "-"))
        images = len(point.planned.seeds)
        threads = timers.seconds.pop("encoding and writing")
        timers.seconds["solver, guidance and all else"] = seconds - timers.seconds.total()
        head(f"Parts of {name}, the device waited for around each", "part", "ms per image", "%")
        for part, spent in timers.seconds.items():
            row(part, 1000 * spent / images, 100 * spent / seconds)
        row("all", 1000 * seconds / images, 100.0)
        row("encoding and writing, in threads meanwhile", 1000 * threads / images, None)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    several = partial(parser.add_argument, nargs="+")
    several("--sections", choices=SECTIONS, default=list(SECTIONS))
    several("--sizes", choices=list(CHANNELS), default=["s", "xxl"])
    several("--batches", type=int, default=[64, 32, 256])
    several("--forms", choices=FORMS, default=list(FORMS[:-1]))
    several("--compile-batches", type=int, default=[64], help="batches that are also compiled for")
    several("--end-batches", type=int, default=[32], help="batches of whole runs")
    several("--vae-channels", type=int, default=[128, 256, 512, 512])
    boolean = partial(parser.add_argument, action=argparse.BooleanOptionalAction)
    boolean("--end-compile", default=True, help="compile the networks of whole runs")
    boolean("--decoder-compile", default=True)
    boolean("--tuned", default=False, help="whole runs with torch.backends.cudnn.benchmark")
    parser.add_argument("--guide", choices=list(CHANNELS), default="xs", help="without classes")
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], default="float16")
    parser.add_argument("--resolution", type=int, default=64, help="of latents")
    parser.add_argument("--images", type=int, default=128, help="of a whole run")
    parser.add_argument("--steps", type=int, default=32, help="of a whole run")
    parser.add_argument("--decoder-images", type=int, default=32)
    parser.add_argument("--vae", help="folder of a VAE; random weights without it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--minutes", type=float, default=8.0, help="when nothing new is begun")
    parser.add_argument("--quick", action="store_true", help="other defaults, for a CPU")
    if parser.parse_args().quick:
        parser.set_defaults(**QUICK)
    return parser.parse_args()


def main() -> None:
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
    args = arguments()
    bench = Bench(args)
    say(f"{describe(bench.device)}; {args.dtype}")
    bench.matrix_products()
    with torch.no_grad():
        for section in args.sections:
            with reported(section):
                bench.deadline.check()
                getattr(bench, section)()
    say(f"\n{bench.deadline.spent:.0f} s in all")


if __name__ == "__main__":
    main()
