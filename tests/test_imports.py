"""Who imports whom, where PyTorch stays out, and what no file of the tree may contain."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fieldmark"

# The way of an image through the packages: one imports only from those before it (docs/developers/design.md).
ORDER = (
    *("core", "recipes", "models", "data", "audit", "inference", "evaluation", "explanation", "exporters", "training"),
    *("report", "pipeline", "serve", "cli"),
)
TEACHING = "pipeline.teaching"
NO_TORCH = (
    *("core", "recipes", "data.catalog", "data.formats", "data.image", "data.splits", "data.decisions", "data.locate"),
    *("data.readers", "data.cache", "audit.audit", "audit.check", "audit.duplicates", "audit.outliers", "inference"),
    *("serve", "evaluation.results", "explanation.overlay", "pipeline.predict", "pipeline.teach"),
    *(
        f"{TEACHING}.{file.stem}"
        for file in (PACKAGE / "pipeline" / "teaching").glob("[a-z]*.py")
        if file.stem != "features"
    ),
)
"""They never import PyTorch at import time: predicting, serving and auditing work where it is not installed."""


def modules() -> dict[str, Path]:
    """Dotted name below fieldmark -> file; packages by their own name."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:
            found[name] = file
    return found


def imports(file: Path, *, late: bool = True) -> Iterator[str]:
    """Every module that a file imports, dotted; without `late` only what importing the file itself brings in."""

    def look(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{file} imports relatively"
                yield from (f"{child.module}.{alias.name}" for alias in child.names)
            elif not late and _runs_later(child):
                continue
            else:
                yield from look(child)

    yield from look(ast.parse(file.read_text(encoding="utf-8")))


def _runs_later(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def ours(name: str) -> str | None:
    """`fieldmark.data.catalog.read` -> `data.catalog`: the module of ours that the import means, if it is one."""
    first, _, rest = name.partition(".")
    while first == "fieldmark" and rest:
        if rest in MODULES:
            return rest
        rest = rest.rpartition(".")[0]
    return None


def _is_in(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


MODULES = modules()


def test_the_top_of_the_package_is_a_table_of_contents():
    entries = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert entries == {*ORDER, "__init__.py", "sklearn.py", "py.typed"}


@pytest.mark.parametrize("name", MODULES)
def test_a_package_imports_only_from_those_before_it(name: str):
    order = (*ORDER, "sklearn")
    package = name.split(".")[0]
    for imported in filter(None, map(ours, imports(MODULES[name]))):
        other = imported.split(".")[0]
        assert order.index(other) <= order.index(package), f"{name} imports {imported}, which comes after it"


@pytest.mark.parametrize("name", [name for name in MODULES if _is_in(name, TEACHING)])
def test_teaching_imports_only_from_itself_and_from_what_comes_before_the_report(name: str):
    """It lies in `pipeline`, but uses none of the commands there and no page of results."""
    before = ORDER[: ORDER.index("report")]
    for imported in filter(None, map(ours, imports(MODULES[name]))):
        assert _is_in(imported, TEACHING) or imported.split(".")[0] in before, f"{name} imports {imported}"


def test_modules_do_not_import_each_other_in_circles():
    """At import time; what is imported inside a function cannot close a circle."""
    graph = {name: set(filter(None, map(ours, imports(file, late=False)))) for name, file in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"imports in a circle: {' -> '.join([*above, name])}"
        if name not in done:
            for other in sorted(graph[name] - {name}):
                visit(other, (*above, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def _without_torch(name: str) -> bool:
    return any(_is_in(name, part) for part in NO_TORCH)


@pytest.mark.parametrize("name", list(filter(_without_torch, MODULES)))
def test_no_torch_where_images_are_predicted(name: str):
    reached, waiting = set(), [name]
    while waiting:
        here = waiting.pop()
        if here in reached:
            continue
        reached.add(here)
        package = here.rpartition(".")[0]
        for other in [*imports(MODULES[here], late=False), *([f"fieldmark.{package}"] if package else [])]:
            assert not other.split(".")[0].startswith(("torch", "lightning")), f"{name} imports torch through {here}"
            if found := ours(other):
                waiting.append(found)


BLOCKED = """
import sys, json
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "lightning_fabric", "safetensors", "onnx", "sklearn"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Block())
import fieldmark.data.image, fieldmark.inference.classifier
from fieldmark import load
print(json.dumps([row.to_dict() for row in load(sys.argv[1]).predict([sys.argv[2]])]))
assert "torch" not in sys.modules
"""


def test_prediction_runs_where_there_is_no_torch(small_run: Path, small_photos: Path):
    command = [sys.executable, "-W", "error", "-c", BLOCKED, str(small_run), str(small_photos / "disc" / "00.jpg")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert '"label": "disc"' in done.stdout


# ---- what no file may contain


def tracked() -> list[Path]:
    """The files of the tree that git knows or would take."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("needs the git checkout, which this is not")
    return [file for name in done.stdout.split("\0") if name and (file := ROOT / name).is_file()]


def test_no_file_names_a_package_registry():
    # In halves, since this file is one of those that are searched.
    halves = [("pypi.", "org"), ("pythonhosted", ".org"), ("pypi.", "tuna"), ("mirrors.", "aliyun"), ("npmjs.", "org")]
    halves += [("npmjs.", "com"), ("conda.", "anaconda"), ("docker", ".io"), ("ghcr", ".io"), ("index-", "url")]
    halves += [("--extra-", "index"), ("crates", ".io"), ("proxy.", "golang")]
    for file in tracked():
        content = file.read_bytes().lower()
        assert not [host for host in map("".join, halves) if host.encode() in content], file


def test_nothing_is_unpickled():
    for file in tracked():
        if file.suffix != ".py":
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found = {name.split(".")[0] for name in imports(file)}
        assert not found & {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}, file
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            called, given = ast.unparse(call.func), {word.arg: ast.unparse(word.value) for word in call.keywords}
            if called in ("torch.load", "load_state_dict_from_url"):
                assert given.get("weights_only") == "True", f"{file}:{call.lineno}"
            assert given.get("allow_pickle") in (None, "False"), f"{file}:{call.lineno}"
