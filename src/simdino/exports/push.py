"""An exported folder on the Hugging Face hub. Nothing is sent unless a person asks."""

from __future__ import annotations

from pathlib import Path

from simdino.errors import InputError
from simdino.extras import optional
from simdino.text import one_line


def check_name(name: str) -> None:
    """Raise InputError for what cannot be a repository, and where huggingface_hub is missing or nobody has logged
    in."""
    try:
        optional("huggingface_hub.utils").validate_repo_id(name)
        known = name.count("/") == 1
    except ValueError:
        known = False
    if not known:
        raise InputError(f"--push {name!r} must be ORG/NAME, a repository on the Hugging Face hub")
    if optional("huggingface_hub").get_token() is None:
        raise InputError(f"--push {name}: nobody has logged in to the hub here: run `hf auth login`, or set HF_TOKEN")


def push(folder: Path, name: str, *, private: bool) -> str:
    """Upload a folder's files in one commit to a repository, which is made where it is missing, and return its
    address. Raises InputError with the hub's answer where it refuses or cannot be reached, and where a repository that
    is there already is not as private as was asked."""
    try:
        api = optional("huggingface_hub").HfApi()
        made = api.create_repo(name, private=private, exist_ok=True)
        if private and not api.repo_info(name).private:
            raise InputError("the repository is there and everybody sees it")
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export of simdino")
    except Exception as error:  # each version of the hub's library has its own for what goes wrong on the way
        raise InputError(f"--push {name}: nothing was sent: {one_line(str(error))}; {folder} stays") from None
    return str(made)
