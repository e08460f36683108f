"""Objects found by encoders that know them, scored by hand and by the official evaluator; mistakes in a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from coloured import make
from discovered import SIDE, coco_file, objects_of, paint, regions_of, voc_files
from PIL import Image
from planted import Planted

from simdino.cli import main
from simdino.contracts import InputError
from simdino.data.annotated import read_coco
from simdino.evaluate import discover
from simdino.evaluate.discovery.finding import (
    DiscoverResult,
    Tally,
    annotation,
    average_precision,
    box_overlaps,
    mask_overlaps,
)
from simdino.evaluate.discovery.objects import Truth, boxes_of, open_objects
from simdino.models.weights import save_encoder


@pytest.fixture
def painted_set(tmp_path: Path) -> Path:
    """Six images of two objects each on a dark ground, with masks: numbers 1 and 2."""
    return paint(tmp_path / "set", count=6)


@pytest.fixture
def encoder_file(tmp_path: Path) -> Path:
    """A narrow ViT with random weights."""
    save_encoder(make(), tmp_path / "encoder.safetensors")
    return tmp_path / "encoder.safetensors"


def found_in(data: Path, **words: object) -> DiscoverResult:
    return discover(Planted(noise=0.02), data, size=SIDE, **words)  # pyright: ignore[reportArgumentType]


def test_an_encoder_that_knows_the_objects_finds_them_and_one_that_does_not_does_not(painted_set: Path) -> None:
    known = found_in(painted_set)
    assert known.images == 6 and known.found == 12
    assert known.miou is not None and known.corloc == 100 and known.miou > 95
    assert known.surest_iou is not None and 40 < known.surest_iou < 95  # one of two objects
    blind = discover(make(), painted_set, size=SIDE)
    assert blind.miou is not None and blind.miou < 60


def test_masks_of_0_and_255_alone_have_one_object_and_255_is_ignored_beside_others(tmp_path: Path) -> None:
    data = paint(tmp_path / "set", count=2, objects=1)
    for path in (data / "masks").iterdir():
        numbers = np.array(Image.open(path))
        Image.fromarray((255 * (numbers > 0)).astype(np.uint8)).save(path)
    assert found_in(data).miou == 100
    for path in (data / "masks").iterdir():
        numbers = (np.array(Image.open(path)) > 0).astype(np.uint8)
        numbers[:, : SIDE // 2] = np.where(numbers[:, : SIDE // 2] == 1, 255, 0)  # half the object counts for nothing
        Image.fromarray(numbers).save(path)
    assert found_in(data).miou == 100


@pytest.mark.extra("pycocotools")
def test_precision_is_1_of_what_was_planted_and_by_hand_of_what_was_shifted(tmp_path: Path) -> None:
    data = paint(tmp_path / "set", count=4)
    truth = coco_file(data, tmp_path / "truth.json")  # whose first annotation has the number 0
    result = found_in(data / "images", annotations=truth)
    assert result.mask_ap is not None and result.box_ap is not None
    assert result.mask_ap["AP"] == result.box_ap["AP"] == result.mask_ap["AR100"] == pytest.approx(100)
    assert result.mask_ap["AR1"] == pytest.approx(50) and result.corloc == 100  # one of two objects an image
    coco = read_coco(truth)
    detections = []
    for about in coco.dataset["images"]:
        for one in coco.loadAnns(coco.getAnnIds(imgIds=about["id"])):
            left, top, width, height = one["bbox"]
            box = (left, top, left + 0.72 * width, top + height)  # IoU .72: right at .50, .55, .60, .65, .70
            detections.append(annotation(len(detections) + 1, about["id"], box, None))
    ids = [about["id"] for about in coco.dataset["images"]]
    ap = average_precision(coco, ids, detections, "bbox")
    assert ap["AP"] == pytest.approx(50) and ap["AP50"] == pytest.approx(100) and ap["AP75"] == pytest.approx(0)
    half = [one for one in detections if one["image_id"] in ids[:2]]
    assert average_precision(coco, ids[:2], half, "bbox")["AP"] == pytest.approx(50)  # the others were not looked at
    assert average_precision(coco, ids, half, "bbox")["AR100"] == pytest.approx(25)
    assert average_precision(coco, ids, [], "segm")["AP"] == 0


@pytest.mark.extra("pycocotools")
def test_classes_are_left_aside_and_areas_of_masks_are_theirs(tmp_path: Path) -> None:
    data = paint(tmp_path / "set", count=2)
    truth = coco_file(data, tmp_path / "truth.json", categories=(7, 3))
    result = found_in(data / "images", annotations=truth)
    assert result.mask_ap is not None and result.mask_ap["AP"] == pytest.approx(100)
    assert result.mask_ap["APm"] is None and result.mask_ap["APs"] == pytest.approx(100)  # all below 32 x 32 pixels


@pytest.mark.extra("pycocotools")
def test_a_wrong_mask_has_its_own_area_not_that_of_its_box(tmp_path: Path) -> None:
    data = paint(tmp_path / "set", count=1, objects=1, height=256, width=256)
    masks = np.zeros((2, 256, 256), bool)
    masks[0, range(200, 250), range(200, 250)] = True  # 50 pixels in a box of 2,500: wrong, and surest
    masks[1, 40:100, 40:100] = True
    Image.fromarray(masks[1].astype(np.uint8)).save(data / "masks" / "000.png")
    coco = read_coco(coco_file(data, tmp_path / "truth.json"))
    found = [annotation(i, 10, box, mask) for i, (box, mask) in enumerate(zip(boxes_of(masks), masks, strict=True))]
    assert average_precision(coco, [10], found, "segm")["APm"] == pytest.approx(100)  # 32 x 32 to 96 x 96 pixels
    assert average_precision(coco, [10], found, "bbox")["APm"] == pytest.approx(50)


@pytest.mark.extra("pycocotools")
def test_boxes_of_voc_and_coco_are_those_around_the_objects_without_crowds(tmp_path: Path) -> None:
    data = paint(tmp_path / "set", count=2)
    voc, truth = voc_files(data, tmp_path / "VOC", listed=None), coco_file(data, tmp_path / "truth.json")
    for of in (open_objects(voc), open_objects(data / "images", truth), open_objects(data)):
        for i in range(2):
            image, known = of.read(i, 3)
            np.testing.assert_array_equal(known.boxes, boxes_of(objects_of(data / "masks" / f"{i:03}.png")))
            assert image.shape == (3, SIDE, SIDE)
    content = json.loads(truth.read_text())
    content["annotations"][0] |= {"iscrowd": 1}
    truth.write_text(json.dumps(content))
    boxes = open_objects(data / "images", truth).read(0, 3)[1].boxes
    np.testing.assert_array_equal(boxes, boxes_of(objects_of(data / "masks" / "000.png"))[1:])


def test_corloc_counts_a_half_and_images_with_objects_alone() -> None:
    tally = Tally()
    boxes = np.array([[0.0, 0, 10, 10]])
    tally.add(Truth(boxes=boxes), np.array([[0.0, 0, 10, 5]]), None)  # IoU 1/2
    tally.add(Truth(boxes=boxes), np.array([[0.0, 0, 10, 4.9], [0, 0, 10, 10]]), None)  # the surest counts
    tally.add(Truth(boxes=boxes), np.zeros((0, 4)), None)
    tally.add(Truth(boxes=np.zeros((0, 4))), boxes, None)
    assert tally.scores() == {"corloc": pytest.approx(100 / 3), "miou": None, "surest_iou": None}


def test_overlaps_are_those_of_loops() -> None:
    random = np.random.default_rng(0)
    a, b = random.random((3, 9, 7)) > 0.5, random.random((4, 9, 7)) > 0.3
    expected = [[(x & y).sum() / (x | y).sum() for y in b] for x in a]
    np.testing.assert_allclose(mask_overlaps(a, b), expected)
    assert mask_overlaps(a[:0], b).shape == (0, 4) and mask_overlaps(~a[:1] & a[:1], ~a[:1] & a[:1]) == 0
    corners = random.integers(0, 20, (5, 2))
    boxes = np.concatenate([corners, corners + random.integers(1, 9, (5, 2))], 1).astype(float)
    filled = np.zeros((5, 30, 30), bool)
    for mask, (left, top, right, bottom) in zip(filled, boxes.astype(int), strict=True):
        mask[top:bottom, left:right] = True
    np.testing.assert_allclose(box_overlaps(boxes[0], boxes), mask_overlaps(filled[:1], filled)[0])
    np.testing.assert_array_equal(boxes_of(filled), boxes)


@pytest.mark.extra("pycocotools")
def test_what_is_written_is_read_by_the_official_tools_with_width_and_height_the_right_way_round(
    tmp_path: Path,
) -> None:
    data = paint(tmp_path / "set", count=2, height=SIDE, width=2 * SIDE)
    out = tmp_path / "new" / "objects.json"
    result = found_in(data / "images", out=out)
    assert result.corloc is None and result.mask_ap is None and result.found == 4
    coco = read_coco(out)
    about = coco.loadImgs(coco.getImgIds())[0]
    assert (about["width"], about["height"]) == (2 * SIDE, SIDE)
    masks = [coco.annToMask(one) for one in coco.loadAnns(coco.getAnnIds(imgIds=about["id"]))]
    planted = regions_of(0, height=SIDE, width=2 * SIDE)
    overlaps = mask_overlaps(np.stack([planted == 1, planted == 2]), np.stack(masks) > 0)
    assert (overlaps.max(1) > 0.6).all()  # patches of the square that was looked at straddle the edges
    assert [path.name for path in out.parent.iterdir()] == ["objects.json"]


def test_tokencut_gives_a_box_an_image_which_voc_scores(tmp_path: Path) -> None:
    data = paint(tmp_path / "set", count=5, objects=1)
    voc = voc_files(data, tmp_path / "VOC", listed=[0, 1, 2, 3])
    result = discover(Planted(), voc, method="tokencut")
    assert (result.images, result.found, result.corloc, result.miou) == (4, 4, 100, None)
    voc_files(data, tmp_path / "far", listed=None, shift=SIDE // 2)
    assert discover(Planted(), tmp_path / "far", method="tokencut").corloc == 0


def test_broken_images_are_named_and_too_many_are_an_error(painted_set: Path) -> None:
    for i in range(6, 20):
        paint(painted_set, count=1, first=i)
    (painted_set / "images" / "000.png").write_bytes(b"no image")
    (painted_set / "masks" / "001.png").unlink()
    result = found_in(painted_set)
    assert result.images == 18 and list(result.broken) == ["images/000.png", "masks/001.png"]
    for i in range(2, 5):
        (painted_set / "images" / f"{i:03}.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"3 of the 20 images of 'set' .* more than 10%"):
        found_in(painted_set)


def mistakes(tmp_path: Path) -> dict[str, tuple[str, str]]:
    """Words after `discover`, and what the one line says."""
    data = paint(tmp_path / "set", count=2)
    truth = coco_file(data, tmp_path / "truth.json")
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.json").write_text("[1, 2]")
    sizes = paint(tmp_path / "sizes", count=2)
    Image.new("L", (9, 9)).save(sizes / "masks" / "000.png")
    voc = voc_files(data, tmp_path / "VOC", listed=None)
    for path in (voc / "JPEGImages").iterdir():
        path.unlink()
    return {
        "no place": (f"--data {data}/images", "give --out FILE, or data with masks/"),
        "empty": (f"--data {tmp_path}/empty --out o.json", "image"),
        "missing": (f"--data {tmp_path}/nowhere", "nowhere"),
        "sizes": (f"--data {sizes}", "has 9 x 9 pixels, but its image"),
        "form": (f"--data {data} --annotations {tmp_path}/list.json", "is no file of COCO's form"),
        "no file": (f"--data {data} --annotations {tmp_path}/no.json", "No such file"),
        "elsewhere": (f"--data {tmp_path}/empty --annotations {truth}", "has none of the 2 images of"),
        "voc": (f"--data {voc}", "none of the 2 images"),
        "tau": (f"--data {data} --tau 2", "--tau 2.0 must be 0 or more, below 1"),
        "size": (f"--data {data} --size 1", "--size 1 is 0 patches"),
        "out": (f"--data {data} --out {data}", "cannot be written"),
    }


OF_COCO = [
    pytest.param(name, marks=pytest.mark.extra("pycocotools")) for name in ("form", "no file", "elsewhere", "out")
]


@pytest.mark.parametrize("name", ["no place", "empty", "missing", "sizes", "voc", "tau", "size", *OF_COCO])
def test_a_mistake_is_one_line(
    name: str, tmp_path: Path, encoder_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, said = mistakes(tmp_path)[name]
    with pytest.raises(SystemExit) as end:
        main(["evaluate", "discover", str(encoder_file), *words.split()])
    captured = capsys.readouterr()
    assert end.value.code == 2
    assert said in captured.err and captured.err.count("\n") == 1, captured.err


@pytest.mark.extra("timm")
def test_an_encoder_without_attention_is_refused(painted_set: Path) -> None:
    with pytest.raises(InputError, match="attention of encoder timm:resnet18 cannot be read"):
        discover(make("timm:resnet18"), painted_set)


def test_what_is_not_installed_is_said(painted_set: Path, tmp_path: Path, hide: Callable[[str], None]) -> None:
    hide("pycocotools")
    hide("pydensecrf")
    with pytest.raises(InputError, match=r"pip install 'simdino\[coco\]'"):
        found_in(painted_set, out=tmp_path / "o.json")
    with pytest.raises(InputError, match=r"pip install 'simdino\[crf\]'"):
        found_in(painted_set, crf=True)
    assert found_in(painted_set).corloc == 100  # needs neither


def test_the_command_prints_plain_values_and_says_what_has_no_effect(
    painted_set: Path, encoder_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(painted_set), "--method", "tokencut", "--size", "64", "--limit", "2", "--json"]
    main(["evaluate", "discover", str(encoder_file), *words])
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert (result["method"], result["images"], result["found"]) == ("tokencut", 2, 2)
    assert "--size has no effect with --method tokencut" in captured.err
    said: list[str] = []
    again = discover(str(encoder_file), str(painted_set), method="tokencut", limit=2, log=said.append)
    assert again.as_dict() == result and said == []
