"""Where samples come from: files of images, files of points, models that know their data."""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from guidex.data.image_set import ImageSet, array_images
from guidex.data.images import open_images, sample_output
from guidex.errors import UsageError
from guidex.features.detectors import Detector, detector_record, features_of, run_detectors
from guidex.features.feature_cache import FeatureStore, blocks_of, place_of
from guidex.features.features import FeatureSet, chosen
from guidex.features.statistics_files import open_npz
from guidex.files.progress import Progress
from guidex.models.denoiser import ExactDenoiser

DRAWS = 10_000  # true samples of a toy that its reference is made of
BATCH_BYTES = 256 * 2**20  # pixels of a batch, and about as many that are read ahead


@dataclass(frozen=True)
class PassSettings:
    """How images go through detectors."""

    batch: int = 512  # images per batch, fewer of large ones (BATCH_BYTES); no effect on features
    cache: bool = True  # whether features of networks are kept on disk for the next time
    # Of the processes that take the same images and share the cache. Each begins with other blocks,
    # and ends with all features.
    rank: int = 0
    ranks: int = 1


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of a file, a folder or a model, before any detector takes them."""

    name: str  # path as given, or name of the model
    content: ImageSet | FeatureSet  # images; the points of a toy, which are features themselves
    of: int | None = None  # number of samples that these are a random choice of
    model: ExactDenoiser | None = None  # whose data these are

    @cached_property
    def about(self) -> dict[str, object]:
        """What there is to know about them, as plain data."""
        about = {"path" if self.model is None else "model": self.name, "count": self.count}
        if self.of is not None:
            about["of"] = self.of
        if self.model is not None:
            return about
        if self.images is None:
            parts = [self.content.values, *([self.content.labels] if self.has_labels else [])]
            digest = hashlib.sha256(str([(part.dtype, part.shape) for part in parts]).encode())
            for part in parts:
                digest.update(part.contiguous().numpy())
            return about | {"skipped": 0, "sha256": digest.hexdigest()}
        about |= {"skipped": len(self.images.skipped), "sha256": self.images.fingerprint()}
        return about | {"shape": list(self.images.shape), "formats": sorted(self.images.kinds)}

    @property
    def images(self) -> ImageSet | None:
        return self.content if isinstance(self.content, ImageSet) else None

    @property
    def count(self) -> int:
        return self.content.count if self.images is None else len(self.images)

    @property
    def has_labels(self) -> bool:
        return self.content.labels is not None

    def blank(self) -> Tensor:
        """Something like the first sample [1, ...]; enough to tell whether a detector takes it."""
        if self.images is None:
            return self.content.values[:1]
        return torch.zeros(1, *self.images.shape, dtype=torch.uint8)

    def at_most(self, most: int | None) -> "Samples":
        """`most` of them, chosen at random, or all where there are no more."""
        if most is None or self.count <= most:
            return self
        subset = self.content.rows if self.images is None else self.images.subset
        content = subset(chosen(self.count, most, seed=0))
        return dataclasses.replace(self, content=content, of=self.count)

    def expected(self, detector: Detector) -> FeatureSet:
        """What `features` makes, before it does. Raises UsageError where the detector does not take
        these samples."""
        dim = features_of(detector, self.blank())
        features = FeatureSet.expected(detector.name, self.count, dim, self.has_labels)
        truth = self.model if self.images is None else None
        about = self.about | detector_record(detector)
        return dataclasses.replace(features, truth=truth, about=about)

    def features(self, detectors: Sequence[Detector], settings: PassSettings) -> list[FeatureSet]:
        """The features of all detectors, on the CPU; images are decoded once for all of them, and
        only where the cache does not have their features."""
        sets = {detector: self.expected(detector) for detector in detectors}
        if self.images is None:
            values = run_detectors(detectors, self.content.values)
        else:
            values = _images_values(self.images, sets, settings)
        labels = torch.as_tensor(self.content.labels) if self.has_labels else None
        for detector, features in sets.items():
            features = dataclasses.replace(features, values=values[detector].cpu(), labels=labels)
            sets[detector] = features
        return [sets[detector] for detector in detectors]


def open_samples(path: str, *, resize: int | None, crop: bool = False, bad: str) -> Samples:
    """Open a folder, zip or npz of images, the samples.npz of a toy, or the folder of a run of
    `guidex sample`, which has one of these. Arguments and errors are those of `open_images`."""
    place = sample_output(Path(path))
    if place.suffix == ".npz" and place.is_file():
        with open_npz(place) as file:
            if "samples" in file.files:
                labels = torch.from_numpy(file["labels"]) if "labels" in file.files else None
                points = torch.from_numpy(file["samples"]).flatten(1)
                return Samples(path, FeatureSet("coordinates", points, labels))
    return Samples(path, open_images(place, bad=bad, resize=resize, crop=crop))


def model_samples(model: object, name: str = "", seed: int = 0) -> Samples:
    """The data of a model that knows its distribution, or draws of it. Raises UsageError where the
    model does not know it."""
    if not isinstance(model, ExactDenoiser):
        raise UsageError("this model does not know its data; give a reference: ref=PATH")
    values, labels = (None if x is None else x.cpu() for x in model.reference(DRAWS, seed))
    if values.dtype != torch.uint8:
        return Samples(name, FeatureSet("coordinates", values.flatten(1), labels), model=model)
    pixels = np.ascontiguousarray(values.permute(0, 2, 3, 1).numpy())
    images = array_images(pixels, labels=None if labels is None else labels.numpy())
    return Samples(name, images, model=model)


def model_features(model: object, detector: Detector, seed: int = 0) -> FeatureSet:
    """Features of the true distribution of a model that knows it. Raises as `model_samples`."""
    return model_samples(model, seed=seed).features([detector], PassSettings())[0]


def _images_values(
    images: ImageSet, expected: Mapping[Detector, FeatureSet], settings: PassSettings
) -> dict[Detector, Tensor]:
    """Features by detector, made block by block where they are not in the cache."""
    stores: dict[Detector, FeatureStore] = {}
    for detector, features in expected.items():
        place, identity = None, detector.identity
        if settings.cache and identity.weights is not None:
            place = place_of(images.fingerprint(), identity)
        stores[detector] = FeatureStore(len(images), features.dim, place)
    blocks, rank, ranks = blocks_of(len(images)), settings.rank, settings.ranks
    with Progress("features", len(images), quiet=rank > 0, delay=2) as bar:
        _fill(stores, images, blocks[rank::ranks], settings, bar)
        # Of the others' blocks, those that nobody has finished, beginning with the last.
        for number, block in reversed(list(enumerate(blocks))):
            if number % ranks != rank:
                _fill(stores, images, [block], settings, bar)
    return {detector: store.values for detector, store in stores.items()}


def _fill(
    stores: Mapping[Detector, FeatureStore],
    images: ImageSet,
    blocks: Sequence[range],
    settings: PassSettings,
    bar: Progress,
) -> None:
    """Make the features of blocks that are not in the stores."""
    missing = {block: [d for d in stores if not stores[d].has(block)] for block in blocks}
    bar.update(sum(len(block) for block in blocks if not missing[block]))
    size = min(settings.batch, max(1, BATCH_BYTES // math.prod(images.shape)))
    groups: list[tuple[range, range]] = []  # a batch, and its block
    for block in blocks:
        if missing[block]:
            groups += [(block[at : at + size], block) for at in range(0, len(block), size)]
    parts: dict[Detector, list[Tensor]] = {detector: [] for detector in stores}
    batches = images.stacks([rows for rows, _ in groups])  # read ahead across blocks
    for (rows, block), pixels in zip(groups, batches, strict=True):
        batch = torch.from_numpy(pixels)
        # From pinned memory, the copy to a GPU goes on while the next batch is decoded.
        batch = batch.pin_memory() if torch.cuda.is_available() else batch
        for detector, features in run_detectors(missing[block], batch).items():
            parts[detector].append(features)
            if rows.stop == block.stop:
                stores[detector].keep(block, torch.cat(parts[detector]).cpu())
                parts[detector] = []
        bar.update(len(rows))
