"""timm's models as encoders: the same contract, and plain words for what they cannot do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.models import adapters
from simdino.models.adapters import TimmEncoder, make_timm
from simdino.models.catalogue import make_encoder, resolve_name
from simdino.models.encoder import Encoder, EncoderKind
from simdino.models.weights import load_encoder, save_encoder

timm = pytest.importorskip("timm")
pytestmark = [pytest.mark.slow, pytest.mark.extra("timm")]

PREPROCESS = Preprocess(resize=72, crop=64, channels=1, mean=(0.25,), std=(0.5,))
MODELS = {  # name: (features, patch width, grid at 64 px, patch size, batch normalisation)
    "resnet18": (512, 512, (2, 2), None, True),
    "convnext_atto": (320, 320, (2, 2), None, False),
    "swin_tiny_patch4_window7_224": (768, 768, (2, 2), None, False),
    "mobilevit_xxs": (320, 320, (2, 2), None, True),
    "efficientnet_b0": (1280, 1280, (2, 2), None, True),
    "mobilenetv3_small_050": (1024, 288, (2, 2), None, True),
    "vit_tiny_patch16_224": (192, 192, (4, 4), 16, False),
    "vit_wee_patch16_reg1_gap_256": (256, 256, (4, 4), 16, False),
}


def new(name: str, **options: Any) -> Encoder:
    return make_encoder(EncoderConfig(**{"name": f"timm:{name}", "image_size": 64, **options}), PREPROCESS).eval()


def pictures(height: int, width: int) -> Tensor:
    return torch.randn(2, 1, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_contract(name: str) -> None:
    width, patch_width, grid, patch_size, batch_norm = MODELS[name]
    encoder = new(name)
    assert (encoder.embed_dim, encoder.in_chans) == (width, 1)
    assert (encoder.patch_size, encoder.batch_norm) == (patch_size, batch_norm)
    tokens = encoder(pictures(64, 64), keys=torch.arange(2))
    torch.testing.assert_close(tokens.cls, encoder.model(pictures(64, 64)))
    assert tokens.cls.shape == (2, width) and tokens.grid == grid
    assert tokens.patches.shape == (2, grid[0] * grid[1], patch_width)
    short = encoder(pictures(64, 64), patches=False)
    assert short.patches is None and torch.equal(short.cls, tokens.cls)

    small = encoder(pictures(48, 96))  # a local crop, oblong so that height and width cannot be confused
    assert small.grid is not None and small.grid[0] < small.grid[1] and small.cls.shape == (2, width)

    layers = {encoder.layer_of(key) for key, _ in encoder.named_parameters()}
    assert layers == set(range(encoder.depth + 1)) and encoder.depth > 1


@torch.no_grad()
def test_patches_of_feature_maps_are_in_reading_order() -> None:
    for name in ("resnet18", "swin_tiny_patch4_window7_224"):
        encoder = new(name)
        features = encoder.model.forward_features(pictures(64, 96))
        place = features[:, 1, 2] if name.startswith("swin") else features[:, :, 1, 2]
        assert torch.equal(encoder(pictures(64, 96)).patches[:, 1 * 3 + 2], place)


@torch.no_grad()
def test_prefix_tokens_are_no_patches() -> None:
    encoder = new("vit_wee_patch16_reg1_gap_256")
    features = encoder.model.forward_features(pictures(64, 64))
    assert torch.equal(encoder(pictures(64, 64)).patches, features[:, -16:])


@pytest.mark.parametrize("name", ["ghostnet_050", "tiny_vit_5m_224", "vit_tiny_patch16_224"])
def test_nothing_is_drawn_from_the_global_random_state(name: str) -> None:
    """Drop path and dropout, which some models have by default, are zero: training does what evaluation does but for
    batch normalisation, and leaves the random state alone."""
    encoder = TimmEncoder(name, image_size=64, in_chans=1).train()
    before = torch.get_rng_state()
    encoder(pictures(64, 64))
    assert torch.equal(torch.get_rng_state(), before)


def test_our_own_encoders_have_no_batch_norm() -> None:
    assert not make_encoder(EncoderConfig(name="vit_toy", image_size=16, patch_size=8), PREPROCESS).batch_norm


# --- names --------------------------------------------------------------------------------------------------------


def test_names_of_timm_need_no_prefix() -> None:
    assert resolve_name("resnet18") == resolve_name("timm:resnet18") == "timm:resnet18"
    assert resolve_name("vit_small_patch16_224.dino") == "timm:vit_small_patch16_224.dino"
    assert resolve_name("vit_small") == "vit_small"
    assert isinstance(make_encoder(EncoderConfig(name="resnet18", image_size=32), PREPROCESS), TimmEncoder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm:resnet81", r"unknown encoder timm:resnet81: timm .* did you mean timm:resnet"),
        ("resnext51", r"unknown encoder 'resnext51': this version knows vit_pico, .* the models of timm; did you mean"),
        ("vit_smal", "did you mean vit_small"),
        ("resnet18.nothing", r"timm has no weights 'nothing' of resnet18; it has .*a1_in1k"),
        ("vi", "unknown encoder 'vi'"),
        ("", "unknown encoder ''"),
    ],
)
def test_unknown_names_are_said_with_the_nearest(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        resolve_name(name)
    assert "\n" not in str(error.value)


def test_a_shape_without_a_name() -> None:
    shape = {"embed_dim": 48, "depth": 2, "num_heads": 3}
    encoder = make_encoder(EncoderConfig(name="vit", image_size=16, patch_size=8, **shape), PREPROCESS)
    assert (encoder.embed_dim, encoder.depth) == (48, 2)
    deeper = make_encoder(EncoderConfig(name="vit_toy", image_size=16, patch_size=8, depth=3), PREPROCESS)
    assert (deeper.embed_dim, deeper.depth) == (32, 3)
    with pytest.raises(InputError, match="encoder 'vit' has no embed_dim and no num_heads"):
        make_encoder(EncoderConfig(name="vit", depth=2), PREPROCESS)


# --- what they cannot do ------------------------------------------------------------------------------------------


def test_masks_and_what_only_our_encoders_have_are_refused() -> None:
    with pytest.raises(InputError, match="timm:resnet18 takes no masks"):
        new("resnet18")(pictures(64, 64), masks=torch.zeros(2, 4, dtype=torch.bool))
    with pytest.raises(InputError, match="cannot be given registers and a mask token"):
        new("vit_tiny_patch16_224", registers=4, mask_token=True)


def test_sizes_that_a_model_cannot_take_are_said() -> None:
    with pytest.raises(InputError, match=r"timm:levit_128s, made for images of 64 x 64 pixels, does not take 48 x 48"):
        new("levit_128s")(pictures(48, 48))
    with pytest.raises(InputError, match="does not take 40 x 64"):
        new("vit_tiny_patch16_224")(pictures(40, 64))
    with pytest.raises(InputError, match="patches of 16 pixels, which do not divide images of 60 x 60"):
        new("vit_tiny_patch16_224", image_size=60)


def test_images_that_shrink_to_nothing_are_refused_before_training() -> None:
    with pytest.raises(InputError, match=r"32 times smaller and does not take 28 x 28 .* give --image-size 32 or more"):
        new("convnext_atto", image_size=28)
    assert new("convnext_atto", image_size=32).depth > 0
    assert new("resnet18", image_size=28)(pictures(28, 28)).cls.shape == (2, 512)


def test_errors_of_another_kind_are_not_taken_for_the_size() -> None:
    with pytest.raises(RuntimeError, match="channels"):
        new("resnet18")(torch.randn(2, 3, 64, 64))  # the size is right


# --- files and weights --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_file_of_ours_holds_one(tmp_path: Path) -> None:
    encoder = new("mobilevit_xxs")
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    loaded = load_encoder(tmp_path)
    assert loaded.config == encoder.config and loaded.preprocess == encoder.preprocess and not loaded.training
    assert torch.equal(loaded(pictures(64, 64)).cls, encoder(pictures(64, 64)).cls)


def test_published_weights_are_asked_for_and_prepared_as_timm_does(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    create = timm.create_model

    def recorded(name: str, *, pretrained: bool, **options: Any) -> Any:
        asked.append({"name": name, "pretrained": pretrained, **options})
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", recorded)
    said: list[str] = []
    encoder = load_encoder("timm:resnet18.a1_in1k", log=said.append)
    assert asked[-1] == {"name": "resnet18.a1_in1k", "pretrained": True, "num_classes": 0, "in_chans": 3}
    assert said == [] and not encoder.training and encoder.config.name == "timm:resnet18.a1_in1k"
    assert (encoder.preprocess.crop, encoder.preprocess.resize) == (224, 235)
    assert encoder.preprocess.mean == (0.485, 0.456, 0.406)
    grey = load_encoder("timm:vit_tiny_patch16_224", image_size=64, channels=1, log=said.append)
    assert asked[-1]["in_chans"] == 1 and asked[-1]["img_size"] == 64 and len(said) == 1
    assert (grey.preprocess.crop, grey.preprocess.channels, grey.in_chans) == (64, 1, 1)
    with pytest.raises(InputError, match="has patches of 16 pixels"):
        load_encoder("timm:vit_tiny_patch16_224", patch_size=8)


def test_weights_out_of_reach_are_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"weights of timm:resnet18 could not be fetched .*: connect, or") as error:
        load_encoder("timm:resnet18")
    assert "\n" not in str(error.value)
    nameless = next(name for name in timm.list_models() if not timm.is_model_pretrained(name))
    with pytest.raises(InputError, match=f"timm has no weights of {nameless}"):
        load_encoder(f"timm:{nameless}")


def test_first_line_of_an_error_without_words() -> None:
    assert adapters.first_line(AssertionError()) == "AssertionError"
    assert adapters.first_line(RuntimeError("one.\ntwo")) == "one"


def test_a_new_kind_has_no_masks_and_names_what_it_does_not_read() -> None:
    kind = EncoderKind(make=make_timm)
    assert not kind.fitted(EncoderConfig(mask_token=True, drop_path=0.3)).mask_token
    assert {"drop_path", "registers", "embed_dim", "patch_size"} <= kind.unread
    assert not {"name", "image_size"} & kind.unread
