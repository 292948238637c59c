"""ArviZ objects to a file and back: as a DataTree, so that a file does not depend on the ArviZ that wrote it."""

from __future__ import annotations

import errno
import importlib
import os
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_scale.errors import FileFormatError
from pyro_scale.inference_data import LIBRARY, dataset, group_names, storable, wrap

if TYPE_CHECKING:
    import xarray as xr


def write(idata: Any, path: str | os.PathLike[str]) -> None:
    """Write netCDF if `path` ends in .nc, a zarr directory (format 3) if in .zarr; anything else is a FileFormatError.

    A failure leaves what was there; a directory that is not zarr is not ours to delete (FileExistsError).
    """
    import xarray as xr

    engine = _engine(Path(path))
    target = Path(os.path.realpath(path))  # replace what a symbolic link points to, not the link
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"no folder to write {target.name!r} into", str(target.parent))
    tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs=storable(idata.attrs)), **_storable_datasets(idata)})
    with tempfile.TemporaryDirectory(prefix=f".{LIBRARY}-", dir=target.parent) as work:
        new = Path(work, "new")
        if engine == "h5netcdf":
            tree.to_netcdf(new, engine="h5netcdf")
            os.replace(new, target)
            return
        with warnings.catch_warnings():  # without consolidated metadata, `arviz.from_zarr` warns at every reading
            warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
            warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification")  # of text labels
            tree.to_zarr(new, mode="w-", zarr_format=3, consolidated=True)
        _replace_directory(new, target, Path(work, "old"))


def read(path: str | os.PathLike[str]) -> Any:
    """Read what `write` wrote under either ArviZ into memory; anything else at `path` is a FileFormatError."""
    import xarray as xr

    path = Path(path)
    engine = _engine(path)
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, f"no {LIBRARY} file", str(path))
    # A file in zarr's format 2 may name pickle as its codec, and so run code; format 3, which `write` makes, cannot.
    options: dict[str, Any] = {"zarr_format": 3, "consolidated": False} if engine == "zarr" else {}
    try:
        with xr.open_datatree(path, engine=engine, **options) as tree:
            authors = [node.attrs.get("creation_library") for node in (tree, tree.children.get("posterior", tree))]
            if LIBRARY not in authors:
                raise _foreign(path, f"a file with creation_library {authors[0] or authors[1]!r}")
            datasets, attrs = _storable_datasets(tree), storable(tree.attrs)
    except (FileFormatError, MemoryError, PermissionError):
        raise
    except Exception as error:  # h5py, zarr and xarray share no exception for "not this format"
        raise _foreign(path, f"a file that {engine} cannot read ({type(error).__name__}: {error})") from error
    return wrap(datasets, attrs)


def _storable_datasets(idata: Any) -> dict[str, xr.Dataset]:
    groups = {group: dataset(idata, group) for group in group_names(idata)}
    for data in groups.values():
        data.attrs = storable(data.attrs)
    return groups


def _engine(path: Path) -> str:
    engine = {".nc": "h5netcdf", ".zarr": "zarr"}.get(path.suffix)
    if engine is None:
        raise FileFormatError(f"{path}: got the suffix {path.suffix!r}, wanted .nc (netCDF) or .zarr (zarr directory)")
    module = importlib.import_module(engine)  # xarray would call one that is not installed "unrecognized"
    if engine == "zarr" and int(module.__version__.split(".")[0]) < 3:
        raise ImportError(f"{path}: got zarr {module.__version__}, wanted zarr 3 (Python 3.11 or later), or use .nc")
    return engine


def _replace_directory(new: Path, target: Path, aside: Path) -> None:
    if target.exists():
        if not (target / "zarr.json").exists():
            raise FileExistsError(errno.EEXIST, "will not replace what is not a zarr directory", str(target))
        os.replace(target, aside)
    try:
        os.replace(new, target)
    except BaseException:
        if aside.exists():
            os.replace(aside, target)
        raise


def _foreign(path: Path, got: str) -> FileFormatError:
    remedy = f"open files of other programs with arviz.from_{'zarr' if path.suffix == '.zarr' else 'netcdf'}"
    return FileFormatError(f"{path}: got {got}, wanted one written by {LIBRARY}; {remedy}")
