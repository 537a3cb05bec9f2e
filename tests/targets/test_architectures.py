"""Architectures: their sizes, their arguments, and what their seed decides."""

import pytest
import timm
import torch
from msbench.errors import BadParameter, UnknownName
from msbench.targets.architectures import OURS, build_network, check_architecture, our_architectures
from torch import Tensor, nn

GRAY, COLOR = (1, 8, 8), (3, 32, 32)


def build(spec: str, shape: tuple[int, int, int] = COLOR, seed: int = 0, num_classes: int = 10) -> nn.Module:
    return build_network(spec, num_classes=num_classes, image_shape=shape, seed=seed).eval()


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@torch.no_grad()
def logits(network: nn.Module, shape: tuple[int, int, int]) -> Tensor:
    answers: Tensor = network(torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)))
    return answers


def test_resnet18_8x_has_the_published_size() -> None:
    assert parameters(build("resnet18_8x")) == 11_173_962


@pytest.mark.parametrize(("name", "blocks"), [("resnet18_8x", [2, 2, 2, 2]), ("resnet34_8x", [3, 4, 6, 3])])
def test_the_8x_is_the_downsampling_not_the_width(name: str, blocks: list[int]) -> None:
    network = build(name)
    stages = [network.get_submodule(f"layer{i}") for i in (1, 2, 3, 4)]
    assert [len(list(stage.children())) for stage in stages] == blocks
    shapes: list[torch.Size] = []
    for stage in stages:
        stage.register_forward_hook(lambda _, inputs, output: shapes.append(output.shape[1:]))
    assert logits(network, COLOR).shape == (2, 10)
    assert shapes == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


@pytest.mark.parametrize("name", ["resnet18_8x", "resnet34_8x"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_stem_is_a_small_convolution_without_pooling(name: str, channels: int) -> None:
    network = build(name, (channels, 32, 32), num_classes=7)
    stem = network.get_submodule("conv1")
    assert isinstance(stem, nn.Conv2d)
    assert (stem.in_channels, stem.out_channels, stem.kernel_size, stem.stride) == (channels, 64, (3, 3), (1, 1))
    assert not any(isinstance(module, nn.MaxPool2d) for module in network.modules())
    assert logits(network, (channels, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("shape", "kernel", "flat"), [((1, 8, 8), 3, 128), ((1, 28, 28), 5, 1568), ((3, 32, 32), 5, 2048)]
)
def test_lenet5_fits_the_image(shape: tuple[int, int, int], kernel: int, flat: int) -> None:
    network = build("lenet5", shape)
    channels = shape[0]
    convolutions = 16 * (channels * kernel**2 + 1) + 32 * (16 * kernel**2 + 1)
    assert parameters(network) == convolutions + 120 * (flat + 1) + 84 * (120 + 1) + 10 * (84 + 1)
    assert logits(network, shape).shape == (2, 10)


def layers(network: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, kind)]


def test_lenet5_takes_its_arguments_from_the_spec() -> None:
    network = build("lenet5:width=6,hidden=30-20-15,norm=batch", GRAY)
    assert [(layer.in_channels, layer.out_channels) for layer in layers(network, nn.Conv2d)] == [(1, 6), (6, 12)]
    assert [layer.num_features for layer in layers(network, nn.BatchNorm2d)] == [6, 12]
    sizes = [(layer.in_features, layer.out_features) for layer in layers(network, nn.Linear)]
    assert sizes == [(48, 30), (30, 20), (20, 15), (15, 10)]
    assert logits(network, GRAY).shape == (2, 10)
    assert [layer.out_features for layer in layers(build("lenet5:hidden=64", GRAY), nn.Linear)] == [64, 10]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("lenet5:norm=layer", "norm='layer' is not usable: choose none or batch"),
        ("lenet5:hidden=120-x", "hidden='120-x' is not usable"),
        ("lenet5:hidden=0", "hidden='0' is not usable"),
        ("lenet5:width=0", "width=0 is not usable"),
        ("lenet5:width=-1", "width=-1 is not usable"),
        ("lenet5:width=1.5", "width=1.5 is not usable"),
        ("lenet5:width=wide", "width='wide' is not usable"),
        ("lenet5:bogus=1", "unexpected keyword argument 'bogus'"),
        ("lenet5:num_classes=3", "num_classes follows from the target"),
        ("lenet5:img_size=28", "img_size follows from the target"),
        ("resnet18_8x:bogus=1", "unexpected keyword argument 'bogus'"),
        ("resnet10t:bogus=1", "unexpected keyword argument 'bogus'"),
        ("test_vit:depth=x", "architecture test_vit:depth=x"),
        ("resnet10t.nosuch", "Invalid pretrained tag"),
    ],
)
def test_arguments_that_cannot_be_used(spec: str, words: str) -> None:
    with pytest.raises(BadParameter) as caught:
        build(spec, GRAY)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_that_lenet5_cannot_halve_twice() -> None:
    with pytest.raises(BadParameter, match="img_size=30 is not usable: it must be a multiple of 4"):
        build("lenet5", (1, 30, 30))


@pytest.mark.parametrize(
    "spec",
    ["test_resnet", "resnet10t:stem_width=8", "test_vit", "test_efficientnet", "tiny_vit_5m_224", "gmlp_s16_224"],
)
def test_timms_own_architectures_fit_the_image_too(spec: str) -> None:
    assert logits(build(spec, num_classes=5), COLOR).shape == (2, 5)


def test_arguments_reach_timm() -> None:
    stem = build("resnet10t:stem_width=8").get_submodule("conv1.0")
    assert isinstance(stem, nn.Conv2d)
    assert stem.out_channels == 3 * 8 // 4  # a tiered stem begins at three quarters of its width


@pytest.mark.parametrize("name", ["lenet", "resnet18-8x", "no_such_network"])
def test_an_unknown_architecture_comes_with_three_names(name: str) -> None:
    with pytest.raises(UnknownName) as caught:
        build(name)
    text = str(caught.value)
    assert text.startswith(f"unknown architecture '{name}': did you mean ")
    suggested = text.partition("did you mean ")[2].partition("?")[0].split(", ")
    assert len(suggested) == 3
    assert set(suggested) <= set(timm.list_models())
    assert "lenet5" in text


@pytest.mark.parametrize("spec", ["lenet5", "resnet50.a1_in1k", "hf-hub:someone/something", "lenet5:width=8"])
def test_known_architectures_pass(spec: str) -> None:
    check_architecture(spec)


def test_ours_are_registered_with_timm() -> None:
    assert our_architectures() == list(OURS)
    assert all(timm.is_model(name) for name in OURS)


@pytest.mark.parametrize("spec", ["lenet5", "lenet5:norm=batch", "test_resnet", "test_vit"])
def test_the_seed_alone_decides_the_weights(spec: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build(spec)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    again, other = build(spec), build(spec, seed=1)
    first_state, again_state = first.state_dict(), again.state_dict()
    assert all(torch.equal(first_state[key], again_state[key]) for key in first_state)
    assert not torch.equal(logits(first, COLOR), logits(other, COLOR))
