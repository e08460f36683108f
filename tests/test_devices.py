"""No operation mixes the CPU's tensors with a GPU's: shown without a GPU, on fake tensors that carry a device and no
numbers. The modules, the losses, the views and what evaluation computes on the encoder's device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from simdino.assembly import preprocessing
from simdino.config import Config, EncoderConfig
from simdino.contracts import Preprocess, Views, identity
from simdino.data.photometric import photometric, shifts
from simdino.evaluate.classification.training import EncoderWithHead
from simdino.evaluate.diagnostics.monitors import class_tokens
from simdino.evaluate.discovery.maskcut import keys_of
from simdino.evaluate.retrieval.copies import copy_vector
from simdino.evaluate.retrieval.landmarks import landmark_vector
from simdino.evaluate.segmentation.head import Segmenter
from simdino.evaluate.video import Propagation
from simdino.evaluate.video.propagate import Known, carry, colours_of, patches_of
from simdino.features.attention import attention_maps
from simdino.features.extract import patch_features
from simdino.features.nearest import nearest
from simdino.features.readout import Layers, Reader
from simdino.methods import make_loss, make_student
from simdino.models.catalogue import make_encoder
from simdino.models.encoder import Encoder
from simdino.models.projector import make_teacher
from simdino.models.starting import starting_encoder
from simdino.options import Options
from simdino.recipes import resolve
from simdino.rng import sample_keys

pytestmark = pytest.mark.slow

CUDA = torch.device("cuda", 0)
PREPROCESS = Preprocess(resize=16, crop=16, channels=3, mean=(0.5,) * 3, std=(0.3,) * 3)


class Fake(FakeTensorMode):
    """Fake tensors that answer what a program must know of numbers: every third place of a mask is set, no two
    neighbours are equal, any single number is 1."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.nonzero.default:
            with self:
                return torch.zeros(args[0].numel() // 3, args[0].dim(), dtype=torch.int64, device=args[0].device)
        if func is torch.ops.aten.unique_consecutive.default:
            with self:
                return args[0].clone(), torch.zeros_like(args[0]), torch.zeros_like(args[0])
        if func is torch.ops.aten._local_scalar_dense.default:
            return args[0].dtype == torch.bool or 1
        return super().dispatch(func, types, args, kwargs)

    def on_gpu(self, module: Any) -> Any:
        """Parameters and buffers moved; a tensor that is neither stays where it is, as on a machine with a GPU."""
        with self:
            for part in module.modules():
                for name, parameter in part._parameters.items():
                    if parameter is not None:
                        moved = self.from_tensor(parameter.detach()).to(CUDA)
                        part._parameters[name] = nn.Parameter(moved, requires_grad=parameter.requires_grad)
                for name, buffer in part._buffers.items():
                    if buffer is not None:
                        part._buffers[name] = self.from_tensor(buffer).to(CUDA)
        return module


def as_zeros(tensor: Tensor) -> np.ndarray:
    """What `.numpy()` gives of a fake tensor: zeros, and the usual refusal on a GPU."""
    if tensor.device.type != "cpu":
        raise TypeError(f"can't convert {tensor.device} device type tensor to numpy")
    return np.zeros(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    monkeypatch.setattr(FakeTensor, "numpy", as_zeros)
    shifts.cache_clear()  # keeps tensors, which are fake from here on
    yield Fake()
    shifts.cache_clear()


def test_a_mixture_would_be_found(fake: Fake) -> None:
    class Careless(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.ones(3)

    layer = fake.on_gpu(Careless(2, 3))
    with fake, pytest.raises(RuntimeError, match="device"):
        layer(torch.zeros(1, 2, device=CUDA))
    with fake, pytest.raises(TypeError, match="numpy"):
        torch.zeros(2, device=CUDA).numpy()


def views_of(config: Config, keys: Tensor, rows: Tensor) -> Views:
    """Views as the loader makes them, on the GPU."""

    def views(count: int, size: int, first: int) -> Tensor:
        crops = torch.zeros(count, config.run.batch, config.data.channels, size, size, dtype=torch.uint8, device=CUDA)
        law = {"mean": config.data.mean, "std": config.data.std}
        return photometric(crops, keys, config=config.views, first=first, **law)

    law = config.views
    patches = (law.global_size // config.encoder.patch_size) ** 2
    masks = (
        torch.zeros(law.global_views, config.run.batch, patches, dtype=torch.bool, device=CUDA)
        if law.mask_share
        else None
    )
    return Views(
        global_views=views(law.global_views, law.global_size, 0),
        local_views=views(law.local_views, law.local_size, law.global_views) if law.local_views else None,
        ids=rows, keys=keys, indices=rows, masks=masks,
    )  # fmt: skip


WORDS = {
    "simdino": {},
    "simdino of shards": {"scope": "shards", "gamma": "released", "batch": 64},
    "simdinov2": {"method": "simdinov2"},
    "dino": {"method": "dino", "prototypes": 32},
    "dinov2": {"method": "dinov2", "prototypes": 32},
    "dinov2 centred": {"method": "dinov2", "prototypes": 32, "centering": "centering"},
}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("encoder", [
    "vit_toy", "crate_nano", pytest.param("resnet18", marks=pytest.mark.extra("timm")),
])  # fmt: skip
def test_the_forward_half_of_a_step_stays_on_its_device(words: dict[str, Any], encoder: str, fake: Fake) -> None:
    usual = {"steps": 4, "batch": 8, "encoder": encoder, "image_size": 32, "local_views": 2, "device": "cpu"}
    options = Options(**{**usual, **words})
    config = resolve("digits", options)
    real = make_student(config, starting_encoder(config, preprocessing(config), fresh=True))
    teacher, student = fake.on_gpu(make_teacher(real, batch_norm=real.encoder.batch_norm)), fake.on_gpu(real)
    keys, rows = torch.from_numpy(sample_keys(0, 0, np.arange(config.run.batch))), torch.arange(config.run.batch)
    with fake:
        loss = make_loss(config, CUDA)
        views = views_of(config, keys, rows)
        assert views.global_views.device == CUDA
        with torch.no_grad():
            teachers = [teacher(views, student=False)]
            (ahead,) = loss.global_statistics(teachers, [student(views)], temperature=0.04, all_reduce=identity)
        result = loss(student(views), teachers[0], ahead, all_reduce=identity)
        loss.update_buffers(teachers, all_reduce=identity)
    assert result.total.device == CUDA
    assert all(value.device == CUDA for value in loss.buffers.values())


@pytest.mark.parametrize("channels", [1, 3])
def test_every_photometric_operation_stays_on_its_device(channels: int, fake: Fake) -> None:
    config = resolve("digits", Options(steps=4, batch=8, device="cpu")).views
    keys = torch.from_numpy(sample_keys(0, 0, np.arange(64)))  # enough for every operation to be drawn
    with fake:
        crops = torch.zeros(2, 64, channels, 16, 12, dtype=torch.uint8, device=CUDA)
        found = photometric(crops, keys, config=config, first=0, mean=(0.5,) * channels, std=(0.3,) * channels)
    assert found.device == CUDA and found.shape == crops.shape


def followed(encoder: Encoder, picture: Tensor) -> None:
    for look in (patches_of(encoder), colours_of(encoder)):
        features = look(picture)
        known = Known(features=features, labels=torch.zeros(*features.shape[:2], 2, device=features.device))
        carry(features, [known], Propagation())


LOOKS: dict[str, Callable[[Encoder, Tensor], object]] = {
    "attention": attention_maps,
    "colours": lambda encoder, picture: patch_features(encoder, picture[None], precision="float32"),
    "keys of MaskCut": lambda encoder, picture: keys_of(encoder, picture[None].to(CUDA).float()),
    "landmarks": lambda encoder, picture: landmark_vector(encoder, picture, size=16, scales=(1.0, 0.5)),
    "copies": lambda encoder, picture: copy_vector(encoder, picture, size=16),
    "linear": lambda encoder, picture: Reader(encoder, [Layers(blocks=1, avgpool=True)], precision="float32")(
        picture[None].to(CUDA).float()
    ),
    "health": lambda encoder, picture: class_tokens(encoder, picture[None].to(CUDA).float()),
    "video": followed,
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
@pytest.mark.parametrize("name", ["vit_toy", "crate_nano"])
def test_what_evaluation_asks_of_an_encoder_stays_on_its_device(
    name: str, look: Callable[[Encoder, Tensor], object], fake: Fake
) -> None:
    real = make_encoder(EncoderConfig(name=name, image_size=16, patch_size=4), PREPROCESS).eval()
    encoder = fake.on_gpu(real)
    with fake:
        look(encoder, torch.zeros(3, 16, 16, dtype=torch.uint8))


@pytest.mark.parametrize("name", ["vit_toy", "crate_nano"])
def test_heads_that_are_trained_stay_on_the_encoder_s_device(name: str, fake: Fake) -> None:
    encoder = make_encoder(EncoderConfig(name=name, image_size=16, patch_size=4), PREPROCESS).eval()
    segmenter = Segmenter(encoder, classes=2, layers=1, size=16, seed=0)
    classifier = EncoderWithHead(copy.deepcopy(encoder), classes=3, seed=0)
    segmenter.device, keys = CUDA, torch.arange(2)
    fake.on_gpu(segmenter)
    fake.on_gpu(classifier)
    with fake:
        images = torch.zeros(2, 3, 16, 16, device=CUDA)
        assert segmenter(images).device == classifier(images, keys).device == CUDA


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("own", [True, False])
def test_the_search_of_neighbours_stays_on_the_bank_s_device(precision: Any, own: bool, fake: Fake) -> None:
    with fake:
        bank, queries = torch.zeros(50, 4, device=CUDA), None if own else torch.zeros(7, 4)
        blocks = list(nearest(bank, queries, k=3, rows=4, precision=precision))
    assert all(similarity.device == index.device == CUDA for _, similarity, index in blocks)
