"""Where results may be written, known before the work that makes them."""

from __future__ import annotations

import os
from pathlib import Path

from simdino.contracts import InputError


def check_writable(out: Path) -> None:
    """Make the folder of a file to come. Raises InputError where the file cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror or error}") from None
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise InputError(f"--out {out} cannot be written: it is a folder, or lies in one that may not be written to")
