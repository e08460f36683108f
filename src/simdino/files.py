"""Every file that is written: where it may lie, known before the work that makes it; written aside and renamed; and one
line that names it where the system refuses."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from simdino.errors import InputError

WRITING = ".writing-"  # what a kill leaves behind starts with it


@contextmanager
def written(path: Path, *, option: str | None = None) -> Iterator[Path]:
    """A place beside a file, for the body to write its content to, which becomes the file's at once: a reader, or a
    crash, sees the old content or the new, and a body that fails leaves nothing. Its folder is made, its mode is the
    umask's.

    option: what the file was named by. Raises as `named_in_errors` does."""
    path = Path(os.path.realpath(path))  # what a link leads to, not the link
    aside = beside(path)
    with named_in_errors(path, option=option):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.touch()
        try:
            mode = aside.stat().st_mode
            yield aside
            aside.chmod(mode)  # some writers bring a file of their own, which only its owner may read
            flush(aside)
            aside.replace(path)
        except BaseException:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            raise


def write_aside(path: Path, content: bytes, *, option: str | None = None) -> None:
    """`written` with these bytes."""
    with written(path, option=option) as aside:
        aside.write_bytes(content)


def beside(path: Path) -> Path:
    """A new name in the folder of a file, short whatever the file's own."""
    return path.with_name(WRITING + secrets.token_hex(8))


def flush(path: Path) -> None:
    """Down to the disk: a rename must not overtake the content when the power fails."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


@contextmanager
def named_in_errors(path: Path, *, option: str | None = None) -> Iterator[None]:
    """Say of a write that the system refuses, in one line, which file it was of and why: an InputError that names the
    option where the file was named by one, otherwise an OSError. Any other error passes."""
    try:
        yield
    except Exception as error:
        why = refusal(error)
        if why is None:
            raise
        line = f"{path} cannot be written: {why}"
        raise (OSError(line) if option is None else InputError(f"{option} {line}")) from None


def refusal(error: BaseException | None) -> str | None:
    """The system's words for why a write failed, whatever a library made of it; None where the system refused nothing.
    torch's "unexpected pos" hides them in what it was raised during, safetensors in its text."""
    while error is not None:
        if isinstance(error, OSError):
            return os.strerror(error.errno) if error.errno else str(error)
        quoted = re.search(r"([^:()]+) \(os error \d+\)", str(error))
        if quoted:
            return quoted[1].strip()
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def check_file(path: Path, *, option: str) -> None:
    """Make the folder of a file to come. Raises InputError where the file cannot be written."""
    if present(path, option=option) and not path.is_file():
        what = "a folder" if path.is_dir() else "no ordinary file"
        raise InputError(f"{option} {path} cannot be written: it is {what}")
    with named_in_errors(path, option=option):
        path.parent.mkdir(parents=True, exist_ok=True)
        trial = beside(path)
        trial.touch()
        trial.unlink()


def check_folder(path: Path, *, option: str) -> None:
    """Make a folder for files to come. Raises InputError where there can be none, or none that takes files."""
    with named_in_errors(path, option=option):
        path.mkdir(parents=True, exist_ok=True)
        trial = beside(path / "file")
        trial.touch()
        trial.unlink()


def check_free_place(folder: Path, *, option: str) -> None:
    """Raise InputError where a folder that is not there yet could not be made, or takes no files. It is not made."""
    present(folder, option=option)
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    with named_in_errors(folder, option=option):
        trial = beside(existing / "folder")
        trial.mkdir()
        trial.rmdir()


def present(path: Path, *, option: str) -> bool:
    """Whether anything is at a path. Raises InputError for a path that cannot be, such as one with too long a name."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise InputError(f"{option} {path} cannot be written: {error.strerror}") from None
    return True
