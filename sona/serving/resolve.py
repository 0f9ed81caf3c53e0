"""Where a model is loaded from, found out without the libraries that load it: they take seconds to import."""

from __future__ import annotations

import os
from pathlib import Path

from sona import tiny
from sona.errors import ModelNotFoundError


def resolve(model: str | os.PathLike[str]) -> str:
    """A folder or hub id to load from; ``"tiny"`` is the small model that comes with sona.

    Raises:
        ModelNotFoundError: it is a path, and no transformers model's folder is there. Hub ids are not looked up.
    """
    name = os.fspath(model)
    if name == "tiny":
        return tiny.model_path()
    folder = Path(os.path.expanduser(name))  # unlike Path.expanduser, leaves an unknown ~name as it is
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or folder.exists()
    if isinstance(model, str) and name and not looks_like_path:
        return name
    if folder.is_file():
        raise ModelNotFoundError(f"model {name!r} is a file; give the folder with its config.json, a hub id or 'tiny'")
    if not name or not folder.is_dir():
        raise ModelNotFoundError(f"model folder {name!r} does not exist; give a folder, a hub id or 'tiny'")
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"model folder {name!r} has no config.json; give a transformers model's folder")
    return str(folder)
