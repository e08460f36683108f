"""Ground truth and checkpoints that others give as a pickle, read without running anything in them.

A pickle is a program: it may call any function that it names. Here it may name the few that numpy's arrays need, and
these are replaced by ours, so that numbers arrive as lists; any other name is refused. `NUMBERS` are those of them
that a checkpoint may name, for torch's own unpickler.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from simdino.contracts import InputError

BROKEN = (
    pickle.UnpicklingError, ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError,
    MemoryError, RecursionError, TypeError, ValueError,
)  # fmt: skip
"""What unpickling raises for bytes that are no pickle, half of one, or one that was made to harm."""


def read_plain_pickle(path: Path) -> Any:
    """What a pickle holds: dicts, lists, tuples, strings, bytes, numbers, None; arrays of numpy as lists.

    Raises InputError for anything else in it, and for a file that is no pickle."""
    try:
        with path.open("rb") as file:
            return Plain(file, encoding="latin1").load()  # bytes of Python 2's strings, each to one character
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except BROKEN as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path} is refused: {why}; expected lists, strings and numbers in a pickle") from None


class Plain(pickle.Unpickler):
    """An unpickler that knows `ADMITTED` and nothing else."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Our stand-in for a name of numpy's. Raises UnpicklingError for any other."""
        found = ADMITTED.get((module_name.replace("numpy.core.", "numpy._core."), global_name))
        if found is None:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which could do anything")
        return found


class Kind:
    """numpy's dtype: numbers, text and bytes of a fixed length, or the objects that were unpickled before."""

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch(r"[biufUS]\d{1,6}|O\d?", code):
            raise pickle.UnpicklingError(f"it has an array of kind {code!r}")
        self.code, self.order = code, ""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """The byte order; what else there is tells fields and alignment."""
        self.order = state[1] if state[1] in ("<", ">") else ""

    def values(self, raw: Any, shape: tuple[int, ...], *, fortran: bool) -> Any:
        """Nested lists, or one number for an empty shape."""
        if self.code.startswith("O"):
            return list(raw)
        return np.frombuffer(raw, dtype=self.order + self.code).reshape(shape, order="F" if fortran else "C").tolist()


class Numbers(list[Any]):
    """numpy's ndarray, as nested lists."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """(version, shape, kind, whether Fortran's order, bytes)."""
        _, shape, kind, fortran, raw = state
        values = kind.values(raw, shape, fortran=fortran)
        self[:] = values if isinstance(values, list) else [values]


def reconstruct(*_: object) -> Numbers:
    """An array whose state follows."""
    return Numbers()


def from_buffer(raw: Any, kind: Kind, shape: tuple[int, ...], order: str) -> Any:
    """An array as protocol 5 has it."""
    return kind.values(raw, shape, fortran=order == "F")


def scalar(kind: Kind, raw: Any) -> Any:
    """One number."""
    if kind.code.startswith("O"):
        raise pickle.UnpicklingError("it has a number that is an object")
    return kind.values(raw, (), fortran=False)


def float64() -> Kind:
    """The kind of numpy's float64, by its own class."""
    return Kind("f8")


def latin1(text: str, _: str) -> bytes:
    """Bytes as protocols 0 to 2 have them."""
    return text.encode("latin1")


def no_bytes() -> bytes:
    """And where there are none."""
    return b""


ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): Kind,
    ("numpy", "ndarray"): Numbers,
    ("numpy._core.multiarray", "_reconstruct"): reconstruct,
    ("numpy._core.multiarray", "scalar"): scalar,
    ("numpy._core.numeric", "_frombuffer"): from_buffer,
    ("_codecs", "encode"): latin1,
    ("__builtin__", "bytes"): no_bytes,
}

NUMBERS: list[tuple[Any, str]] = [
    (Kind, "numpy.dtype"),
    (float64, "numpy.dtypes.Float64DType"),
    (scalar, "numpy.core.multiarray.scalar"),
    (scalar, "numpy._core.multiarray.scalar"),
]
"""Our stand-ins and the names, in numpy 1 and 2, that a checkpoint has where a schedule of numpy's set its learning
rate. As `torch.serialization.safe_globals` takes them."""
