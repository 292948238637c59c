"""The ArviZ adapter: arrays -> `InferenceData` (ArviZ 0.x) or `xarray.DataTree` (1.x), both of `xarray.Dataset`s.

Xarray and ArviZ are imported when first used, since that takes as long as to import Pyro.
"""

from __future__ import annotations

import datetime
import importlib
import importlib.metadata
import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import xarray as xr

Arrays = Mapping[str, NDArray[Any]]
Dims = Mapping[str, Sequence[str | None]]
Coords = Mapping[str, ArrayLike]
Attrs = Mapping[str, Any]

LIBRARY = "pyro_scale"
SAMPLE_DIMS = ("chain", "draw")
DATA_GROUPS = (
    "observed_data",
    "constant_data",
    "predictions_constant_data",
    "approximation",
    "prior_approximation",
    "trace",
)
_NONE: Mapping[str, Any] = MappingProxyType({})


def build(groups: Mapping[str, Arrays], *, dims: Dims = _NONE, coords: Coords = _NONE, attrs: Attrs = _NONE) -> Any:
    """Arrays by group and variable -> the object of the installed ArviZ.

    Args:
        groups: group -> variable -> array, with leading axes (chain, draw) except in `DATA_GROUPS`. "/" in a name
            becomes ":", since it separates groups in files; a name that is taken gets "_". Boolean draws become int8.
        dims: variable -> names of its axes after (chain, draw). None or missing: `{variable}_dim_{axis}`. A name that
            cannot be used (twice in a variable, of another size elsewhere, or a variable's) becomes `{name}_dim`.
        coords: dimension -> labels (default 0, 1, ...); not used where the axis has another length.
        attrs: written on the root and every group. None is left out, bool becomes int, and what a netCDF attribute
            cannot hold and give back (dict, list of one, integer beyond 64 bits, ...) becomes JSON.
    """
    attrs = _base_attrs(attrs)
    return wrap(_datasets(groups, dims, coords, attrs), attrs)


def extend(
    idata: Any, groups: Mapping[str, Arrays], *, dims: Dims = _NONE, coords: Coords = _NONE, attrs: Attrs = _NONE
) -> Any:
    """Add groups to `idata` in place, replacing those of the same name, and return it; arguments as for `build`."""
    import xarray as xr

    for group, data in _datasets(groups, dims, coords, _base_attrs(attrs)).items():
        if isinstance(idata, xr.DataTree):
            idata[group] = xr.DataTree(data)
            continue
        if group in idata.groups():
            delattr(idata, group)
        idata.add_groups({group: data})
    return idata


def wrap(datasets: Mapping[str, xr.Dataset], attrs: Attrs) -> Any:
    """Groups as one object of the installed ArviZ."""
    arviz: Any = importlib.import_module("arviz")  # here, since it takes seconds and may warn
    if int(arviz.__version__.split(".")[0]) >= 1:  # 1.x also answers to `InferenceData`, with a warning
        import xarray as xr

        return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **datasets})
    return arviz.InferenceData(attrs=attrs, **datasets)


def group_names(idata: Any) -> list[str]:
    """Names of the groups, without slashes."""
    import xarray as xr

    return list(idata.children) if isinstance(idata, xr.DataTree) else list(idata.groups())


def dataset(idata: Any, group: str) -> xr.Dataset:
    """One group, loaded: a copy of its own that shares the arrays. KeyError if there is no such group."""
    import xarray as xr

    if group not in group_names(idata):
        raise KeyError(f"no group {group!r}, there are {group_names(idata)}")
    found = idata[group]
    data: xr.Dataset = found.to_dataset() if isinstance(found, xr.DataTree) else found.copy()
    return data.load()


def variable_names(sites: Collection[str]) -> dict[str, str]:
    """Site -> the variable that holds it in a group with these sites."""
    names: dict[str, str] = {}
    for site in sorted(sites, key=lambda site: "/" in site):  # a plain name goes first, and so keeps itself
        name = site.replace("/", ":")
        while name in {*SAMPLE_DIMS, *names.values()}:
            name += "_"
        names[site] = name
    return names


def _datasets(groups: Mapping[str, Arrays], dims: Dims, coords: Coords, attrs: Attrs) -> dict[str, xr.Dataset]:
    labels = {dim.replace("/", ":"): np.asarray(values) for dim, values in coords.items()}
    return {group: _dataset(group, arrays, dims, labels, attrs) for group, arrays in groups.items() if arrays}


def _dataset(group: str, arrays: Arrays, dims: Dims, labels: Arrays, attrs: Attrs) -> xr.Dataset:
    import xarray as xr

    sample_dims = () if group in DATA_GROUPS else SAMPLE_DIMS
    names = variable_names(arrays)
    index: dict[str, NDArray[Any]] = {}  # dimension -> labels, of the dimensions met so far
    variables = {}
    for site, array in arrays.items():
        values = _values(group, site, array)
        axes = list(sample_dims)
        for dim, size in zip(sample_dims, values.shape, strict=False):
            index.setdefault(dim, _fitting(size, labels.get(dim)))
        wanted = [*dims.get(site, ()), *[None] * values.ndim]
        for axis, size in enumerate(values.shape[len(sample_dims) :]):
            taken = {*axes, *names.values()}
            axes.append(_add_dimension(wanted[axis], f"{names[site]}_dim_{axis}", size, taken, labels, index))
        variables[names[site]] = (axes, values)
    return xr.Dataset(variables, coords=index, attrs={**attrs, "sample_dims": [*sample_dims]})


def _values(group: str, site: str, array: NDArray[Any]) -> NDArray[Any]:
    values = np.asarray(array)
    if group not in DATA_GROUPS and values.ndim < len(SAMPLE_DIMS):
        raise ValueError(f"{group}[{site!r}] has shape {values.shape}, wanted leading axes (chain, draw)")
    # ArviZ subtracts draws, which NumPy refuses for bool (`summary` in 1.x, `plot_trace` in 0.23). Flags stay.
    are_draws = group not in DATA_GROUPS and not group.endswith("sample_stats")
    return values.astype(np.int8) if are_draws and values.dtype == bool else values


def _add_dimension(
    wanted: str | None, default: str, size: int, taken: Collection[str], labels: Arrays, index: dict[str, NDArray[Any]]
) -> str:
    """Name an axis and label it in `index`: the first of wanted, wanted_dim, default, default_dim, ... that can be."""
    asked = [] if wanted is None else [wanted.replace("/", ":") + end for end in ("", "_dim")]
    for name in itertools.chain(asked, (default + "_dim" * k for k in itertools.count())):
        known = index.get(name, labels.get(name))
        if name not in taken and (known is None or known.shape == (size,)):
            break
    index[name] = _fitting(size, known, labels.get(asked[0]) if asked else None)
    return name


def _fitting(size: int, *labels: NDArray[Any] | None) -> NDArray[Any]:
    return next((values for values in labels if values is not None and values.shape == (size,)), np.arange(size))


def _base_attrs(given: Attrs) -> dict[str, Any]:
    try:
        version: str | None = importlib.metadata.version(LIBRARY)
    except importlib.metadata.PackageNotFoundError:  # a source folder that was not installed
        version = None
    base = {
        "created_at": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        "creation_library_version": version,
        "creation_library_language": "Python",
        "inference_library": LIBRARY,
        "inference_library_version": version,
        "sample_dims": SAMPLE_DIMS,
    }
    return storable({**base, **given, "creation_library": LIBRARY})  # last: readers go by it


def storable(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes that files give back unchanged."""
    return {name: _storable_value(value) for name, value in attrs.items() if value is not None}


def _storable_value(value: Any) -> Any:
    """What netCDF and zarr both give back unchanged; netCDF turns a list of one into its item."""
    value = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
    if isinstance(value, bool):
        return int(value)
    is_list = isinstance(value, list | tuple)
    items = [item.item() if isinstance(item, np.generic) else item for item in value] if is_list else [value]
    kinds = {type(item) for item in items}
    fit = all(-(2**63) <= item < 2**63 for item in items if isinstance(item, int))
    if fit and (kinds <= {str} or kinds <= {int, float}) and not (is_list and len(items) == 1):
        return items if is_list else value
    return json.dumps(value, default=lambda x: x.tolist() if isinstance(x, np.generic | np.ndarray) else str(x))
