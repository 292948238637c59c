"""The rules on files and imports, read from the source tree beside this folder, whichever pyro_scale is installed."""

from __future__ import annotations

import ast
import graphlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = {"pyro_scale": "pyro_scale", "models": "pyro_scale.models", "diagnostics": "pyro_scale.diagnostics"}

# A file imports only from files above it. A folder counts as one row: its files may import each other, without a cycle.
ORDER = [
    "types", "tree", "errors", "values", "checks", "schedules", "kinds", "floating", "derivative", "gaussians",
    "curvature", "kernels", "arrays", "datasets", "data", "records", "params", "contraction", "enumeration",
    "bijections", "subsample", "handlers", "first_runs", "orders", "loaders", "plates", "rows", "support", "sites",
    "outputs", "unbounded", "information", "starts", "terms", "compile", "threads", "graph", "in_place", "recorder",
    "tracing", "capture", "cached", "inductor", "native", "inlined", "choice", "keyed", "batches", "hessian",
    "mode", "climbs", "law", "bias", "step_sizes", "spread", "convergence", "superchains", "whitening",
    "conditional", "row_coordinates", "gradient", "local", "pieces", "inputs", "arriving", "held", "progress",
    "moments", "collected", "loop", "blocks", "steps", "draws", "given", "initial", "sample", "pilot",
    "gradient_noise", "dense", "products", "newton_cg", "ascent", "fisher", "seen", "fit", "mean_field", "climber",
    "diagonal", "rowwise", "matrices", "tunable", "warmup", "other_rows", "split", "prediction", "predict",
    "linear", "linearized", "predictions", "inference_data", "stored_gaussians", "storage", "groups", "contents",
    "temperature", "health", "mixing", "assessment", "posterior", "outcome", "standing_priors", "files",
    "module_checks", "parameter_priors", "module_models", "asked", "descent", "at_mode", "fit_checks",
    "laplace_fit", "approximate", "evidence", "evidence_climb", "empirical_bayes", "inference", "__init__",
    "__main__",
]  # fmt: skip
WITHOUT_PYRO = ORDER[: ORDER.index("kernels") + 1]
# they load models and diagnostics, which sit on top of everything else
MAY_IMPORT_UPWARDS = {"pyro_scale", "pyro_scale.__main__"}

# Unpickling runs whatever the file says; a seed set globally changes the user's own random numbers.
BANNED = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "torch.load"}
GLOBAL_SEEDS = {
    "torch.manual_seed", "torch.seed", "torch.random.manual_seed", "torch.random.seed", "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all", "torch.mps.manual_seed", "torch.default_generator.manual_seed",
    "pyro.set_rng_seed", "pyro.util.set_rng_seed", "random.seed", "numpy.random.seed",
}  # fmt: skip
MAY_SEED = {"pyro_scale.handlers"}  # runs a model, which draws globally, inside a fork of the generators

DISTRIBUTIONS = {"pyro": "pyro-ppl"}  # where the name to import is not the name to install


def module_name(path: Path) -> str:
    """The name a source file is imported by: models/glm.py is pyro_scale.models.glm."""
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([FOLDERS[folder], *rest]).removesuffix(".__init__")


PATHS = {module_name(path): path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8"), str(path)) for name, path in PATHS.items()}
every_module = pytest.mark.parametrize("name", PATHS)


def is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below, without what only a type checker sees."""
    yield node
    guarded = isinstance(node, ast.If) and is_type_checking(node.test)
    for child in node.orelse if isinstance(node, ast.If) and guarded else ast.iter_child_nodes(node):
        yield from run_time_nodes(child)


def bindings(name: str, tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(name in the file, dotted name of what it is) of every import that happens at run time."""
    package = name if PATHS[name].stem == "__init__" else name.rpartition(".")[0]
    for node in run_time_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            module = ".".join([*above, *filter(None, [node.module])]) if node.level else str(node.module)
            for alias in node.names:
                yield alias.asname or alias.name, f"{module}.{alias.name}"


def own_module(dotted: str) -> str:
    """The longest beginning of a dotted name that is a module of ours; otherwise the name unchanged."""
    parts = dotted.split(".")
    beginnings = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((beginning for beginning in beginnings if beginning in PATHS), dotted)


def imported_modules(name: str) -> set[str]:
    return {own_module(dotted) for _, dotted in bindings(name, TREES[name])}


def row(module: str) -> str:
    """The row of ORDER that a module of pyro_scale belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def part(module: str) -> str:
    """Which of the three folders a module of ours stands in."""
    return PATHS[module].relative_to(ROOT).parts[0]


def used_names(name: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported or reached as an attribute of an import."""
    known = dict(bindings(name, TREES[name]))
    yield from ((0, dotted) for dotted in known.values())
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Attribute):
            first, _, rest = ast.unparse(node).partition(".")
            yield node.lineno, f"{known.get(first, first)}.{rest}"


@every_module
def test_imports_go_one_way(name: str) -> None:
    if part(name) == "pyro_scale":
        assert row(name) in ORDER, f"{name} has no place in ORDER: insert it where the design has it"
    for imported in imported_modules(name) & PATHS.keys():
        if part(name) != "pyro_scale":
            assert part(imported) in {"pyro_scale", part(name)}, f"{name} imports {imported}, its neighbour"
        elif name not in MAY_IMPORT_UPWARDS:
            assert part(imported) == "pyro_scale", f"{name} imports {imported}, which sits on top of it"
            assert imported != name.rpartition(".")[0], f"{name} imports the folder that re-exports it"
            above = ORDER.index(row(imported)) < ORDER.index(row(name))
            assert above or row(imported) == row(name), f"{name} imports {imported}, which is not above it"


def test_no_import_cycle() -> None:
    graph = {name: imported_modules(name) & PATHS.keys() - {name} for name in PATHS if name not in MAY_IMPORT_UPWARDS}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the files


@every_module
def test_imports_are_declared(name: str) -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    requirements = PROJECT["project"]["dependencies"] + extras["nutpie"] + extras["zarr"] + extras["examples"]
    declared = {re.split(r"[^\w-]", requirement)[0] for requirement in requirements}
    roots = {dotted.split(".")[0] for _, dotted in bindings(name, TREES[name])}
    roots -= sys.stdlib_module_names | {"pyro_scale"}
    undeclared = {DISTRIBUTIONS.get(root, root) for root in roots} - declared
    assert not undeclared, f"{name} imports {undeclared}, which pyproject.toml does not ask for"


@pytest.mark.parametrize("name", [name for name in PATHS if part(name) == "pyro_scale" and row(name) in WITHOUT_PYRO])
def test_kernels_know_nothing_of_pyro(name: str) -> None:
    assert "pyro" not in {dotted.split(".")[0] for _, dotted in bindings(name, TREES[name])}


def test_packages_are_listed() -> None:
    """The explicit list silently drops a folder that it does not name."""
    found = {name for name, path in PATHS.items() if path.stem == "__init__"}
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


@every_module
def test_nothing_hides_its_module(name: str) -> None:
    """`from pyro_scale.infer import infer` in `__init__.py` would make the module pyro_scale.infer unreachable."""
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    defined = {node.name for node in TREES[name].body if isinstance(node, definitions)}
    assert name.rpartition(".")[2] not in defined, f"{name} defines what is named like itself"
    if PATHS[name].stem == "__init__":
        for bound, dotted in bindings(name, TREES[name]):
            hidden = f"{name}.{bound}"
            assert hidden not in PATHS or dotted == hidden, f"{name} re-exports {dotted} over the module {hidden}"


@every_module
def test_no_pickle_and_no_global_seed(name: str) -> None:
    banned = BANNED if name in MAY_SEED else BANNED | GLOBAL_SEEDS
    for line, dotted in used_names(name):
        assert not {dotted, dotted.split(".")[0]} & banned, f"{PATHS[name]}:{line} uses {dotted}"


def test_no_file_is_named_after_nothing() -> None:
    folders = [*FOLDERS, "tests", "examples"]
    names = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    nameless = [path for path in names if re.fullmatch(r"_?(utils?|helpers?|misc|common)", path.stem)]
    assert not nameless, f"name these after the one thing they hold: {nameless}"


@pytest.mark.parametrize(
    "path", [*PATHS.values(), *sorted((ROOT / "examples").rglob("*.py"))], ids=lambda path: path.stem
)
def test_files_stay_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 260, f"{path} has {lines} lines: split it, and name both halves"
