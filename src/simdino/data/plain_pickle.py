"""Ground truth and checkpoints that others give as a pickle, read without running anything in them.

A pickle is a program: it may call any function that it names. Here it may name only the few that numpy's arrays need,
which are replaced by functions of this module, so that numbers arrive as lists; any other name is refused. `NUMBERS`
lists those that a checkpoint may name, for torch's own unpickler."""

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
"""What unpickling raises for bytes that are no pickle, an incomplete one, or one made to do harm."""


def read_plain_pickle(path: Path) -> Any:
    """Return what a pickle holds: dicts, lists, tuples, strings, bytes, numbers and None, with numpy arrays as lists.

    Raises InputError for anything else in it, and for a file that is not a pickle."""
    try:
        with path.open("rb") as file:
            return Plain(file, encoding="latin1").load()  # each byte of a Python 2 string becomes a character
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except BROKEN as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path} is refused: {why}; expected lists, strings and numbers in a pickle") from None


class Plain(pickle.Unpickler):
    """An unpickler that knows the names in `ADMITTED` and nothing else."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return the stand-in for one of numpy's names. Raises UnpicklingError for any other name."""
        found = ADMITTED.get((module_name.replace("numpy.core.", "numpy._core."), global_name))
        if found is None:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which could do anything")
        return found


class Kind:
    """A stand-in for numpy's dtype: numbers, text and bytes of a fixed length, or objects that were unpickled
    already."""

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch(r"[biufUS]\d{1,6}|O\d?", code):
            raise pickle.UnpicklingError(f"it has an array of kind {code!r}")
        self.code, self.order = code, ""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take the byte order; the rest of the state describes fields and alignment."""
        self.order = state[1] if state[1] in ("<", ">") else ""

    def values(self, raw: Any, shape: tuple[int, ...], *, fortran: bool) -> Any:
        """Return nested lists, or one number for an empty shape."""
        if self.code.startswith("O"):
            return list(raw)
        return np.frombuffer(raw, dtype=self.order + self.code).reshape(shape, order="F" if fortran else "C").tolist()


class Numbers(list[Any]):
    """A stand-in for numpy's ndarray: nested lists."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take (version, shape, kind, whether in Fortran's order, bytes)."""
        _, shape, kind, fortran, raw = state
        values = kind.values(raw, shape, fortran=fortran)
        self[:] = values if isinstance(values, list) else [values]


def from_buffer(raw: Any, kind: Kind, shape: tuple[int, ...], order: str) -> Any:
    """Return an array as pickle protocol 5 stores it."""
    return kind.values(raw, shape, fortran=order == "F")


def scalar(kind: Kind, raw: Any) -> Any:
    """Return one number."""
    if kind.code.startswith("O"):
        raise pickle.UnpicklingError("it has a number that is an object")
    return kind.values(raw, (), fortran=False)


ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): Kind,
    ("numpy", "ndarray"): Numbers,
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: Numbers(),  # an empty array, whose state follows
    ("numpy._core.multiarray", "scalar"): scalar,
    ("numpy._core.numeric", "_frombuffer"): from_buffer,
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # bytes as protocols 0 to 2 store them
    ("__builtin__", "bytes"): lambda: b"",  # empty ones
}

NUMBERS: list[tuple[Any, str]] = [
    (Kind, "numpy.dtype"),
    (lambda: Kind("f8"), "numpy.dtypes.Float64DType"),  # as newer pickles name it
    (scalar, "numpy.core.multiarray.scalar"),
    (scalar, "numpy._core.multiarray.scalar"),
]
"""Stand-ins and the names, in numpy 1 and 2, that a checkpoint has where a numpy schedule set its learning rate. They
have the form that `torch.serialization.safe_globals` takes."""
