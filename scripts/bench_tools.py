"""What scripts/bench_edm2.py and bench_eval.py measure with: clocks, rows of Markdown, random
networks and a VAE."""

import contextlib
import os
import platform
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Self
from unittest import mock

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from guidex.models.edm2.checkpoints import Checkpoint, write_checkpoint
from guidex.models.edm2.load import CHANNELS
from guidex.models.edm2.network import EDM2, Config


class Skipped(Exception):
    """Why something is not measured."""


class Deadline:
    """The time that a whole benchmark may take.

    Arguments:
        minutes: from now on.
    """

    def __init__(self, minutes: float) -> None:
        self.began, self.seconds = time.perf_counter(), 60 * minutes

    def check(self) -> None:
        """Raise Skipped where nothing new may be begun."""
        if time.perf_counter() - self.began > self.seconds:
            raise Skipped("no time left (--minutes)")

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self.began


@contextlib.contextmanager
def reported(what: str) -> Iterator[None]:
    """Say why something was not measured, and go on: a failure must not cost the other numbers."""
    try:
        yield
    except torch.OutOfMemoryError:
        say(f"| {what}: out of memory |")
    except Skipped as reason:
        say(f"| {what}: skipped, {reason} |")
    # Compilers and drivers fail with exceptions of all kinds.
    except Exception as error:
        lines = str(error).splitlines() or [""]
        say(f"| {what}: failed, {type(error).__name__}: {lines[0]:.200} |")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def say(text: str = "") -> None:
    """Print at once, so that a benchmark that is stopped has said what it knew."""
    print(text, flush=True)


def head(title: str, *columns: str) -> None:
    """A title and the head of a table, numbers to the right."""
    say(f"\n### {title}\n")
    say("| " + " | ".join(columns) + " |")
    say("| :--- | " + " | ".join("---:" for _ in columns[1:]) + " |")


def row(*cells: object) -> None:
    """A row; floats with three digits, nothing for None."""
    say("| " + " | ".join(_cell(cell) for cell in cells) + " |")


def _cell(cell: object) -> str:
    if cell is None:
        return ""
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.3g}"


def wait(device: torch.device) -> None:
    """Until a device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_call(call: Callable[[], object], device: torch.device, least: float) -> float:
    """Median of three rounds of calls that together take at least `least` seconds.

    On a GPU by events around each round, whose calls are all launched without waiting, so that
    what is measured is what a sampler sees: the device's time, or the launching's where that is
    longer. The first calls are not counted.
    """
    call()
    once = _round(call, 1, device)
    count = max(1, round(least / 3 / once))
    return statistics.median(_round(call, count, device) for _ in range(3)) / count


def _round(call: Callable[[], object], count: int, device: torch.device) -> float:
    wait(device)
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(count):
            call()
        return time.perf_counter() - began
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def memory_of(call: Callable[[], object], device: torch.device) -> float | None:
    """Gigabytes that a call takes beyond what is there before it; None on a CPU."""
    if device.type != "cuda":
        call()
        return None
    wait(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    wait(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e9


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """The launches of a call as one CUDA graph, which replays them on the same memory."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> object:
        graph.replay()
        return result

    replay.inputs = call  # which the graph reads, and does not keep
    return replay


# Kernels by what they do; the first that fits a name counts.
KINDS = {
    "fused by the compiler": ("triton",),
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "copies": ("memcpy", "memset", "copy", "catarray", "nchwtonhwc", "nhwctonchw"),
    "convolutions": ("fprop", "conv", "xmma", "nhwc"),
    "matrix products": ("gemm", "nvjet", "cublas", "cutlass"),
}


def print_kernels(title: str, call: Callable[[], object], device: torch.device) -> None:
    """Device time of one call by kinds of kernels, and the kernels that take longest."""
    rounds = 3
    call()
    wait(device)
    cuda = device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=kinds) as profiler:
        for _ in range(rounds):
            call()
        wait(device)
    seconds: Counter[str] = Counter()
    launches: Counter[str] = Counter()
    for event in profiler.key_averages():
        # What compiled regions are called is no kernel, but is given the time of theirs.
        if (event.device_type == DeviceType.CUDA) != cuda or event.is_user_annotation:
            continue
        spent = event.self_device_time_total if cuda else event.self_cpu_time_total
        seconds[event.key] += spent / 1e6 / rounds
        launches[event.key] += event.count // rounds
    total = seconds.total()
    head(f"Kernels of {title}", "kernel", "launches", "ms", "%")
    by_kind: dict[str, list[str]] = {}
    for name in seconds:
        by_kind.setdefault(_kind(name), []).append(name)
    for kind, names in sorted(by_kind.items()):
        spent = sum(seconds[name] for name in names)
        row(kind, sum(launches[name] for name in names), 1000 * spent, 100 * spent / total)
    row("all", launches.total(), 1000 * total, 100.0)
    for name, spent in seconds.most_common(12):
        short = name.replace("|", "/")
        row(f"`{short:.90}`", launches[name], 1000 * spent, 100 * spent / total)


def _kind(name: str) -> str:
    for kind, words in KINDS.items():
        if any(word in name.lower() for word in words):
            return kind
    return "elementwise, sums and all else"


def describe(device: torch.device) -> str:
    """Machine and versions in a line."""
    cores = len(os.sched_getaffinity(0))
    parts = [f"{cores} cores", f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    if device.type == "cuda":
        gigabytes = torch.cuda.get_device_properties(device).total_memory / 1e9
        parts[:0] = [f"{torch.cuda.get_device_name(device)}, {gigabytes:.0f} GB"]
        parts += [f"CUDA {torch.version.cuda}", f"cuDNN {torch.backends.cudnn.version()}"]
    return ", ".join(parts)


# Networks and a decoder of the published shapes, with random weights


def random_network(
    size: str, dtype: torch.dtype, resolution: int, classes: int, device: torch.device
) -> EDM2:
    """A plain network of a published size in which every layer has a say in the output; its weights
    are float16, as published ones are."""
    config = Config(resolution, 4, classes, model_channels=CHANNELS[size])
    torch.manual_seed(0)
    with torch.device(device):
        model = EDM2(config, dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("gain"):  # they start at 0 in training
            parameter.fill_(0.5 + torch.rand([]).item())
    return model.half().eval()


def in_dtype(model: EDM2, dtype: torch.dtype) -> EDM2:
    """The same weights in a plain network that computes in another dtype."""
    with torch.device("meta"):
        other = EDM2(model.config, dtype)
    other.load_state_dict(model.state_dict(), assign=True)
    return other.eval()


def write_network(model: EDM2, path: Path) -> Path:
    """A checkpoint of a network, as `guidex convert` writes it."""
    tensors = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    config = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(model.config).items()}
    about = {"source": "random weights", "network": "Precond", "dtype": "float16"}
    write_checkpoint(Checkpoint(config, tensors, about), path, overwrite=True)
    return path


def write_vae(folder: Path, channels: Sequence[int]) -> Path:
    """A VAE of sd-vae-ft-mse's shape (128, 256, 512, 512 channels) with random weights, whose
    pixels fill the range of an image."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=tuple(channels),
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=32,
    )
    with torch.no_grad():
        side = 8 * 2 ** (len(channels) - 1)
        values = vae.decode(torch.randn(1, 4, 8, 8)).sample
        assert values.shape[-1] == side
        vae.decoder.conv_out.weight.mul_(0.2 / values.std())
        vae.decoder.conv_out.bias.fill_(0.5)
    vae.save_pretrained(folder)
    return folder


def smooth_latents(count: int, resolution: int, device: torch.device) -> Tensor:
    """Latents [count, 4, R, R] that change slowly, as those of photographs do more than noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 4, 6, 6, generator=generator) / 2
    return nn.functional.interpolate(coarse, (resolution, resolution), mode="bicubic").to(device)


# Where the time of a run goes


class Timers:
    """Seconds by part of a run, the device waited for before and after each part, so that every
    part has its own time, and the whole takes longer than without.

    Arguments:
        device: that is waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: Counter[str] = Counter()
        self._stack = contextlib.ExitStack()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self._stack.close()

    def watch(self, name: str, module: nn.Module) -> None:
        """Time the calls of a module."""
        began = 0.0

        def begin(module: nn.Module, arguments: object) -> None:
            nonlocal began
            wait(self.device)
            began = time.perf_counter()

        def end(module: nn.Module, arguments: object, result: object) -> None:
            wait(self.device)
            self.seconds[name] += time.perf_counter() - began

        for handle in (module.register_forward_pre_hook(begin), module.register_forward_hook(end)):
            self._stack.callback(handle.remove)

    def replace(self, name: str, target: str, function: Callable[..., object]) -> None:
        """Put the timed function in the place of a dotted name of guidex."""

        def timed(*arguments: object) -> object:
            wait(self.device)
            began = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                wait(self.device)
                self.seconds[name] += time.perf_counter() - began

        self._stack.enter_context(mock.patch(target, timed))

    def replace_in_threads(self, name: str, target: str, function: Callable[..., object]) -> None:
        """The same for what many threads call at once: their times are added up, and no device is
        waited for."""

        def timed(*arguments: object) -> object:
            began = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                with self._lock:
                    self.seconds[name] += time.perf_counter() - began

        self._stack.enter_context(mock.patch(target, timed))
