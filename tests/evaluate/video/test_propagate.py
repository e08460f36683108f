"""Label propagation: the windowed product against the textbook's whole one, and videos whose answer is known."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from run_metadata import write_metadata
from simdino.cli import main
from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess, Tokens, unit
from simdino.evaluate import video
from simdino.evaluate.video import Propagation, propagate
from simdino.evaluate.video.metrics import VideoResult, boundary_accuracy, region_similarity
from simdino.evaluate.video.propagate import (
    Known,
    carry,
    colours_of,
    follow,
    follow_all,
    frame_sides,
    hard,
    one_hot,
    patches_of,
)
from simdino.models.catalogue import make_encoder
from simdino.models.encoder import Encoder
from simdino.models.weights import save_encoder

PATCH, SIZE = 4, 64
RECIPE = Propagation(size=SIZE)
PREPROCESS = Preprocess(resize=16, crop=16, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
PALETTE = [0, 0, 0, 200, 0, 0, 0, 200, 0] + [9] * 3 * 253
pytestmark = pytest.mark.usefixtures("one_thread")


def textbook(query: Tensor, known: list[Known], recipe: Propagation) -> Tensor:
    """The whole product of h w by t h w patches, as the recipe is written down."""
    height, width = query.shape[:2]
    keys = torch.cat([frame.features.flatten(0, 1) for frame in known])
    labels = torch.cat([frame.labels.flatten(0, 1) for frame in known])
    affinity = (query.flatten(0, 1) @ keys.T / recipe.temperature).exp()
    y, x = torch.arange(height * width) // width, torch.arange(height * width) % width
    near = ((y[:, None] - y).abs() <= recipe.radius) & ((x[:, None] - x).abs() <= recipe.radius)
    affinity = affinity * near.repeat(1, len(known))
    fifth = affinity.sort(1, descending=True).values[:, recipe.nearest - 1 : recipe.nearest]
    affinity = affinity * (affinity >= fifth)
    return (affinity / affinity.sum(1, keepdim=True) @ labels).unflatten(0, (height, width))


def random_frames(count: int, grid: tuple[int, int], *, seed: int = 0, classes: int = 3) -> list[Known]:
    draw = torch.Generator().manual_seed(seed)
    return [
        Known(
            features=unit(torch.randn(*grid, 6, generator=draw, dtype=torch.float64)),
            labels=torch.rand(*grid, classes, generator=draw, dtype=torch.float64).softmax(-1),
        )
        for _ in range(count)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("grid", [(1, 1), (3, 17), (8, 8), (21, 13), (30, 34)])
@pytest.mark.parametrize(("radius", "nearest"), [(12, 5), (2, 5), (0, 1), (40, 3)])
def test_windows_give_what_the_whole_product_gives(grid: tuple[int, int], radius: int, nearest: int) -> None:
    recipe = Propagation(radius=radius, nearest=min(nearest, 3) if grid == (1, 1) else nearest)
    *known, query = random_frames(4, grid)
    if radius == 0:
        recipe = Propagation(radius=0, nearest=1)
    found, expected = carry(query.features, known, recipe), textbook(query.features, known, recipe)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.sum(-1), torch.ones(grid, dtype=torch.float64))


def test_ties_at_the_last_place_all_count() -> None:
    known = random_frames(2, (9, 10))
    codes = torch.eye(6, dtype=torch.float64)
    flat = [codes[torch.randint(3, (9, 10), generator=torch.Generator().manual_seed(i))] for i in range(3)]
    known = [Known(features=f, labels=k.labels) for f, k in zip(flat, known, strict=False)]
    found = carry(flat[2], known, RECIPE)
    torch.testing.assert_close(found, textbook(flat[2], known, RECIPE), atol=1e-12, rtol=0)
    for code in range(3):  # every patch of a code sees all of that code: more than five
        where = (flat[2] == codes[code]).all(-1)
        torch.testing.assert_close(found[where], found[where][:1].expand(int(where.sum()), -1))


def test_the_context_is_the_first_frame_and_the_last_few() -> None:
    grid, recipe = (4, 5), Propagation(size=16, last_frames=2, nearest=3)
    frames = [torch.full((3, 16, 20), i, dtype=torch.uint8) for i in range(6)]
    features = [frame.features for frame in random_frames(6, grid)]
    first = np.zeros((16, 20), np.uint8)
    first[4:12, 8:16] = 1
    masks = list(follow(frames, first, lambda frame: features[int(frame[0, 0, 0])], 4, recipe))
    known = [Known(features=features[0], labels=one_hot(first, grid).double())]
    assert np.array_equal(masks[0], first)
    for i in range(1, 6):
        context = [known[0], *known[1:][-2:]]
        soft = textbook(features[i], context, recipe)
        known.append(Known(features=features[i], labels=soft))
        assert np.array_equal(masks[i], hard(soft, (16, 20), (16, 20)))


def test_memory_does_not_grow_with_the_video(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Known]] = []
    alive: list[int] = []

    def noted(**fields: Tensor) -> Known:
        known = Known(**fields)
        made.append(weakref.ref(known))
        return known

    def look(frame: Tensor) -> Tensor:
        alive.append(sum(one() is not None for one in made))
        return torch.randn(4, 4, 3)

    monkeypatch.setattr(propagate, "Known", noted)
    frames = (torch.zeros(3, 16, 16, dtype=torch.uint8) for _ in range(30))
    for _ in follow(frames, np.ones((16, 16), np.uint8), look, 4, Propagation(size=16)):
        pass
    assert alive[:10] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8]
    assert max(alive) == 8


@pytest.mark.parametrize(
    ("frame", "patch", "size", "sides"),
    [
        ((480, 854), 8, 480, (480, 832)),  # as in DINO
        ((480, 854), 16, 480, (480, 832)),
        ((854, 480), 8, 480, (832, 480)),
        ((1080, 1920), 16, 480, (480, 832)),
        ((480, 480), 16, 480, (480, 448)),
        ((480, 854), 14, 480, (476, 854)),
        ((100, 101), 8, 32, (32, 32)),
        ((10, 10), 16, 8, (16, 16)),
    ],
)
def test_sides_of_a_frame(frame: tuple[int, int], patch: int, size: int, sides: tuple[int, int]) -> None:
    assert frame_sides(*frame, patch=patch, size=size) == sides


def test_masks_shrink_to_the_pixel_in_the_middle_of_each_patch_and_grow_back() -> None:
    mask = np.kron(np.array([[0, 1, 2], [1, 0, 0]], np.uint8), np.ones((6, 6), np.uint8))
    mask[::6], mask[5::6], mask[:, ::6] = 3, 3, 3  # the rims of the patches do not count
    assert np.array_equal(one_hot(mask, (2, 3)).argmax(-1), [[0, 1, 2], [1, 0, 0]])
    soft = torch.zeros(2, 2, 2)
    soft[..., 0] = 1  # background everywhere: nothing to stretch
    assert not hard(soft, (8, 8), (5, 5)).any()
    soft[0, 0] = torch.tensor([0.7, 0.3])  # stretched to 1, which is more than the background's 0
    assert hard(soft, (8, 8), (8, 8))[0, 0] == 1


class Planted(Encoder):
    """Knows the region of each patch by its red: a code of the colour's own, and noise."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.embed_dim, self.patch_size, self.in_chans, self.depth = 16, PATCH, 3, 1
        self.config, self.preprocess, self.noise = EncoderConfig(name="planted"), PREPROCESS, noise
        self.place = nn.Parameter(torch.zeros(1))
        self.draw = torch.Generator().manual_seed(0)

    def forward(
        self, images: Tensor, *, keys: Tensor | None = None, masks: Tensor | None = None, patches: bool = True
    ) -> Tokens:
        colours = nn.functional.avg_pool2d(images, PATCH)[:, 0]
        levels = (colours * 2 + 2).round().long().clamp(0, 7)
        codes = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))[levels]
        x = codes + self.noise * torch.randn(codes.shape, generator=self.draw)
        return Tokens(cls=x.mean((1, 2)), patches=x.flatten(1, 2), grid=(x.shape[1], x.shape[2]))


FRAMES = 8


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    """Two objects that move by a patch a frame, on the grid of patches, three times as large as they are looked at."""
    root = tmp_path / "DAVIS"
    for i in range(FRAMES):
        labels = np.zeros((16, 16), np.uint8)
        labels[2:8, i : i + 6] = 1
        labels[9:15, 10 - i : 16 - i] = 2
        colours = np.array([(20, 20, 20), (200, 60, 60), (110, 60, 220)], np.uint8)[labels]
        mask = Image.fromarray(labels).convert("P")
        mask.putpalette(PALETTE)
        for part, image in (("JPEGImages", Image.fromarray(colours)), ("Annotations", mask)):
            path = root / part / "480p" / "squares" / f"{i:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.resize((3 * SIZE, 3 * SIZE), Image.Resampling.NEAREST).save(path)
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("squares\n")
    return root


def followed(encoder: Encoder, davis: Path, **settings: Any) -> VideoResult:
    return video(encoder, davis, size=SIZE, **settings).encoder


def test_an_encoder_that_knows_the_answer_gets_it_and_noise_does_not(davis: Path, tmp_path: Path) -> None:
    planted = followed(Planted(0.1), davis, out=tmp_path / "masks")
    assert planted.jf is not None and planted.jf > 95
    assert [(o.sequence, o.object) for o in planted.objects] == [("squares", 1), ("squares", 2)]
    noise = followed(Planted(1000), davis)
    assert noise.jf is not None and noise.j is not None
    assert noise.jf < 45 and noise.j.mean < 35
    raw = follow_all(colours_of(Planted(0)), Planted(0), davis, RECIPE)
    assert raw.jf is not None and raw.jf > 95  # three colours are easily told apart


def test_the_result_is_that_of_its_masks_which_are_written_for_every_frame(davis: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    def progress(items: Iterable, what: str, total: int) -> Iterable:
        seen.append((what, total))
        return items

    result = followed(Planted(1.0), davis, out=tmp_path / "masks", progress=progress)
    assert seen == [("frames of DAVIS 2017", FRAMES)]
    written = sorted((tmp_path / "masks" / "squares").iterdir())
    assert [path.name for path in written] == [f"{i:05d}.png" for i in range(FRAMES)]
    images = [Image.open(path) for path in written]
    assert all(image.mode == "P" and image.getpalette() == PALETTE for image in images)
    predicted = [np.array(image) for image in images]
    truth = [np.array(Image.open(davis / "Annotations" / "480p" / "squares" / path.name)) for path in written]
    assert np.array_equal(predicted[0], truth[0])
    for k, scores in enumerate(result.objects, start=1):
        pairs = [(predicted[i] == k, truth[i] == k) for i in range(1, FRAMES - 1)]  # neither the first nor the last
        assert scores.j.mean == pytest.approx(100 * np.mean([region_similarity(*pair) for pair in pairs]))
        assert scores.f.mean == pytest.approx(100 * np.mean([boundary_accuracy(*pair) for pair in pairs]))
    assert result.j is not None and result.f is not None
    assert result.j.mean == pytest.approx(np.mean([o.j.mean for o in result.objects]))
    assert result.jf == pytest.approx((result.j.mean + result.f.mean) / 2)
    told = json.loads(json.dumps(result.as_dict()))
    assert told["jf"] == result.jf and told["objects"][1]["f"]["decay"] == result.objects[1].f.decay
    assert str(result).startswith(f"J&F {result.jf:.1f} %")


def test_a_sequence_with_its_first_mask_alone_is_followed_and_not_scored(davis: Path, tmp_path: Path) -> None:
    for i in range(1, FRAMES):
        (davis / "Annotations" / "480p" / "squares" / f"{i:05d}.png").unlink()
    result = followed(Planted(0.1), davis, out=tmp_path / "masks")
    assert (result.unscored, result.objects, result.jf, result.as_dict()["j"]) == (("squares",), (), None, None)
    assert "could be scored" in str(result)
    assert len(list((tmp_path / "masks" / "squares").iterdir())) == FRAMES


def test_an_empty_first_mask_too_few_frames_and_an_encoder_without_patches_are_refused(davis: Path) -> None:
    first = davis / "Annotations" / "480p" / "squares" / "00000.png"
    whole = first.read_bytes()
    Image.fromarray(np.zeros((3 * SIZE, 3 * SIZE), np.uint8)).save(first)
    with pytest.raises(InputError, match="has no object to follow"):
        video(Planted(0), davis)
    first.write_bytes(whole)
    for part in ("JPEGImages", "Annotations"):
        for i in range(2, FRAMES):
            (davis / part / "480p" / "squares" / f"{i:05d}.png").unlink()
    with pytest.raises(InputError, match="has 2 frames; the first and the last are not scored"):
        video(Planted(0), davis)


@pytest.mark.extra("timm")
def test_an_encoder_without_patches_is_refused(davis: Path) -> None:
    convolutions = make_encoder(EncoderConfig(name="timm:resnet18", image_size=32), PREPROCESS)
    with pytest.raises(InputError, match="has no patches"):
        video(convolutions, davis)


@pytest.mark.slow
def test_the_table_of_a_run_is_kept_with_its_baselines(davis: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    torch.manual_seed(5)
    encoder = make_encoder(EncoderConfig(name="vit_toy", image_size=16, patch_size=PATCH), PREPROCESS)
    save_encoder(encoder, run / "encoder.safetensors")
    write_metadata(run, "elsewhere")
    table = video.run(str(run), str(davis), size=SIZE, baselines=True, device="cpu")
    assert list(table.rows) == ["encoder", "random initialisation", "raw colours"]
    assert table.encoder == follow_all(patches_of(encoder.eval()), encoder, davis, RECIPE)
    (row,) = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert (row["protocol"], row["data"], row["trained_on"]) == ("video", "DAVIS", False)
    assert row["settings"]["year"] == "2017" and row["settings"]["size"] == SIZE
    assert row["results"]["raw colours"]["jf"] == table.rows["raw colours"][0].jf


def test_masks_that_cannot_be_written_are_refused_in_one_line(davis: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--out .* cannot be written") as caught:
        video(Planted(0), davis, out=tmp_path / "file", size=SIZE)
    assert "\n" not in str(caught.value)


def test_the_command_tells_mistakes_in_one_line(
    davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = make_encoder(EncoderConfig(name="vit_toy", image_size=16, patch_size=PATCH), PREPROCESS)
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    first = davis / "Annotations" / "480p" / "squares" / "00000.png"
    later, lists = first.with_name("00003.png"), davis / "ImageSets"
    for harm, said in (
        (lambda: Image.new("P", (7, 5), 1).save(later), "a predicted mask has 192 x 192 pixels, its annotation 7 x 5"),
        (lambda: Image.new("P", (7, 5), 1).save(first), "the first frame has 192 x 192 pixels, but its mask 7 x 5"),
        (first.unlink, "has no mask of its first frame"),
        (lambda: lists.rename(davis / "Lists"), "is no DAVIS"),
    ):
        harm()
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", "video", str(tmp_path / "encoder.safetensors"), "--data", str(davis), "--size", "64"])
        told = capsys.readouterr()
        assert ended.value.code == 2 and not told.out
        assert said in told.err.splitlines()[-1] and "Traceback" not in told.err
