"""What a person does on the page of `simdino show map`, in a headless browser: hover, click, lasso, and the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Page, browser
from PIL import Image

from simdino.show.atlas import atlas_of
from simdino.show.map_page import COLOURS, Grouping, MapPage

pytestmark = [pytest.mark.slow, pytest.mark.extra("chromium")]

SIDE = 5  # images of a row and of a column: they lie on a grid, a class to each row
N = SIDE * SIDE
HOSTILE = '<img src=x onerror="hacked=1"> & \'"</script>.png'
NAMES = [f"row {i // SIDE}/image {i}.png" for i in range(N - 1)] + [HOSTILE]
SHADES = [(40 + 8 * i, 255 - 9 * i, 37 * i % 256) for i in range(N)]
CLASSES = [f"row {i}" for i in range(SIDE - 1)] + ["<b>last</b> & row"]


def near(i: int) -> list[int]:
    """The three images after this one, as its neighbours."""
    return [(i + step) % N for step in (1, 2, 3)]


def map_page() -> MapPage:
    grid = np.array([[i % SIDE, SIDE - i // SIDE] for i in range(N)], np.float64)  # the first row is above
    return MapPage(
        title="grid", encoder="none", of=100, sampled=True, broken=0, share=0.5, names=NAMES,
        planes={"PCA": grid, "UMAP": grid[::-1]},
        groupings=[
            Grouping(name="folder", classes=CLASSES, labels=[i // SIDE for i in range(N)]),
            Grouping(name="cluster", classes=["cluster 1", "cluster 2"], labels=[i % 2 for i in range(N)]),
        ],
        neighbours=np.array([near(i) for i in range(N)]), cosines=np.tile([0.9, 0.8, 0.75], (N, 1)),
        atlas=atlas_of([Image.new("RGB", (48, 32), shade) for shade in SHADES]),
    )  # fmt: skip


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A browser, and the page in its folder."""
    folder = tmp_path_factory.mktemp("browser")
    (folder / "map.html").write_text(map_page().html())
    with browser(folder) as page:
        yield page


@pytest.fixture
def page(window: Page) -> Iterator[Page]:
    """The page as it opens; afterwards it must not have complained."""
    window.open(window.folder / "map.html")
    yield window
    assert window.complaints() == []


def place(page: Page, i: int) -> tuple[float, float]:
    """Where an image is in the window."""
    box = "(box => [box.left, box.top])(canvas.getBoundingClientRect())"
    (left, top), (x, y) = page.answer(box), page.answer(f"[across({i}), down({i})]")
    return left + x, top + y


def pixel(page: Page, i: int) -> list[int]:
    """The colour on the map where an image is."""
    at = f"Math.round(across({i}) * devicePixelRatio), Math.round(down({i}) * devicePixelRatio)"
    return page.answer(f"[...pen.getImageData({at}, 1, 1).data].slice(0, 3)")


def text(page: Page, selector: str) -> list[str]:
    return page.answer(f"[...document.querySelectorAll({selector!r})].map((one) => one.textContent)")


def press(page: Page, where: str, label: str) -> None:
    """Press the button of this label."""
    page.answer(
        f"[...document.querySelectorAll('{where} button')].find((one) => one.textContent === '{label}').click()"
    )
    page.drawn()


def around(page: Page, images: list[int]) -> list[tuple[float, float]]:
    """A rectangle around images, a fifth of a step beyond them."""
    places = np.array([place(page, i) for i in images])
    step = np.abs(np.subtract(place(page, 0), place(page, SIDE + 1))) / 5
    (left, top), (right, bottom) = places.min(0) - step, places.max(0) + step
    return [(left, top), (right, top), (right, bottom), (left, bottom), (left, top + 2)]


def shown(page: Page, element: str) -> bool:
    return page.answer(f"!element('{element}').hidden")


def test_it_opens_with_every_thumbnail_in_its_place(page: Page) -> None:
    assert text(page, "#title") == ["grid"]
    assert text(page, "#notes") == ["25 images of 100, a fixed sample · encoder none · PCA holds 50 % of the variance"]
    assert text(page, "#legend .label") == CLASSES and text(page, "#legend .number") == ["5"] * SIDE
    assert sorted(page.answer("pictured")) == list(range(N))  # all fit
    for i in range(N):
        assert np.abs(np.subtract(pixel(page, i), SHADES[i])).max() < 16, i
    left, top = place(page, 0)
    assert place(page, 1)[0] > left + 40 and place(page, SIDE)[1] > top + 40  # the first row is above


def test_hovering_shows_the_picture_and_its_name(page: Page) -> None:
    page.mouse("mouseMoved", *place(page, 7))
    page.drawn()
    assert shown(page, "card") and text(page, "#card p") == ["row 1/image 7.png", "row 1"]
    middle = "(own => [...own.getContext('2d').getImageData(own.width / 2, own.height / 2, 1, 1).data].slice(0, 3))"
    colour = page.answer(f"{middle}(document.querySelector('#card canvas'))")
    assert np.abs(np.subtract(colour, SHADES[7])).max() < 16
    page.mouse("mouseMoved", *np.add(place(page, 7), np.subtract(place(page, SIDE + 1), place(page, 0)) / 2))
    page.drawn()
    assert not shown(page, "card")


def test_names_are_text(page: Page) -> None:
    page.mouse("mouseMoved", *place(page, N - 1))
    page.drawn()
    assert text(page, "#card p") == [HOSTILE, CLASSES[-1]]
    page.click(*place(page, N - 1))
    assert text(page, "#name") == [HOSTILE]
    assert page.answer("typeof hacked") == "undefined" and page.answer("document.querySelector('main b')") is None


def test_a_click_shows_the_nearest_images_and_a_click_on_one_goes_there(page: Page) -> None:
    assert not shown(page, "picture")
    page.click(*place(page, 11))
    assert shown(page, "picture") and text(page, "#name") == ["row 2/image 11.png"]
    titles = "[...document.querySelectorAll('#neighbours button')].map((one) => one.title)"
    assert page.answer(titles) == [NAMES[i] for i in near(11)]
    assert text(page, "#neighbours button") == ["0.90", "0.80", "0.75"]
    assert text(page, "#nearest") == ["Nearest images, by cosine: 3 of 3 in the same folder"]
    assert np.abs(np.subtract(pixel(page, 14), SHADES[14])).max() < 16  # a neighbour stands out
    assert np.abs(np.subtract(pixel(page, 3), SHADES[3])).max() > 60  # another pales
    page.answer("document.querySelectorAll('#neighbours button')[1].click()")
    page.drawn()
    assert text(page, "#name") == [NAMES[13]] and page.answer("state.chosen") == 13
    centre = page.answer(
        "(box => [box.left + box.width / 2, box.top + box.height / 2])(canvas.getBoundingClientRect())"
    )
    assert np.allclose(place(page, 13), centre, atol=1)
    page.press("Escape")
    assert not shown(page, "picture") and page.answer("state.chosen") is None


@pytest.mark.parametrize("way", ["shift", "button"])
def test_a_lasso_gives_a_list_of_files(page: Page, way: str) -> None:
    inside = [6, 7, 11, 12]
    if way == "button":
        press(page, ".tools", "Lasso")
    page.drag(around(page, inside), shift=way == "shift")
    listed = "".join(f"{NAMES[i]}\n" for i in inside)
    assert text(page, "#counted") == ["4 images selected"]
    assert page.answer("element('files').value") == listed
    assert text(page, "#shares .label") == ["row 1", "row 2"] and text(page, "#shares .number") == ["2", "2"]
    assert len(page.answer("[...document.querySelectorAll('#members button')].map(String)")) == 4
    assert page.answer("state.lassoing") is False and page.answer("state.chosen") is None

    saved = page.folder / "images.txt"
    saved.unlink(missing_ok=True)
    press(page, "#selection", "Download .txt")
    wait(lambda: saved.is_file() and saved.stat().st_size > 0)
    assert saved.read_text() == listed
    page.answer("document.addEventListener('copy', () => { window.copied = getSelection().toString(); })")
    page.answer("navigator.clipboard.writeText = (given) => { window.copied = given; return Promise.resolve(); }")
    press(page, "#selection", "Copy the list")
    assert page.answer("window.copied") == listed and text(page, "#copy") == ["Copied"]
    page.press("Escape")
    assert not shown(page, "selection")


def wait(moment: Callable[[], bool]) -> None:
    """Wait for a moment that the browser does not tell of. Raises TimeoutError."""
    import time

    end = time.monotonic() + 60
    while not moment():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.02)


def test_without_the_right_to_the_clipboard_the_list_is_copied_from_its_field(page: Page) -> None:
    page.drag(around(page, [0, 1]), shift=True)
    page.answer("navigator.clipboard.writeText = () => Promise.reject(new Error('no'))")
    page.answer("document.execCommand = (what) => { window.copied = [what, element('files').selectionEnd]; }")
    press(page, "#selection", "Copy the list")
    assert page.answer("window.copied") == ["copy", len(f"{NAMES[0]}\n{NAMES[1]}\n")]


def test_the_list_is_one_that_simdino_reads(page: Page, tmp_path: Path) -> None:
    from simdino.data.sources import open_dataset

    for i in (6, 7):
        (tmp_path / NAMES[i]).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / NAMES[i])
    page.drag(around(page, [6, 7]), shift=True)
    (tmp_path / "images.txt").write_text(page.answer("element('files').value"))
    assert open_dataset(tmp_path / "images.txt").names == [NAMES[6], NAMES[7]]


def test_the_legend_hides_groups_from_the_map_the_pointer_and_the_lasso(page: Page) -> None:
    page.answer("document.querySelectorAll('#legend button')[1].click()")
    page.drawn()
    assert page.answer("document.querySelectorAll('#legend button')[1].getAttribute('aria-pressed')") == "false"
    assert sorted(page.answer("pictured")) == [i for i in range(N) if i // SIDE != 1]
    page.mouse("mouseMoved", *place(page, 7))
    assert not shown(page, "card")
    page.drag(around(page, [6, 7, 11, 12]), shift=True)
    assert page.answer("[...state.selected].sort((a, b) => a - b)") == [11, 12]
    press(page, "#groupings", "cluster")  # the other grouping hides nothing
    assert len(page.answer("pictured")) == N


def test_a_double_click_shows_a_group_alone_and_another_all(page: Page) -> None:
    for expected in (list(range(5, 10)), list(range(N))):
        entry = "document.querySelectorAll('#legend button')[1]"
        page.answer(f"{entry}.click(), {entry}.click(), {entry}.dispatchEvent(new MouseEvent('dblclick'))")
        page.drawn()
        assert sorted(page.answer("pictured")) == expected


def test_colours_follow_the_grouping_and_the_theme(window: Page) -> None:
    def dot(i: int) -> list[int]:
        return pixel(window, i)

    def rgb(colour: str) -> list[int]:
        return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]

    for theme in ("light", "dark"):
        window.open(window.folder / "map.html", dark=theme == "dark")
        press(window, "#styles", "dots")
        assert page_colours(window, dot) == [rgb(COLOURS[theme][i // SIDE]) for i in range(N)]
        press(window, "#groupings", "cluster")
        assert text(window, "#legend .label") == ["cluster 1", "cluster 2"]
        assert page_colours(window, dot) == [rgb(COLOURS[theme][i % 2]) for i in range(N)]
        assert window.complaints() == []


def page_colours(page: Page, dot: Callable[[int], list[int]]) -> list[list[int]]:
    """The colours of all dots, drawn without transparency."""
    page.answer("images.forEach((i) => { pen.globalAlpha = 1, drawDot(i); })")
    return [dot(i) for i in range(N)]


def test_a_search_finds_names_and_enter_lists_them(page: Page) -> None:
    page.press("/")
    page.write("IMAGE 2")
    found = [i for i, name in enumerate(NAMES) if "image 2" in name]
    assert text(page, "#found") == [str(len(found))]
    assert np.abs(np.subtract(pixel(page, 3), SHADES[3])).max() > 60
    page.press("Enter")
    assert page.answer("element('files').value") == "".join(f"{NAMES[i]}\n" for i in found)
    page.press("Escape")
    assert text(page, "#found") == [""] and page.answer("element('search').value") == ""


def test_wheel_keys_and_buttons_zoom_and_a_drag_moves(page: Page) -> None:
    before, still = place(page, 0), place(page, 12)
    page.mouse("mouseWheel", *still, deltaX=0, deltaY=-200)
    page.drawn()
    assert np.allclose(place(page, 12), still, atol=0.5)  # what is under the pointer stays there
    ratio = np.subtract(place(page, 0), still) / np.subtract(before, still)
    assert np.allclose(ratio, np.exp(0.32), rtol=0.01)
    page.press("0")
    assert np.allclose(place(page, 0), before, atol=0.01)
    page.press("+")
    page.press("-")
    assert np.allclose(place(page, 0), before, atol=0.01)
    x, y = np.add(place(page, 0), np.subtract(place(page, SIDE + 1), place(page, 0)) / 2)
    page.drag([(x, y), (x + 10, y), (x + 60, y + 25)])
    assert np.allclose(np.subtract(place(page, 0), before), [60, 25], atol=0.01)
    assert not shown(page, "picture")  # a drag is no click
    page.answer("canvas.focus()")
    page.press("ArrowRight")
    assert np.allclose(np.subtract(place(page, 0), before), [0, 25], atol=0.01)


def test_two_fingers_zoom_one_moves_and_a_tap_is_a_click(page: Page) -> None:
    def touch(kind: str, *places: tuple[float, float]) -> None:
        points = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(places)]
        page.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)

    before, (x, y) = place(page, 0), place(page, 12)
    spread = np.subtract(place(page, 12), before)
    touch("touchStart", (x - 50, y), (x + 50, y))
    touch("touchMove", (x - 75, y), (x + 75, y))
    touch("touchMove", (x - 100, y), (x + 100, y))
    touch("touchEnd")
    page.drawn()
    assert np.allclose(np.subtract(place(page, 12), place(page, 0)), 2 * spread, rtol=0.02)
    assert not shown(page, "picture")
    touch("touchStart", place(page, 12))
    touch("touchEnd")
    page.drawn()
    assert text(page, "#name") == [NAMES[12]]


def test_another_layout_moves_the_points(page: Page) -> None:
    places = [place(page, i) for i in range(N)]
    press(page, "#planes", "UMAP")
    assert np.allclose([place(page, i) for i in range(N)], places[::-1], atol=0.01)


def test_thumbnails_do_not_overlap_and_more_appear_as_one_zooms_in(page: Page) -> None:
    page.answer("data.planes.PCA.forEach((p, i) => { p[0] /= 1 + 9 * (i > 0); p[1] /= 1 + 9 * (i > 0); }), draw()")
    counts = []
    for _ in range(6):
        pictured = page.answer("pictured")
        counts.append(len(pictured))
        boxes = np.array([[*place(page, i), *page.answer(f"boxOf({i})")] for i in pictured])
        for i, (x, y, w, h) in enumerate(boxes):
            others = np.delete(boxes, i, axis=0)
            over = (np.abs(others[:, 0] - x) < (others[:, 2] + w) / 2) & (
                np.abs(others[:, 1] - y) < (others[:, 3] + h) / 2
            )
            assert not over.any()
        page.press("+")
    assert counts == sorted(counts) and counts[0] < counts[-1] == N


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_reaches_beyond_the_window(window: Page, width: int) -> None:
    window.open(window.folder / "map.html", width=width)
    window.click(*place(window, 12))
    window.answer("select(images)")
    assert window.answer("document.documentElement.scrollWidth") <= width
    assert window.answer("element('map').getBoundingClientRect().width") > 0.6 * min(width, 1000)
    assert window.complaints() == []
