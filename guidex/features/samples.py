"""Where samples come from: files of images, files of points, models that know their data.

Images are decoded once for all detectors.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from guidex.data.containers import reason_of
from guidex.data.image_set import ImageSet, array_images
from guidex.data.images import open_images, sample_output
from guidex.errors import GuidexError, UsageError
from guidex.features.detectors import Detector, detect_all, output_of, run_detectors
from guidex.features.feature_cache import BLOCK, FeatureStore
from guidex.features.features import FeatureSet, chosen
from guidex.files.progress import Progress
from guidex.models.denoiser import ExactDenoiser

DRAWS = 10_000  # true samples of a toy that its reference is made of
BATCH_BYTES = 256 * 2**20  # pixels of a batch, and about as many that are read ahead


@dataclass(frozen=True)
class PassSettings:
    """How images go through detectors.

    Attributes:
        batch: images per batch, fewer of large ones (see BATCH_BYTES); no effect on features.
        cache: whether features of networks are kept on disk for the next time.
        rank, ranks: number of this process among those that take the same images and share the
            cache. Each begins with other blocks, and ends with all features.
    """

    batch: int = 512
    cache: bool = True
    rank: int = 0
    ranks: int = 1


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of a file, a folder or a model, before any detector takes them.

    Attributes:
        name: path as given, or name of the model.
        images: the images, or None.
        points: points [N, d] and labels [N] or None of a toy, where there are no images.
        of: number of samples that these are a random choice of, or None.
        model: whose data these are, or None.
    """

    name: str
    images: ImageSet | None
    points: tuple[Tensor, Tensor | None] | None = None
    of: int | None = None
    model: ExactDenoiser | None = None

    @cached_property
    def about(self) -> dict[str, object]:
        """What there is to know about them, as plain data."""
        chosen_of = {} if self.of is None else {"of": self.of}
        if self.model is not None:
            return {"model": self.name, "count": self.count, **chosen_of}
        about = {"path": self.name, "count": self.count, **chosen_of}
        if self.images is None:
            digests = "".join(_digest(part) for part in self.points if part is not None)
            return about | {"skipped": 0, "sha256": hashlib.sha256(digests.encode()).hexdigest()}
        return about | {
            "shape": list(self.images.shape),
            "formats": sorted(self.images.kinds),
            "skipped": len(self.images.skipped),
            "sha256": self.images.fingerprint(),
        }

    @property
    def count(self) -> int:
        return len(self.points[0]) if self.images is None else len(self.images)

    @property
    def has_labels(self) -> bool:
        labels = self.points[1] if self.images is None else self.images.labels
        return labels is not None

    @property
    def truth(self) -> ExactDenoiser | None:
        """The exact distribution behind them, known for toys only."""
        return None if self.images is not None else self.model

    def blank(self) -> Tensor:
        """Something like the first sample [1, ...]; enough to tell whether a detector takes it."""
        if self.images is None:
            return self.points[0][:1]
        return torch.zeros(1, *self.images.shape, dtype=torch.uint8)

    def at_most(self, most: int | None) -> "Samples":
        """`most` of them, chosen at random, or all where there are no more."""
        if most is None or self.count <= most:
            return self
        rows, points = chosen(self.count, most, seed=0), self.points
        if self.images is None:
            values, labels = points
            points = values[rows], None if labels is None else labels[rows]
            return dataclasses.replace(self, points=points, of=self.count)
        return dataclasses.replace(self, images=self.images.subset(rows), of=self.count)

    def features(self, detectors: Sequence[Detector], settings: PassSettings) -> list[FeatureSet]:
        """The features of all detectors, on the CPU; images are decoded once for all of them, and
        go once through a detector that is asked several times."""
        distinct = list(dict.fromkeys(detectors))
        if self.images is None:
            sets = detect_all(distinct, *self.points, settings.batch)
        else:
            sets = image_features(self.images, distinct, settings)
        if self.truth is not None:
            sets = [dataclasses.replace(features, truth=self.truth) for features in sets]
        return [sets[distinct.index(detector)] for detector in detectors]


def open_samples(path: str, *, resize: int | None, crop: bool = False, bad: str) -> Samples:
    """Open a folder, zip or npz of images, the samples.npz of a toy, or the folder of a run of
    `guidex sample`, which has one of these.

    Arguments:
        path: where they are.
        resize: side that images are resized to, or None.
        crop: resize their central squares.
        bad: "error" or "skip", for unreadable images.

    Raises:
        UsageError, GuidexError: as `guidex.data.images.open_images`.
    """
    place = sample_output(Path(path))
    points = _read_points(place)
    if points is not None:
        return Samples(path, None, points)
    return Samples(path, open_images(place, bad=bad, resize=resize, crop=crop))


def model_samples(model: object, name: str = "", seed: int = 0) -> Samples:
    """The data of a model that knows its distribution, or draws of it.

    Raises:
        UsageError: the model does not know it.
    """
    if not isinstance(model, ExactDenoiser):
        raise UsageError("this model does not know its data; give a reference: ref=PATH")
    values, labels = model.reference(DRAWS, seed)
    if model.space == "points":
        return Samples(name, None, (values, labels), model=model)
    pixels = np.ascontiguousarray(values.permute(0, 2, 3, 1).cpu().numpy())
    images = array_images(pixels, labels=None if labels is None else labels.cpu().numpy())
    return Samples(name, images, model=model)


def model_features(model: object, detector: Detector, seed: int = 0) -> FeatureSet:
    """Features of the true distribution of a model that knows it.

    Raises:
        UsageError: the model does not know it.
    """
    return model_samples(model, seed=seed).features([detector], PassSettings())[0]


def image_features(
    images: ImageSet, detectors: Sequence[Detector], settings: PassSettings
) -> list[FeatureSet]:
    """Features of a set of images by different detectors, from the cache if they are there; on the
    CPU."""
    labels = None if images.labels is None else torch.as_tensor(images.labels, dtype=torch.int64)
    blank = torch.zeros(1, *images.shape, dtype=torch.uint8)
    stores: dict[Detector, FeatureStore | None] = {}
    values: dict[Detector, Tensor] = {}
    for detector in detectors:
        stores[detector], identity = None, detector.identity
        if settings.cache and identity is not None and identity.weights is not None:
            stores[detector] = FeatureStore(images.fingerprint(), identity, len(images))
            whole = stores[detector].read()
            if whole is not None:
                values[detector] = whole
                del stores[detector]
    if stores:
        values |= _Pass(images, stores, settings).run()
    return [
        FeatureSet.from_values(
            detector=output_of(detector, blank)[0], values=values[detector], labels=labels
        )
        for detector in detectors
    ]


class _Pass:
    """One pass of detectors over a set of images, block by block.

    Arguments:
        stores: where features of each detector are kept, if at all.
    """

    def __init__(
        self,
        images: ImageSet,
        stores: Mapping[Detector, FeatureStore | None],
        settings: PassSettings,
    ) -> None:
        self._images, self._stores, self._settings = images, stores, settings
        # None: on disk. Nothing else of a block stays, which would cut the memory into pieces.
        self._done: dict[Detector, dict[int, Tensor | None]] = {d: {} for d in stores}

    def run(self) -> dict[Detector, Tensor]:
        """Features [N, D] by detector."""
        rank, ranks = self._settings.rank, self._settings.ranks
        blocks = range(-(-len(self._images) // BLOCK))
        with Progress("features", len(self._images), quiet=rank > 0, delay=2) as bar:
            self._make(blocks[rank::ranks], bar)
            # Of the others' blocks, those that nobody has finished, beginning with the last.
            for block in reversed(blocks):
                if block % ranks != rank:
                    self._make([block], bar)
        return {detector: self._joined(detector) for detector in self._stores}

    def _make(self, blocks: Sequence[int], bar: Progress) -> None:
        """Find the features of blocks in the stores, and make those that are not there."""
        lacking = {block: self._lacking(block) for block in blocks}
        bar.update(sum(self._size(block) for block in blocks if not lacking[block]))
        parts: dict[Detector, list[Tensor]] = {detector: [] for detector in self._stores}
        for block, pixels in self._pixels([block for block in blocks if lacking[block]]):
            for detector, (_, features) in run_detectors(lacking[block], pixels).items():
                parts[detector].append(features)
            bar.update(len(pixels))
            if sum(map(len, parts[lacking[block][0]])) == self._size(block):
                for detector in lacking[block]:
                    self._keep(detector, block, torch.cat(parts[detector]).cpu())
                    parts[detector] = []

    def _pixels(self, blocks: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Batches of images, each of one block, read ahead across blocks."""
        batch = min(self._settings.batch, max(1, BATCH_BYTES // math.prod(self._images.shape)))
        starts = [
            (block, first, min(first + batch, BLOCK * block + self._size(block)))
            for block in blocks
            for first in range(BLOCK * block, BLOCK * block + self._size(block), batch)
        ]
        batches = self._images.stacks([range(first, last) for _, first, last in starts])
        for (block, _, _), pixels in zip(starts, batches, strict=True):
            images = torch.from_numpy(pixels)
            # From pinned memory, the copy to a GPU goes on while the next batch is decoded.
            yield block, images.pin_memory() if torch.cuda.is_available() else images

    def _lacking(self, block: int) -> list[Detector]:
        """The detectors whose features of a block are not there; takes those that are."""
        for detector, store in self._stores.items():
            if store is not None and store.read_block(block) is not None:
                self._done[detector][block] = None
        return [detector for detector in self._stores if block not in self._done[detector]]

    def _keep(self, detector: Detector, block: int, features: Tensor) -> None:
        store = self._stores[detector]
        on_disk = store is not None and store.keep_block(block, features)
        self._done[detector][block] = None if on_disk else features

    def _joined(self, detector: Detector) -> Tensor:
        store, blocks = self._stores[detector], self._done[detector]
        if store is not None:
            return store.keep(blocks)
        return torch.cat([blocks[block] for block in sorted(blocks)])

    def _size(self, block: int) -> int:
        return min(BLOCK, len(self._images) - BLOCK * block)


def _digest(samples: Tensor) -> str:
    """SHA-256 of an array."""
    array = np.ascontiguousarray(samples.cpu().numpy())
    state = hashlib.sha256(f"guidex array {array.dtype} {array.shape}\n".encode())
    state.update(array)
    return state.hexdigest()


def _read_points(path: Path) -> tuple[Tensor, Tensor | None] | None:
    """Points and labels of a toy's samples.npz, or None if the file is not one."""
    if path.suffix != ".npz" or not path.is_file():
        return None
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            if "samples" not in file.files:
                return None
            samples = file["samples"]
            labels = file["labels"] if "labels" in file.files else None
    # Damaged zips and headers raise many types, zlib.error and SyntaxError among them.
    except Exception as error:
        raise GuidexError(f"{path} cannot be read: {reason_of(error)}") from error
    if samples.ndim != 2 or samples.dtype.kind != "f" or len(samples) == 0:
        raise UsageError(
            f"{path}: samples must be floating point [N, d], not {samples.dtype} {samples.shape}"
        )
    if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != samples.shape[:1]):
        raise UsageError(f"{path}: labels must be integers [N], not {labels.dtype} {labels.shape}")
    # To a type that torch knows, which knows no long doubles and no other byte order.
    kind = np.float32 if samples.dtype.itemsize <= 4 else np.float64
    points = torch.from_numpy(samples.astype(kind, copy=False))
    return points, None if labels is None else torch.from_numpy(labels.astype(np.int64))
