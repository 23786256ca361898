"""Results as files: asked for before the work, and written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from probgen.base.errors import StoreError

if TYPE_CHECKING:
    import xarray

__all__ = ["check_writable", "new_folder", "sync_folder", "unwritable", "write_netcdf", "write_whole"]


def check_writable(path: str | Path, suffix: str = ".nc") -> Path:
    """Make sure, before any work is done for it, that a file can be written.

    Args:
        path: The file.
        suffix: The suffix that it must have.

    Raises:
        StoreError: If the suffix is another one, the path is a folder, or its folder is missing or not writable.
    """
    path = Path(path)
    if path.suffix != suffix:
        raise StoreError(
            f"the output {path} has the suffix {path.suffix!r}, expected {suffix!r}. Write {path.with_suffix(suffix)}."
        )
    if path.is_dir():
        raise StoreError(
            f"the output {path} is a folder. Give the name of a file, for example {path / f'run{suffix}'}."
        )
    if not path.parent.is_dir():
        raise StoreError(
            f"the folder {path.parent} of the output {path.name} does not exist. Make it, or choose another."
        )
    try:
        # Asking the permission bits is not enough: file systems can be read-only or full.
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise StoreError(
            f"the folder {path.parent} cannot be written to ({error.strerror}). Choose another for --out."
        ) from error
    return path


def write_whole(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Replace a file by these bytes: whatever happens, it is the old one or the new one.

    One writer at a time; what a killed one has left (``*.partial``) is overwritten by the next.

    Raises:
        StoreError: If it cannot be written; the old file stays.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise unwritable(path, error) from error


def new_folder(folder: Path) -> None:
    """Make a folder, and those above it; its name is durable.

    Raises:
        StoreError: If it is there already (also under a name that the file system takes for the same, ``A`` for
            ``a``), or cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        sync_folder(folder.parent)
    except OSError as error:
        raise unwritable(folder, error) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable (a file is synced apart from its name). Windows does so by itself."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unwritable(path: Path, error: OSError) -> StoreError:
    """The error for a file that cannot be written."""
    return StoreError(
        f"{path} cannot be written ({error.strerror or error}); what was written before is whole. Free some space, or "
        f"choose another place."
    )


def write_netcdf(tree: xarray.DataTree, path: str | Path) -> Path:
    """Write a tree as netCDF: a reader sees the old file or the new one, never half of it.

    Raises:
        StoreError: If it cannot be written; nothing is left behind.
    """
    path = check_writable(path)
    handle, name = tempfile.mkstemp(suffix=path.suffix, prefix=f".{path.stem}-", dir=path.parent)
    os.close(handle)
    try:
        tree.to_netcdf(name, engine="h5netcdf")
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        Path(name).unlink(missing_ok=True)
    return path


def _umask() -> int:
    """The mask of permissions of new files, which `mkstemp` does not follow."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
