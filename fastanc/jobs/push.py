"""An exported folder as a repository of the Hugging Face hub (`fastanc export --push NAME`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastanc.jobs.classifier import brief
from fastanc.quoting import shown


def hub_api(name: str) -> Any:
    """Return who speaks to the hub; ValueError for a name that no repository has, or without its library."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import HFValidationError, validate_repo_id
    except ImportError as error:
        raise ValueError("--push needs huggingface_hub: pip install 'fastanc[hf]'") from error
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"--push {shown(name)} is no repository's name: write USER/NAME") from error
    return HfApi()


def push(api: Any, name: str, folder: Path, files: Sequence[str]) -> str:
    """Upload some files of a folder as one commit and return the repository's address.

    A repository that is not there is made, private: nobody has read its card yet.
    Raises ValueError in one sentence where the hub refuses, or is not reached; the folder stays.
    """
    try:
        place = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=place.repo_id,
            folder_path=str(folder),
            allow_patterns=list(files),
            commit_message="Upload by fastanc export",
        )
    except Exception as error:  # its own kinds, those of its transport, and a missing token
        raise ValueError(
            f"--push {name}: the hub did not take {folder} ({brief(error)}): mend it (`hf auth login`) and run the"
            " command again"
        ) from error
    return str(place)
