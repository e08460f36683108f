import pytest
import torch

from simdino.show.sheets import AGREES, DISAGREES, neighbours_sheet, views_sheet


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def counts(sheet) -> dict:
    return {colour: n for n, colour in sheet.getcolors(maxcolors=1 << 20)}


def plain(value: int, size: int = 28, channels: int = 1) -> torch.Tensor:
    return torch.full((channels, size, size), value, dtype=torch.uint8)


def test_views_keep_their_relative_size_and_are_enlarged_by_a_whole_factor():
    originals = [plain(10), plain(10)]
    global_views = plain(100).expand(2, 2, 1, 28, 28)
    local_views = plain(200, 14).expand(3, 2, 1, 14, 14)
    found = counts(views_sheet(originals, global_views, local_views))
    assert found[(10, 10, 10)] == 2 * 112**2  # 28 px, four times
    assert found[(100, 100, 100)] == 2 * 2 * 112**2
    assert found[(200, 200, 200)] == 2 * 3 * 56**2


@pytest.mark.parametrize("size", [8, 32, 96, 128, 224, 518])
def test_views_of_any_size_are_drawn_at_a_readable_height(size):
    sheet = views_sheet([plain(10, size, 3)], plain(100, size, 3).expand(1, 1, 3, size, size), None)
    assert 90**2 <= counts(sheet)[(100, 100, 100)] <= 168**2


def test_a_pixel_of_a_small_view_becomes_a_square():
    view = noise(1, 1, 3, 28, 28)
    sheet = views_sheet([plain(10)], view, None)
    colours = {tuple(view[0, 0, :, i, j].tolist()) for i in range(28) for j in range(28)}
    found = counts(sheet)
    assert all(found[colour] >= 16 for colour in colours)


def test_originals_of_any_shape_and_number_of_channels():
    originals = [noise(3, 90, 300), noise(1, 500, 20), noise(6, 33, 33)]
    sheet = views_sheet(originals, noise(2, 3, 3, 64, 64), noise(4, 3, 3, 28, 28))
    assert sheet.mode == "RGB"
    assert sheet.width > 3 * 128


def test_sheets_refuse_other_numbers_and_uneven_rows():
    with pytest.raises(ValueError, match="uint8 or float"):
        views_sheet([plain(1)], torch.zeros(1, 1, 1, 28, 28, dtype=torch.int64), None)
    with pytest.raises(ValueError, match="2 originals"):
        views_sheet([plain(1), plain(2)], noise(2, 1, 1, 28, 28), None)
    with pytest.raises(ValueError, match="label"):
        neighbours_sheet([plain(1)], [[plain(2)]], ["a"], [["a", "b"]])


def test_frames_say_which_neighbours_agree():
    queries, nearest = [plain(1), plain(2)], [[plain(3)] * 3] * 2
    without = counts(neighbours_sheet(queries, nearest))
    assert AGREES not in without
    assert DISAGREES not in without
    all_right = counts(neighbours_sheet(queries, nearest, ["a", "b"], [["a"] * 3, ["b"] * 3]))
    assert all_right[AGREES] == 6 * (4 * 84 * 2 + 16)  # a frame of two pixels around 84
    assert DISAGREES not in all_right
    mixed = counts(neighbours_sheet(queries, nearest, ["a", "b"], [["a"] * 3, ["a", "b", "c"]]))
    assert mixed[AGREES] == 4 * (4 * 84 * 2 + 16)
    assert mixed[DISAGREES] >= 2 * (4 * 84 * 2 + 16)  # and the labels


def test_twelve_rows_take_two_columns_where_they_fit():
    def sheet(k: int):
        return neighbours_sheet([plain(1)] * 12, [[plain(3)] * k] * 12)

    assert sheet(5).width > sheet(5).height
    assert sheet(9).height > sheet(9).width
    for k in (5, 9):
        assert sheet(k).width <= 1240
        assert counts(sheet(k))[(3, 3, 3)] == 12 * k * 84**2


def test_long_labels_are_cut_to_their_cell():
    short = neighbours_sheet([plain(1)], [[plain(2)]], ["a"], [["b"]])
    long = neighbours_sheet([plain(1)], [[plain(2)]], ["a" * 99], [["line\nbreak " * 9]])
    assert long.size == short.size
