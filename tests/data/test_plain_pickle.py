"""Ground truth in a pickle: plain values and arrays come through, a program is not run."""

from __future__ import annotations

import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simdino.contracts import InputError
from simdino.data.plain_pickle import read_plain_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], Any]:
    def read(content: bytes) -> Any:
        (tmp_path / "gnd.pkl").write_bytes(content)
        return read_plain_pickle(tmp_path / "gnd.pkl")

    return read


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_come_through(protocol: int, read: Callable[[bytes], Any]) -> None:
    value = {"imlist": ["a", "Größe"], "gnd": [{"easy": [1, 2**40], "bbx": (0.5, -1.0), "none": None, "raw": b"\xff"}]}
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6),
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(["ab", "c"]),
        np.array([[1, 2], None], dtype=object),
        np.zeros(0, np.int64),
    ],
)
def test_arrays_arrive_as_lists(array: np.ndarray, protocol: int, read: Callable[[bytes], Any]) -> None:
    assert read(pickle.dumps({"easy": array}, protocol)) == {"easy": array.tolist()}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_one_number_of_numpys_arrives_as_a_number(protocol: int, read: Callable[[bytes], Any]) -> None:
    assert read(pickle.dumps([np.int32(7), np.float64(0.5)], protocol)) == [7, 0.5]


def test_names_of_older_numpy_and_strings_of_python_2_are_known(read: Callable[[bytes], Any]) -> None:
    old, new = b"numpy.core.multiarray", b"numpy._core.multiarray"
    dumped = pickle.dumps(np.arange(3), 2)
    assert old in dumped or new in dumped
    assert read(dumped.replace(new, old)) == read(dumped.replace(old, new)) == [0, 1, 2]
    assert read(b"(lp0\nS'caf\\xe9'\np1\na.") == ["café"]


class Program:
    """Unpickles as a call."""

    def __init__(self, call: Callable[..., object], *given: object) -> None:
        self.call, self.given = call, given

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call, self.given


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_program_is_refused_and_not_run(protocol: int, tmp_path: Path, read: Callable[[bytes], Any]) -> None:
    mark = tmp_path / "it-ran"
    for program in (
        Program(os.mkdir, str(mark)),
        Program(subprocess.check_call, ["touch", str(mark)]),
        Program(eval, f"open({str(mark)!r}, 'w')"),
        Program(np.load, str(mark)),
        Program(getattr, "", "join"),
    ):
        content = pickle.dumps({"imlist": [program]}, protocol)
        with pytest.raises(InputError, match=r"gnd.pkl is refused: it names .*, which could do anything") as caught:
            read(content)
        assert "\n" not in str(caught.value)
        assert not mark.exists()
    pickle.loads(pickle.dumps(Program(os.mkdir, str(mark)), protocol))
    assert mark.exists()  # what the test could have seen


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        pickle.dumps([1, 2, 3])[:-3],
        pickle.dumps(np.arange(9))[:-20],
        pickle.dumps(np.arange(9)).replace(b"i8", b"V8"),
        b"(dp0\n(lp1\nI1\ns.",  # a list as a key
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a frame of 2**63 bytes
        b"cnumpy\ndtype\n(S'O'\ntR(lb.",
    ],
)
def test_what_is_no_pickle_or_half_of_one_is_refused_in_one_line(content: bytes, read: Callable[[bytes], Any]) -> None:
    with pytest.raises(InputError, match=r"gnd.pkl is refused: .+; expected lists, strings and numbers") as caught:
        read(content)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.pkl cannot be read: No such file"):
        read_plain_pickle(tmp_path / "none.pkl")
