"""Where samples to be measured come from: files of images, files of points, models that know the
truth. Images are decoded once for all detectors that look at them."""

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
from guidex.data.image_set import ImageSet
from guidex.data.images import open_images, sample_output
from guidex.errors import GuidexError, UsageError
from guidex.features.detectors import Detector, detect, detect_all, look
from guidex.features.feature_cache import BLOCK, FeatureStore
from guidex.features.features import FeatureSet, chosen
from guidex.files.progress import Progress
from guidex.models.denoiser import ExactDenoiser

DRAWS = 10_000  # true samples of a toy that its reference is made of
BATCH_BYTES = 256 * 2**20  # pixels of a batch, and about as many that are read ahead


@dataclass(frozen=True)
class Looking:
    """How images get to detectors.

    Attributes:
        batch: images per batch, fewer of large ones (see BATCH_BYTES); no effect on features.
        cache: whether features of networks are kept on disk for the next time.
        rank, ranks: number of this process among those that look at the same images and share
            the cache. Each begins with other blocks, and ends with all features.
    """

    batch: int = 512
    cache: bool = True
    rank: int = 0
    ranks: int = 1


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples in a file or folder, opened, before any detector looks at them.

    Attributes:
        path: as given.
        images: the images, or None.
        points: points [N, d] and labels [N] or None of a toy, where there are no images.
        of: number of images that these are a random choice of, or None.
    """

    path: str
    images: ImageSet | None
    points: tuple[Tensor, Tensor | None] | None
    of: int | None = None

    @cached_property
    def about(self) -> dict[str, object]:
        """What there is to know about them, as plain data."""
        if self.images is None:
            digests = [_digest(part) for part in self.points if part is not None]
            about = {"path": self.path, "count": len(self.points[0]), "skipped": 0}
            return about | {"sha256": hashlib.sha256("".join(digests).encode()).hexdigest()}
        return {
            "path": self.path,
            "count": len(self.images),
            "shape": list(self.images.shape),
            "formats": sorted(self.images.kinds),
            "skipped": len(self.images.skipped),
            "sha256": self.images.fingerprint(),
            **({} if self.of is None else {"of": self.of}),
        }

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.points[0]) if self.images is None else len(self.images)

    @property
    def has_labels(self) -> bool:
        """Whether their classes are known."""
        if self.images is None:
            return self.points[1] is not None
        return self.images.labels is not None

    def one(self) -> Tensor:
        """Something like the first sample [1, ...]; enough to see whether a detector takes it."""
        if self.images is None:
            return self.points[0][:1]
        return torch.zeros(1, *self.images.shape, dtype=torch.uint8)

    def at_most(self, most: int | None) -> "Samples":
        """`most` of them, chosen at random, or all where there are no more."""
        if self.images is None or most is None or self.count <= most:
            return self
        some = self.images.subset(chosen(self.count, most, seed=0))
        return Samples(self.path, some, None, of=self.count)

    def features(self, detectors: Sequence[Detector], how: Looking) -> list[FeatureSet]:
        """The features of all detectors, on the CPU; images are decoded once for all of them, and
        go once through a detector that is asked several times."""
        asked = list(dict.fromkeys(detectors))
        if self.images is None:
            found = detect_all(asked, *self.points, how.batch)
        else:
            found = image_features(self.images, asked, how)
        return [found[asked.index(detector)] for detector in detectors]


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
    found = sample_output(Path(path))
    points = _read_points(found)
    if points is not None:
        return Samples(path, None, points)
    return Samples(path, open_images(found, bad=bad, resize=resize, crop=crop), None)


def image_features(
    images: ImageSet, detectors: Sequence[Detector], how: Looking
) -> list[FeatureSet]:
    """Features of a set of images by each detector, from the cache if they are there; on the
    CPU."""
    labels = None if images.labels is None else torch.as_tensor(images.labels, dtype=torch.int64)
    identities = [detector.identity for detector in detectors]
    stores: dict[int, FeatureStore] = {}
    found: dict[int, tuple[str, Tensor]] = {}
    for k, identity in enumerate(identities):
        if how.cache and identity is not None and identity.weights is not None:
            stores[k] = FeatureStore(images.fingerprint(), identity, len(images))
            whole = stores[k].read()
            if whole is not None:
                found[k] = identity.name, whole
    missing = {k: detector for k, detector in enumerate(detectors) if k not in found}
    found |= _Pass(images, missing, stores, how).run()
    return [
        FeatureSet.from_values(detector=name, values=values, labels=labels)
        for name, values in (found[k] for k in range(len(detectors)))
    ]


class _Pass:
    """One pass of detectors over a set of images, block by block.

    Arguments:
        images: the set.
        detectors: by number.
        stores: where features are kept, of those detectors that have a network.
        how: batch, and which blocks are this process's.
    """

    def __init__(
        self,
        images: ImageSet,
        detectors: Mapping[int, Detector],
        stores: Mapping[int, FeatureStore],
        how: Looking,
    ) -> None:
        self._images, self._detectors, self._how = images, detectors, how
        self._stores = {k: store for k, store in stores.items() if k in detectors}
        # None: on disk. Nothing else of a block stays, which would cut the memory into pieces.
        self._done: dict[int, dict[int, Tensor | None]] = {k: {} for k in detectors}
        self._names: dict[int, str] = {}

    def run(self) -> dict[int, tuple[str, Tensor]]:
        """Name of the detector and features [N, D] by the number of the detector."""
        if not self._detectors:
            return {}
        blocks = range(-(-len(self._images) // BLOCK))
        own = [block for block in blocks if block % self._how.ranks == self._how.rank]
        with Progress("features", len(self._images), quiet=self._how.rank > 0, delay=2) as bar:
            self._make(own, bar)
            # Of the others' blocks, those that nobody has finished, beginning with the last.
            for block in sorted(set(blocks) - set(own), reverse=True):
                self._make([block], bar)
        return {k: (self._names[k], self._joined(k)) for k in self._detectors}

    def _make(self, blocks: Sequence[int], bar: Progress) -> None:
        """Find the features of blocks in the stores, and make those that are not there."""
        lacking = {block: self._lacking(block) for block in blocks}
        bar.update(sum(self._size(block) for block in blocks if not lacking[block]))
        todo = [block for block in blocks if lacking[block]]
        parts: dict[int, list[Tensor]] = {k: [] for k in self._detectors}
        for block, pixels in self._pixels(todo):
            found = look([self._detectors[k] for k in lacking[block]], pixels)
            for k, (self._names[k], features) in zip(lacking[block], found, strict=True):
                parts[k].append(features)
            bar.update(len(pixels))
            if sum(map(len, parts[lacking[block][0]])) == self._size(block):
                for k in lacking[block]:
                    self._keep(k, block, torch.cat(parts[k]).cpu())
                    parts[k] = []

    def _pixels(self, blocks: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Batches of images, each of one block, read ahead across blocks."""
        batch = min(self._how.batch, max(1, BATCH_BYTES // math.prod(self._images.shape)))
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

    def _lacking(self, block: int) -> list[int]:
        """The detectors whose features of a block are not there; takes those that are."""
        for k, store in self._stores.items():
            if store.read_block(block) is not None:
                self._names[k] = store.identity.name
                self._done[k][block] = None
        return [k for k in self._detectors if block not in self._done[k]]

    def _keep(self, k: int, block: int, features: Tensor) -> None:
        store = self._stores.get(k)
        kept = store is not None and store.keep_block(block, features)
        self._done[k][block] = None if kept else features

    def _joined(self, k: int) -> Tensor:
        if k in self._stores:
            return self._stores[k].keep(self._done[k])
        return torch.cat([self._done[k][block] for block in sorted(self._done[k])])

    def _size(self, block: int) -> int:
        return min(BLOCK, len(self._images) - BLOCK * block)


def model_samples(model: object, seed: int = 0) -> tuple[Tensor, Tensor | None]:
    """True samples of a model that knows its distribution, and their classes.

    Raises:
        UsageError: the model does not know it.
    """
    if not isinstance(model, ExactDenoiser):
        raise UsageError("this model does not know its data; give a reference: ref=PATH")
    return model.reference(DRAWS, seed)


def model_features(model: object, detector: Detector, seed: int = 0) -> FeatureSet:
    """Features of the true distribution of a model that knows it.

    Raises:
        UsageError: the model does not know it.
    """
    samples, labels = model_samples(model, seed)
    identity = detector.identity
    if identity is None or identity.weights is None:
        features = detect(detector, samples, labels)
    else:
        store = FeatureStore(_digest(samples), identity, len(samples))
        values = store.read()
        if values is None:
            values = store.keep({0: detect(detector, samples, None).values})
        features = FeatureSet.from_values(detector=identity.name, values=values, labels=labels)
    return dataclasses.replace(features, truth=model if model.space == "points" else None)


def detector_record(detector: Detector) -> dict[str, object]:
    """How a network looked at the images, for the record; nothing where there is no network."""
    identity = detector.identity
    if identity is None or identity.weights is None:
        return {}
    return {"detector": dataclasses.asdict(identity)}


def _digest(samples: Tensor) -> str:
    """SHA-256 of an array, as a fingerprint of its images."""
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
