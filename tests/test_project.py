"""What holds for the project as a whole: layout, sizes, forbidden words, public names, imports, the wheel."""

import ast
import importlib
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from math import inf
from pathlib import Path
from typing import Any

import pytest

import stratrun

ROOT = Path(__file__).parents[1]
PACKAGES = ("stratrun", "stratrun_ext")
TOP_LEVEL = {
    *("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
    *("stratrun", "stratrun_ext", "tests", "benchmarks", "docs", "examples"),
}
FILE_LINES, EXAMPLE_LINES, PAGE_LINES, README_LINES = 350, 120, 150, 120
FUNCTION_LINES, CLASS_LINES, RUNNER_LINES = 50, 200, 300
CONSTRUCTOR_ARGUMENTS, SEAM_METHODS = 8, 8
SEAMS = ("Accelerator", "Logger", "Metric", "Precision", "Strategy")
MAY_PRINT = ("stratrun/cli/", "stratrun/loggers/console.py", "stratrun/loggers/notebook.py")
MAY_NAME_DISTRIBUTED = (
    *("stratrun/distributed/", "stratrun/strategies/", "stratrun/checkpoint/"),
    *("stratrun/testing/", "stratrun/cli/plan/"),
)
NOBODY_S_NAMES = {"utils", "util", "common", "helpers", "helper", "core", "misc"}
# What a loop, a hook or an example never has to say: words of the layers below them.
LOW_WORDS = re.compile(
    r"torch\.distributed|\branks?\b|_rank|rank_|world_size|\bdevices?\b|_device|device_|\bcuda\b"
    r"|autocast|GradScaler|no_sync|all_reduce|all_gather|barrier|collective|wrapp|unwrap|\.(?-i:module)\b",
    re.IGNORECASE,
)
HEAVY = (
    *("fsspec", "lightning_utilities", "psutil", "rich", "safetensors", "sklearn", "tensorboardX", "yaml"),
    *("torch._dynamo", "torch._inductor", "torch.distributed.checkpoint", "torchmetrics", "stratrun_ext"),
)
EXPORTS = [
    *("ACCELERATORS", "COLLATES", "DATASETS", "HOOKS", "LAUNCHERS", "LOGGERS", "LOOPS", "METRICS", "MODELS"),
    *("OPTIMIZERS", "PARAM_SCHEDULERS", "PRECISIONS", "RUNNERS", "SAMPLERS", "STORAGES", "STRATEGIES"),
    *("TRANSFORMS", "Accelerator", "Accuracy", "BaseLoop", "BaseMetric", "BatchInfo"),
    *("CheckpointCorruptedError", "CheckpointError", "CheckpointNotFoundError", "Config", "ConfigError"),
    *("DataError", "EpochBasedTrainLoop", "Evaluator", "Hook", "IncompatibleError", "Inferencer"),
    *("IterBasedTrainLoop", "Logger", "MeanMetric", "Metric", "MetricError", "MissingArgumentError"),
    *("MissingDependencyError", "ModelError", "NonFiniteError", "Precision", "PredictLoop", "Predictions"),
    *("Registry", "RunContext", "Runner", "StorageError", "Strategy", "StratrunError", "TestLoop"),
    *("TrainState", "UnknownNameError", "ValLoop", "environment_report", "read_predictions"),
]


def repository() -> tuple[str, ...]:
    """Paths of the files that are tracked, or that would be if added now."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return tuple(sorted({line for line in listed.splitlines() if (ROOT / line).is_file()}))


def python_files(*folders: str) -> list[str]:
    return [path for path in repository() if path.endswith(".py") and path.startswith(folders or ("",))]


@cache
def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), path)


def nodes(*folders: str) -> Iterator[tuple[str, ast.AST]]:
    for path in python_files(*folders):
        for node in ast.walk(tree(path)):
            yield path, node


def classes(*folders: str) -> Iterator[tuple[str, ast.ClassDef]]:
    return ((path, node) for path, node in nodes(*folders) if isinstance(node, ast.ClassDef))


def lines_of(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def in_python(code: str) -> list[str]:
    """The words that `code` prints in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_top_level_is_exactly_as_agreed() -> None:
    entries = {path.partition("/")[0] for path in repository()}
    assert {entry for entry in entries if not entry.startswith(".")} == TOP_LEVEL


def test_nothing_is_named_after_nothing() -> None:
    parts = {(path, part) for path in repository() for part in Path(path).with_suffix("").parts}
    assert [path for path, part in sorted(parts) if part.lower() in NOBODY_S_NAMES] == []


def test_no_file_is_too_long() -> None:
    def limit(path: str) -> int:
        if path == "README.md":
            return README_LINES
        if path.startswith("docs/"):
            return PAGE_LINES
        return EXAMPLE_LINES if path.startswith("examples/") else FILE_LINES

    paths = [path for path in repository() if path.endswith((".py", ".md")) and path != "CHANGELOG.md"]
    sizes = {path: len((ROOT / path).read_text().splitlines()) for path in paths}
    long = {path: size for path, size in sizes.items() if size > limit(path)}
    assert not long, long


def test_no_function_is_too_long() -> None:
    functions = ((path, n) for path, n in nodes() if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    long = {f"{path}:{n.name}": lines_of(n) for path, n in functions if lines_of(n) > FUNCTION_LINES}
    assert not long, long


def test_no_class_is_too_long_and_each_says_what_it_is() -> None:
    found = []
    for path, node in classes(*PACKAGES):
        if lines_of(node) > (RUNNER_LINES if node.name == "Runner" else CLASS_LINES):
            found.append(f"{path}:{node.name} has {lines_of(node)} lines")
        if ast.get_docstring(node) is None:
            found.append(f"{path}:{node.name} has no docstring")
    assert not found, "\n".join(found)


def test_constructors_take_few_arguments() -> None:
    found = {}
    for path, node in classes(*PACKAGES):
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and method.name == "__init__" and node.name != "Runner":
                given = method.args
                count = len([*given.posonlyargs, *given.args, *given.kwonlyargs]) - 1
                if count > CONSTRUCTOR_ARGUMENTS:
                    found[f"{path}:{node.name}"] = count
    assert not found, found


def test_a_seam_has_few_methods() -> None:
    found = {}
    for path, node in classes("stratrun/"):
        if node.name in SEAMS:
            # `state_dict` and `load_state_dict` are one question.
            methods = {n.name.removeprefix("load_") for n in node.body if isinstance(n, ast.FunctionDef)}
            methods = {name for name in methods if not name.startswith("_")}
            if len(methods) > SEAM_METHODS:
                found[f"{path}:{node.name}"] = methods
    assert not found, found


def test_no_two_parts_of_the_tests_are_registered_under_one_name() -> None:
    # All tests are of one process: whichever is imported last would be built for the others.
    homes: dict[str, list[str]] = {}
    for path, node in classes("tests/"):
        for decorator in node.decorator_list:
            text = ast.unparse(decorator)
            if ".register_module" in text and node in tree(path).body:
                homes.setdefault(f"{text.partition('.')[0]} {node.name}", []).append(path)
    assert len(homes) > 5
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def test_no_error_hides_its_cause() -> None:
    def hides(node: ast.AST) -> bool:
        return isinstance(node, ast.Raise) and isinstance(node.cause, ast.Constant)

    assert [f"{path}:{node.lineno}" for path, node in nodes() if hides(node)] == []  # type: ignore[attr-defined]


def test_only_the_command_line_and_the_console_print() -> None:
    def prints(node: ast.AST) -> bool:
        return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"

    found = [f"{path}:{node.lineno}" for path, node in nodes(*PACKAGES) if prints(node)]  # type: ignore[attr-defined]
    assert [place for place in found if not place.startswith(MAY_PRINT)] == []


def test_only_the_layers_that_may_name_torch_distributed() -> None:
    names = re.compile(r"torch\.distributed\b|from torch import .*\bdistributed\b")
    paths = [path for path in python_files("stratrun/") if not path.startswith(MAY_NAME_DISTRIBUTED)]
    assert [path for path in paths if names.search(code_of(path))] == []


def code_of(path: str) -> str:
    """The text of a file without comments and docstrings."""
    bare = ast.parse((ROOT / path).read_text())
    for node in ast.walk(bare):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                value.value = ""
    return ast.unparse(bare)


def test_loops_hooks_and_examples_do_not_speak_of_the_layers_below() -> None:
    folders = ("stratrun/loops/", "stratrun/hooks/", "examples/")
    paths = [path for path in repository() if path.startswith(folders)]
    assert len(paths) > 8
    found = []
    for path in paths:
        for number, line in enumerate((ROOT / path).read_text().splitlines(), 1):
            found += [
                f"{path}:{number}: {match[0]!r} in {line.strip()}" for match in LOW_WORDS.finditer(line)
            ]
    assert not found, "\n".join(found)


def test_the_public_names_are_these() -> None:
    # A name more or less is a change that the changelog tells.
    assert stratrun.__all__ == EXPORTS
    assert set(EXPORTS) <= set(dir(stratrun))


def test_every_public_name_can_be_had_and_is_what_its_home_calls_so() -> None:
    for name in EXPORTS:
        value = getattr(stratrun, name)
        home = value.__module__ if hasattr(value, "__qualname__") else "stratrun.registry"
        assert getattr(importlib.import_module(home), name) is value


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Runer'"):
        stratrun.Runer  # noqa: B018


def test_importing_stratrun_its_config_and_its_command_line_imports_no_torch() -> None:
    code = "import sys, stratrun, stratrun.errors, stratrun.config, stratrun.cli\nprint(*sys.modules)"
    loaded = in_python(code)
    assert "stratrun.cli" in loaded
    assert [name for name in loaded if name in {"torch", "numpy", "rich", "tensorboardX"}] == []


def test_importing_the_runner_imports_nothing_heavy() -> None:
    code = (
        "import sys, torch\nbefore = set(sys.modules)\n"
        "from stratrun import Runner\nprint(*sys.modules.keys() - before)"
    )
    loaded = in_python(code)
    assert "stratrun.runner" in loaded
    assert [name for name in HEAVY if name in loaded] == []


def test_importing_stratrun_takes_little_time_beside_torch() -> None:
    code = (
        # A full collection over torch's objects takes 0.1 s and comes when it likes.
        "import gc, time\ngc.disable()\n"
        "start = time.process_time()\nimport torch\ntorch = time.process_time()\n"
        "import stratrun\nalone = time.process_time()\nfrom stratrun import Runner\n"
        "print((alone - torch) / (torch - start), (time.process_time() - torch) / (torch - start))"
    )
    # What is heavy is told by the modules, above; this is to see what is slow in ours, on a busy machine too.
    # The best of three counts, so what is quick enough at once need not be measured again.
    alone = with_runner = inf
    for _ in range(3):
        shares = map(float, in_python(code))
        alone, with_runner = map(min, (alone, with_runner), shares)
        if alone < 0.05 and with_runner < 0.5:
            break
    assert alone < 0.05
    assert with_runner < 0.5


def test_the_wheel_holds_the_two_packages_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        about = {Path(name).name: wheel.read(name).decode() for name in set(wheel.namelist()) - names}
    assert names == {path for path in repository() if path.startswith(("stratrun/", "stratrun_ext/"))}
    assert f"Version: {stratrun.__version__}" in about["METADATA"]
    assert "stratrun = stratrun.cli:main" in about["entry_points.txt"]
    assert about["LICENSE"].startswith("MIT License")


def test_a_source_release_holds_what_is_tracked_and_makes_the_same_wheel(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--directory", str(tmp_path), "--target"]
    subprocess.run([*build, "sdist"], cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as sources:
        names = {name.partition("/")[2] for name in sources.getnames()}
        # Python 3.11 has no filters before 3.11.4, and later versions warn without one.
        safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        sources.extractall(tmp_path, **safely)
    assert names == {*repository(), "PKG-INFO"}
    assert archive.name == f"stratrun-{stratrun.__version__}.tar.gz"
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    subprocess.run([*build, "wheel"], cwd=unpacked, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert inside == {path for path in repository() if path.startswith(("stratrun/", "stratrun_ext/"))}


def test_a_release_says_what_an_index_asks_for() -> None:
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    kinds = {one.partition(" ::")[0] for one in about["classifiers"]}
    wanted = ("Development Status", "Intended Audience", "Operating System", "Programming Language", "Topic")
    assert kinds.issuperset(wanted)
    assert "version" in about["dynamic"] and "version" not in about
    written = [path for path in repository() if path.endswith((".py", ".toml", ".md"))]
    versions = [path for path in written if f'"{stratrun.__version__}"' in (ROOT / path).read_text()]
    assert versions == ["stratrun/__init__.py"]
    assert f"## {stratrun.__version__}" in (ROOT / "CHANGELOG.md").read_text()
