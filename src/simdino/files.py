"""How files are written: a place is checked before the work that fills it, content is written aside and renamed, and an
error names the file in one line."""

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from simdino.errors import InputError

WRITING = ".writing-"  # prefix of unfinished files, which a killed process leaves behind


@contextmanager
def written(path: Path, *, option: str | None = None, within: Path | None = None) -> Iterator[Path]:
    """Give the body a temporary path beside `path`; when the body ends, that file replaces `path` in one step. A reader
    or a crash sees the old content or the new one, and a body that fails leaves nothing. The folder is made where it is
    missing; the file's mode follows the umask.

    option: the command-line option that named the file. within: a folder of the same disk that holds the temporary
    file instead, so that what a kill leaves there is found again. Raises as `named_in_errors` does."""
    path = Path(os.path.realpath(path))  # a link stays, its target is replaced
    aside = beside(path if within is None else within / "file")
    with named_in_errors(path, option=option):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.touch()
        try:
            mode = aside.stat().st_mode
            yield aside
            aside.chmod(mode)  # some writers replace the file by one that only its owner may read
            flush(aside)
            aside.replace(path)
        except BaseException:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            raise


def write_aside(path: Path, content: bytes, *, option: str | None = None) -> None:
    """Write these bytes as `written` does."""
    with written(path, option=option) as aside:
        aside.write_bytes(content)


def beside(path: Path) -> Path:
    """Return a new, short name in the folder of a file."""
    return path.with_name(WRITING + secrets.token_hex(8))


def flush(path: Path) -> None:
    """Sync a file to the disk, so that a power failure cannot keep the rename and lose the content."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


@contextmanager
def named_in_errors(path: Path, *, option: str | None = None) -> Iterator[None]:
    """Turn an error of the system about a write into one line with the file and the reason: an InputError that names
    the option where one named the file, otherwise an OSError. Any other error passes."""
    try:
        yield
    except Exception as error:
        why = refusal(error)
        if why is None:
            raise
        line = f"{path} cannot be written: {why}"
        raise (OSError(line) if option is None else InputError(f"{option} {line}")) from None


def refusal(error: BaseException | None) -> str | None:
    """Return the system's reason for a failed write, whatever a library made of it, or None for any other error.
    torch's "unexpected pos" hides it in the error's context, safetensors in its text."""
    while error is not None:
        if isinstance(error, OSError):
            return os.strerror(error.errno) if error.errno else str(error)
        quoted = re.search(r"([^:()]+) \(os error \d+\)", str(error))
        if quoted:
            return quoted[1].strip()
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


@contextmanager
def locked(path: Path, *, doing: str) -> Iterator[bool]:
    """Let no other process do the same while the body runs, by a lock on the file at `path`, which goes when the body
    ends; the system frees the lock when this process dies. Gives whether the system has locks.

    doing: what, such as "training in runs/a". Raises InputError where another process does it."""
    if fcntl is None:
        yield False
        return
    with path.open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, which workers would still hold after a kill
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise InputError(f"another process is {doing}: wait for it, or stop it first") from None
            # a file system without locks gives no answer
        if not is_there(path, file.fileno()):
            raise InputError(f"another process was {doing} a moment ago: try again")
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)


def is_there(path: Path, descriptor: int) -> bool:
    """Return whether an open file still has its name: the process before may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def check_file(path: Path, *, option: str) -> None:
    """Make the folder of a file to be written. Raises InputError where the file cannot be written."""
    if present(path, option=option) and not path.is_file():
        what = "a folder" if path.is_dir() else "not an ordinary file"
        raise InputError(f"{option} {path} cannot be written: it is {what}")
    with named_in_errors(path, option=option):
        make_and_try(path.parent)


def check_folder(path: Path, *, option: str) -> None:
    """Make a folder for files to be written. Raises InputError where it cannot be made or takes no files."""
    with named_in_errors(path, option=option):
        make_and_try(path)


def make_and_try(folder: Path) -> None:
    """Make a folder, and a file in it that is deleted again."""
    folder.mkdir(parents=True, exist_ok=True)
    trial = beside(folder / "file")
    trial.touch()
    trial.unlink()


def check_free_place(folder: Path, *, option: str) -> None:
    """Raise InputError where a folder cannot be made, or an existing one takes no files. It is not made."""
    present(folder, option=option)
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    with named_in_errors(folder, option=option):
        trial = beside(existing / "folder")
        trial.mkdir()
        trial.rmdir()


def present(path: Path, *, option: str) -> bool:
    """Return whether anything is at a path. Raises InputError for an impossible path, such as a name that is too
    long."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise InputError(f"{option} {path} cannot be written: {error.strerror}") from None
    return True
