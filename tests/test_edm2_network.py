"""The EDM2 network against the golden numbers, closed forms and its own inference form."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from edm2_networks import TINY, golden_model, golden_tensors, relative, tiny_model

from guidex.errors import UsageError
from guidex.models.edm2.folded import fold
from guidex.models.edm2.layers import (
    MPConv,
    learned_gain,
    normalize,
)
from guidex.models.edm2.network import EDM2, Config, count_gflops

SHAPE = (TINY.img_channels, TINY.img_resolution, TINY.img_resolution)


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
    assert relative(model.predict(io["x"], io["sigma"], io.get("labels")), io["D"]) < 2e-6
    if "labels" in io:
        assert relative(model.predict(io["x"], io["sigma"], None), io["D_zero_label"]) < 2e-6
    torch.testing.assert_close(model.uncertainty(io["sigma"]), io["logvar"], rtol=1e-5, atol=1e-5)


def test_one_class_for_a_batch_equals_the_golden_numbers():
    model, io = golden_model("cond"), golden_tensors("edm2-tiny-cond.io.npz")
    for i, sigma in enumerate(io["sigma"].tolist()):
        x0 = model(io["x"][i : i + 1], sigma, io["labels"][i : i + 1].argmax(dim=1))
        assert relative(x0, io["D"][i : i + 1]) < 2e-6


# Layers


def test_normalize_gives_unit_root_mean_square_in_half_precision_as_well():
    x = 250 * torch.randn(2, 64, 4, 4, generator=torch.Generator().manual_seed(0))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 2e-3)):
        rms = normalize(x.to(dtype), dim=1).float().square().mean(dim=1).sqrt()
        torch.testing.assert_close(rms, torch.ones_like(rms), rtol=tolerance, atol=0)


def test_learned_gain_rounds_as_stored():
    layer = MPConv(32, 8, 3)
    assert learned_gain(torch.tensor(0.7), layer).item() == pytest.approx(0.7, rel=1e-6)
    stored = torch.tensor(0.7, dtype=torch.float16)
    rounded = np.float16(np.float16(0.7) / np.sqrt(288)) * np.sqrt(288)
    assert learned_gain(stored, layer).item() == pytest.approx(rounded, rel=1e-6)


# The denoiser


def test_preconditioning_of_a_silent_network():
    model = EDM2(TINY)
    x = noisy(2, 3.0, torch.float64)
    # out_gain starts at 0, so that D = c_skip x.
    torch.testing.assert_close(model(x, 3.0), x * 0.25 / (0.25 + 9), rtol=1e-14, atol=0)


@pytest.mark.parametrize("sigma", [0.002, 80.0])
def test_denoised_has_the_dtype_of_the_input(model, sigma):
    for dtype in (torch.float32, torch.float64):
        x0 = model(noisy(3, sigma, dtype), sigma, torch.tensor([0, 4, 2]))
        assert x0.dtype == dtype and x0.isfinite().all()


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
    x0 = model(noisy(2, 1.0), 1.0)
    assert x0.isfinite().all()
    assert torch.equal(model(noisy(2, 1.0), 1.0, torch.tensor([0, 999])), x0)


def test_labels_out_of_range_are_refused(model):
    with pytest.raises(RuntimeError, match="smaller than num_classes"):
        model(noisy(1, 1.0), 1.0, torch.tensor([TINY.label_dim]))


@pytest.mark.parametrize(("channels", "gflops"), [(192, 201.637), (448, 1093.801)])
def test_gflops_of_the_released_networks(channels, gflops):
    config = Config(img_resolution=64, img_channels=4, label_dim=1000, model_channels=channels)
    assert count_gflops(config) == pytest.approx(gflops, rel=1e-5)
    with torch.device("meta"):
        assert EDM2(config).gflops == count_gflops(config)


def test_unknown_dtype_is_refused():
    with pytest.raises(UsageError, match="float64"):
        EDM2(TINY, torch.float64)


# The inference form


@pytest.mark.parametrize("label_dim", [5, 0])
def test_folded_network_computes_the_same(label_dim):
    model = tiny_model(replace(TINY, label_dim=label_dim))
    folded = fold(model)
    for sigma in (0.01, 1.0, 50.0):
        x = noisy(3, sigma)
        labels = None if label_dim == 0 else torch.tensor([4, 0, 2])
        assert relative(folded(x, sigma, labels), model(x, sigma, labels)) < 1e-5
    sigmas = torch.tensor([0.01, 1.0, 50.0])
    assert torch.equal(folded.uncertainty(sigmas), model.uncertainty(sigmas))
    facts = ("shape", "num_classes", "sigma_data", "sigma_min", "sigma_max", "space", "gflops")
    assert [getattr(folded, fact) for fact in facts] == [getattr(model, fact) for fact in facts]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_folded_network_rounds_no_worse_than_the_plain_one(model, dtype):
    half = tiny_model(dtype=dtype)
    x, labels = noisy(4, 5.0), torch.tensor([3, 0, 1, 4])
    exact = model(x, 5.0, labels)
    plain, folded = (
        relative(half(x, 5.0, labels), exact),
        relative(fold(half)(x, 5.0, labels), exact),
    )
    assert 0 < plain < 40 * torch.finfo(dtype).eps
    assert 0 < folded < 1.5 * plain


def test_folding_leaves_the_network_alone(model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = fold(model)
    for tensor in folded.state_dict().values():
        tensor.zero_()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# The configuration


def test_configuration_of_a_checkpoint_is_read():
    values = {"img_resolution": 64, "img_channels": 4, "label_dim": 1000, "channel_mult": [1, 2]}
    config = Config.from_mapping({**values, "dropout": 0.1, "use_fp16": True})
    assert config == Config(64, 4, 1000, channel_mult=(1, 2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_chanels": 64}, "unknown keys .* model_chanels; allowed: .*model_channels"),
        ({"img_resolution": 0}, "img_resolution is 0; it takes whole numbers above 0"),
        ({"label_dim": True}, "label_dim is True"),
        ({"channel_mult": 3}, "channel_mult is 3; it takes whole numbers above 0"),
        ({"attn_resolutions": ["16"]}, "attn_resolutions is"),
        (
            {"resample_filter": [1, 3, 3, 1]},
            r"resample_filter is \[1, 3, 3, 1\]; it must be \(1, 1",
        ),
        ({"channel_mult_noise": 1}, "channel_mult_noise is 1; it must be None"),
        ({"res_balance": -0.5}, "res_balance is -0.5; it takes numbers of 0 or more"),
        ({"sigma_data": float("nan")}, "sigma_data is nan"),
    ],
)
def test_bad_configurations_are_refused(values, message):
    required = {"img_resolution": 64, "img_channels": 4, "label_dim": 10}
    with pytest.raises(UsageError, match=message):
        Config.from_mapping({**required, **values})


def test_recorded_defaults_are_no_other_network():
    values = {"img_resolution": 64, "img_channels": 4, "label_dim": 1000}
    defaults = {"resample_filter": (1, 1), "channel_mult_noise": None, "channel_mult_emb": None}
    assert Config.from_mapping({**values, **defaults}) == Config(64, 4, 1000)
    unbounded = Config.from_mapping({**values, "clip_act": None})
    assert unbounded == Config(64, 4, 1000, clip_act=math.inf)


def test_heads_that_do_not_divide_the_channels_are_wider():
    """As many as fit: 32 // 12 = 2 heads of 16 channels, and 32 // 33 = none."""
    wide, even = (tiny_model(replace(TINY, channels_per_head=n)) for n in (12, 16))
    x, labels = noisy(2, 1.0), torch.tensor([0, 3])
    assert wide.unet.attention_shapes() == even.unet.attention_shapes() != {}
    assert torch.equal(wide(x, 1.0, labels), even(x, 1.0, labels))
    without = tiny_model(replace(TINY, channels_per_head=33))
    assert without.attention_layers == ()
    assert not [name for name in without.state_dict() if "attn" in name]


def test_incomplete_configurations_are_refused():
    with pytest.raises(UsageError, match="lacks img_channels, label_dim"):
        Config.from_mapping({"img_resolution": 64})
