"""CLIP score (Hessel et al. 2021, arXiv 2104.08718): do images show what their prompts say?"""

from dataclasses import dataclass

import torch

from guidex.features.clip_pair import embed_texts, network_name
from guidex.features.features import FeatureSet
from guidex.metrics.metric import Column, Fewest, Metric
from guidex.models.text.prompts import read_prompts


@dataclass(frozen=True)
class CLIPScore(Metric):
    """Mean of 100 max(cos, 0) between embeddings of image and prompt, as torchmetrics has it
    (without the paper's factor 2.5). Scores of different networks do not compare.

    Attributes:
        prompts: that images were made of, by number: texts, or a file of them.
        weights: of the network, the same as the detector's.
    """

    prompts: str | list[str]
    weights: str

    columns = (Column("clip_score", "CLIP score", "higher", digits=2),)
    needs_reference = False
    needs_labels = True

    @property
    def needs_detector(self) -> str:
        return network_name(self.weights)

    def fewest(self, dim: int) -> Fewest:
        return Fewest()

    def compute(self, real: FeatureSet | None, fake: FeatureSet) -> dict[str, float]:
        prompts, values = read_prompts(self.prompts), fake.values
        prompts.check(fake.labels, fake.count)
        numbers, rows = fake.labels.unique(return_inverse=True)
        asked = tuple(prompts.texts[number] for number in numbers.tolist())
        embedded = embed_texts(self.weights, asked, values.device)[rows.to(values.device)]
        cosines = (values.double() * embedded.double()).sum(dim=1)
        return {"clip_score": 100 * torch.clamp(cosines, min=0).mean().item()}
