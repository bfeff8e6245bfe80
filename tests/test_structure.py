"""The shape of the package: which way imports go, what a class may be, and what is written beside every name."""

import ast
import enum
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import diffrax as dfx
import equinox as eqx
import pytest

import thetadot
from thetadot._lazy import OnDemand
from thetadot.experiments import EXPERIMENTS

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "thetadot"
FILES = sorted(SOURCE.rglob("*.py"))
MODULES = {
    ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES
}

# An import may only go up this list. A folder is one entry: inside it, modules may import one another.
ORDER = [
    "_lazy",
    "_version",
    "_types",
    "arrays",
    "memory",
    "scalars",
    "infinity",
    "slopes",
    "stored",
    "trees",
    "models",
    "data",
    "inits",
    "problem",
    "observables",
    "compile",
    "roots",
    "crossings",
    "solvers",
    "progress",
    "provenance",
    "identity",
    "engine",
    "kinks",
    "trajectory",
    "flow",
    "rest",
    "fate",
    "rescaled",
    "blowup",
    "stages",
    "ladder",
    "descent",
    "laws",
    "scan",
    "theory",
    "experiments",
    "plot",
    "report",
    "cli_check",
    "cli_scan",
    "cli_commands",
    "cli",
    "__main__",
]


COMMON = "thetadot.theory.check"  # what all papers share


def layer(module):
    """The entry of ORDER that a module belongs to: `thetadot.engine.step` to `engine`."""
    return module.split(".")[1]


def imports(module):
    """The modules of the package that a module imports, anywhere in its text."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, [base, node.module]))
            found |= {
                f"{source}.{alias.name}" if f"{source}.{alias.name}" in MODULES else source for alias in node.names
            }
    return {name for name in found if name.split(".")[0] == "thetadot" and name != "thetadot"}


@pytest.mark.parametrize("module", [m for m in MODULES if m != "thetadot"])
def test_imports_go_one_way(module):
    assert layer(module) in ORDER, f"add {layer(module)} to the order"
    place = ORDER.index(layer(module))
    later = {name for name in imports(module) if ORDER.index(layer(name)) > place}
    assert not later, f"{module} imports {later}, which come after it"


def test_the_order_is_the_one_of_the_files_and_the_check_sees_imports():
    """Every entry that is not still to be built exists, and known edges are found."""
    there = {layer(module) for module in MODULES if module != "thetadot"}
    assert there == set(ORDER)
    assert "thetadot.problem" in imports("thetadot.engine.field") and "thetadot.flow" in imports("thetadot.ladder")
    assert "thetadot.stages" in imports("thetadot.cli_commands") and "thetadot.plot" in imports("thetadot.report")


@pytest.mark.parametrize("folder", ["models", "theory", "data"])
def test_siblings_that_stand_for_papers_do_not_import_each_other(folder):
    """One model or paper a file or folder: it is read, and taken away, on its own."""
    common = {("thetadot.data.text", "thetadot.data.chains")}
    for module in MODULES:
        if module.startswith(f"thetadot.{folder}."):
            paper = ".".join(module.split(".")[:3])
            siblings = {(module, name) for name in imports(module) if name.startswith(f"thetadot.{folder}.")}
            siblings -= {pair for pair in siblings if pair[1] == COMMON or (pair[1] + ".").startswith(f"{paper}.")}
            assert siblings <= common


def classes():
    for module in MODULES:
        loaded = importlib.import_module(module) if not module.endswith("__main__") else None
        for value in vars(loaded).values() if loaded else ():
            if inspect.isclass(value) and value.__module__ == module:
                yield value


def test_a_class_is_abstract_or_final():
    """Named Abstract… and subclassed, or neither: nothing concrete of this package is ever a base."""
    found = list(classes())
    assert len(found) > 10
    for cls in found:
        ours = [base for base in cls.__mro__[1:] if base.__module__.split(".")[0] == "thetadot"]
        for base in ours:
            assert base.__name__.startswith("Abstract"), f"{cls.__name__} subclasses the final class {base.__name__}"
        foreign = (eqx.Module, dfx.AbstractSolver, enum.Enum, dict, tuple, object, Exception)
        assert issubclass(cls, foreign)


def test_abstract_classes_are_never_called():
    calls = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                calls.add(name)
    assert not {name for name in calls if name.startswith("Abstract")}
    assert {"Problem", "Request", "Trajectory"} & calls  # the search sees calls


def public_names():
    """Every documented path: the names of the package, and of its public modules where they are defined."""
    for module in MODULES:
        if any(part.startswith("_") for part in module.split(".")[1:]):
            continue
        loaded = importlib.import_module(module)
        yield module, loaded
        for name, value in vars(loaded).items():
            home = getattr(value, "__module__", "")
            if not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value)) and home == module:
                yield f"{module}.{name}", value
                if inspect.isclass(value):
                    methods = [
                        (n, f) for n, f in vars(value).items() if inspect.isfunction(f) and not n.startswith("_")
                    ]
                    yield from ((f"{module}.{name}.{n}", f) for n, f in methods)


def test_every_public_name_has_a_docstring():
    found = dict(public_names())
    assert {"thetadot.flow.gradient_flow", "thetadot.models.attention", "thetadot.trajectory.Trajectory.save"} <= set(
        found
    )
    bare = [name for name, value in found.items() if not inspect.getdoc(value)]
    assert not bare


def test_the_top_of_the_package_is_what_it_promises():
    for name in (
        "Problem",
        "gradient_flow",
        "Trajectory",
        "load",
        "crossing_times",
        "find_stages",
        "Measured",
        "Stage",
    ):
        assert inspect.getdoc(getattr(thetadot, name))
    submodules = {info.name for info in pkgutil.iter_modules(thetadot.__path__)}
    public = {name for name in dir(thetadot) if not name.startswith("_")} - {"jaxtyping"}  # left by the import hook
    explicit = {name for _, name in promised("thetadot")}
    assert public - submodules <= explicit <= public | {"__version__"}  # re-exported by name, for type checkers
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", thetadot.__version__)


def promised(package):
    """(module, name) of everything that type checkers are told a package offers: `from module import name as name`."""
    tree = ast.parse(MODULES[package].read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    nodes = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    found = {(f"{package if node.level else ''}.{node.module or ''}".strip("."), node) for node in nodes}
    return {(module, alias.name) for module, node in found for alias in node.names if alias.name == alias.asname}


LAZY = [module for module, path in MODULES.items() if path.name == "__init__.py" and promised(module)]


@pytest.mark.parametrize("package", LAZY)
def test_what_is_imported_on_demand_is_what_type_checkers_are_told(package):
    """The table of a package and its block for type checkers name the same objects, and `dir` shows them."""
    loaded = importlib.import_module(package)
    names = promised(package)
    code = f"import {package} as package; print(*dir(package))"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {name for _, name in names} <= set(fresh)
    for module, name in names:
        whole = f"{module}.{name}"
        expected = importlib.import_module(whole) if whole in MODULES and name not in dir_of(module) else None
        assert getattr(loaded, name) is (expected or getattr(importlib.import_module(module), name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = loaded.nothing


def test_the_large_packages_are_imported_on_demand():
    assert {"thetadot", *(f"thetadot.{name}" for name in ("data", "models", "theory", "experiments", "plot"))} <= set(
        LAZY
    )


def dir_of(module):
    """Names that a module defines itself."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_a_function_is_not_hidden_by_the_module_of_its_name():
    code = (
        "import thetadot.scan.grid, thetadot.descent, thetadot as td\n"
        "assert callable(td.scan) and callable(td.descent)\n"
        "from thetadot import scan\n"
        "assert scan is td.scan\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_registry_on_demand_is_a_mapping():
    loaded = []
    registry = OnDemand(("a", "b"), lambda name: loaded.append(name) or name.upper())
    assert list(registry) == ["a", "b"] and len(registry) == 2 and "a" in registry and "c" not in registry
    assert not loaded
    assert registry["b"] == registry["b"] == "B" and loaded == ["b"]
    assert dict(registry) == {"a": "A", "b": "B"} and loaded == ["b", "a"]
    with pytest.raises(KeyError):
        registry["c"]


TEST_FILES = {path.stem.removeprefix("test_") for path in (ROOT / "tests").rglob("test_*.py")}


@pytest.mark.parametrize(
    "module", [m for m, path in MODULES.items() if path.name not in ("__init__.py", "__main__.py")]
)
def test_every_module_has_a_test_file(module):
    """`thetadot.engine.step` is tested by a file for itself, or by that of its folder or of what it serves."""
    served = {"engine": "flow", "_types": "structure", "provenance": "flow_outcomes", "progress": "flow_outcomes"}
    served |= {"policy": "choice", "interpolation": "deflated", "_krylov_space": "krylov"}
    served |= {"_deflation": "deflated", "_vector": "hard_fields", "_chebyshev": "stabilized", "base": "common"}
    served |= {"compile": "compile_process", "rescaled": "blowup", "scalars": "refusals"}
    served |= {"fate": "blowup", "infinity": "blowup", "rest": "blowup"}
    served |= {"_lazy": "structure", "_version": "structure", "cli_commands": "cli"}
    parts = module.split(".")[1:]
    names = {part.lstrip("_") for part in parts} | {served[part] for part in parts if part in served}
    assert names & TEST_FILES, f"no test file for {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


def entries(folder):
    """The models or papers of a folder, each a file or a folder of its own."""
    found = {".".join(m.split(".")[:3]) for m in MODULES if m.startswith(f"thetadot.{folder}.")} - {COMMON}
    return {name for name in found if not name.split(".")[-1].startswith("_")}


def test_tables_hold_what_the_registries_hold():
    """README: every model module is in the table of problems, every theory module in that of theorems."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tables = [line for line in readme.splitlines() if line.startswith("|")]
    for folder in ("models", "theory"):
        there = entries(folder)
        named = set(re.findall(rf"`(thetadot\.{folder}\.\w+)`", "\n".join(tables)))
        assert named == there
    for name in EXPERIMENTS:
        assert name in readme
    for folder in ("models", "theory"):
        table = importlib.import_module(f"thetadot.{folder}").__doc__ or ""
        rows = set(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE))
        assert rows == {name.split(".")[-1] for name in entries(folder)}


def test_nothing_happens_on_import():
    """float64 stays as the user has it, nothing is computed or printed, and only what is needed is imported."""
    late = ("matplotlib", "optax", "pandas", "rich", "scipy.optimize", "scipy.stats", "tyro", "xarray", "zarr")
    code = (
        "import sys, thetadot\n"
        "assert 'jax' not in sys.modules and 'numpy' not in sys.modules\n"
        "import jax\n"
        "assert thetadot.Problem and thetadot.gradient_flow and thetadot.crossing_times and thetadot.find_stages\n"
        "assert not jax.config.jax_enable_x64\n"
        f"assert not {{*{late!r}}} & set(sys.modules), {{*{late!r}}} & set(sys.modules)\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends, 'a device was started'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and done.stderr == ""


def test_the_library_never_switches_settings():
    """Only the command line may call jax.config.update."""
    for path in FILES:
        if path.name != "cli.py":
            text = path.read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("jax.config.update", "config.update"):
                    raise AssertionError(f"{path.name}:{node.lineno} changes a setting of JAX")
