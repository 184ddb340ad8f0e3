"""The EDM2 network against the golden numbers, closed forms and its own inference form."""

import math
from dataclasses import replace

import pytest
import torch
from edm2_networks import TINY, golden_model, golden_tensors, golden_x0, relative, tiny_model

from guidex.errors import UsageError
from guidex.models.edm2.folded import fold
from guidex.models.edm2.network import EDM2, Config

SHAPE = (TINY.img_channels, TINY.img_resolution, TINY.img_resolution)
REQUIRED = {"img_resolution": 64, "img_channels": 4, "label_dim": 1000}


def noisy(batch: int, sigma: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return (0.5 + sigma) * torch.randn(batch, *SHAPE, generator=generator, dtype=dtype)


@pytest.fixture(scope="module")
def model() -> EDM2:
    return tiny_model()


# Golden numbers


@pytest.mark.parametrize("form", [lambda model: model, fold], ids=["plain", "folded"])
@pytest.mark.parametrize("name", ["cond", "uncond", "rgb"])
def test_denoised_equals_the_golden_numbers(name, form):
    model, io = form(golden_model(name)), golden_tensors(f"edm2-tiny-{name}.io.npz")
    assert relative(golden_x0(model, io), io["D"]) < 2e-6
    torch.testing.assert_close(model.uncertainty(io["sigma"]), io["logvar"], rtol=1e-5, atol=1e-5)
    if "labels" in io:
        zero = torch.zeros_like(io["labels"])
        assert relative(model.predict(io["x"], io["sigma"], zero), io["D_zero_label"]) < 2e-6
        for i, sigma in enumerate(io["sigma"].tolist()):
            x0 = model(io["x"][i : i + 1], sigma, io["labels"][i : i + 1].argmax(dim=1))
            assert relative(x0, io["D"][i : i + 1]) < 2e-6


# The denoiser


def test_no_labels_is_the_zero_label(model):
    x, zero = noisy(2, 1.0), torch.zeros(2, TINY.label_dim)
    x0 = model(x, 1.0)
    assert torch.equal(x0, model.predict(x, torch.ones(2), zero))
    assert relative(model(x, 1.0, torch.tensor([0, 0])), x0) > 1e-3


def test_a_sample_does_not_depend_on_its_batch(model):
    x, labels = noisy(4, 1.0), torch.tensor([3, 0, 1, 4])
    alone = [model(x[i : i + 1], 1.0, labels[i : i + 1]) for i in range(4)]
    assert relative(model(x, 1.0, labels), torch.cat(alone)) < 1e-5


def test_a_network_without_classes_ignores_labels():
    model = tiny_model(replace(TINY, label_dim=0))
    found = [model(noisy(2, 1.0), 1.0, labels) for labels in (None, torch.tensor([0, 999]))]
    assert torch.equal(*found)


# The inference form


@pytest.mark.parametrize("label_dim", [5, 0])
def test_folded_network_computes_the_same(label_dim):
    model, folded = (tiny_model(replace(TINY, label_dim=label_dim)) for _ in range(2))
    assert fold(folded) is folded
    for sigma in (0.01, 1.0, 50.0):
        x = noisy(3, sigma)
        labels = None if label_dim == 0 else torch.tensor([4, 0, 2])
        assert relative(folded(x, sigma, labels), model(x, sigma, labels)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_folded_network_rounds_no_worse_than_the_plain_one(model, dtype):
    x, labels = noisy(4, 5.0), torch.tensor([3, 0, 1, 4])
    exact = model(x, 5.0, labels)
    plain, folded = (
        relative(form(x, 5.0, labels), exact)
        for form in (tiny_model(dtype=dtype), fold(tiny_model(dtype=dtype)))
    )
    assert 0 < plain < 40 * torch.finfo(dtype).eps
    assert 0 < folded < 1.5 * plain


# The configuration


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"channel_mult": [1, 2], "dropout": 0.1, "use_fp16": True}, {"channel_mult": (1, 2)}),
        ({"resample_filter": (1, 1), "channel_mult_noise": None, "channel_mult_emb": None}, {}),
        ({"clip_act": None}, {"clip_act": math.inf}),
    ],
)
def test_configuration_of_a_checkpoint_is_read(values, expected):
    read = Config.from_mapping({**REQUIRED, **values}, "net.pkl")
    assert read == Config(64, 4, 1000, **expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**REQUIRED, "model_chanels": 64}, "unexpected keyword argument 'model_chanels'"),
        ({**REQUIRED, "resample_filter": [1, 3, 3, 1]}, r"is \[1, 3, 3, 1\]; it must be \(1, 1"),
        ({**REQUIRED, "channel_mult_noise": 1}, "channel_mult_noise is 1; it must be None"),
        ({"img_resolution": 64}, "missing .*'img_channels' and 'label_dim'"),
    ],
)
def test_configurations_of_other_networks_are_refused(values, message):
    with pytest.raises(UsageError, match=f"net.pkl: .*{message}"):
        Config.from_mapping(values, "net.pkl")


def test_heads_that_do_not_divide_the_channels_are_wider():
    """As many as fit: 32 // 12 = 2 heads of 16 channels, and 32 // 33 = none."""
    wide, even = (tiny_model(replace(TINY, channels_per_head=n)) for n in (12, 16))
    x, labels = noisy(2, 1.0), torch.tensor([0, 3])
    assert wide.unet.attention_shapes == even.unet.attention_shapes != {}
    assert torch.equal(wide(x, 1.0, labels), even(x, 1.0, labels))
    without = tiny_model(replace(TINY, channels_per_head=33))
    assert without.attention_layers == ()
    assert not [name for name in without.state_dict() if "attn" in name]
