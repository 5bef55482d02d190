"""The layering rules of docs/design.md: what may import what, and what must not be imported to show a help text."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import crosspref
from crosspref.data.records import Agreement
from crosspref.recipe.files import FOLDER
from crosspref.run.store import Unit

SOURCE = Path(crosspref.__file__).parent
QUICKSTART = FOLDER / "quickstart.yaml"
HEAVY = (
    *("torch", "transformers", "trl", "peft", "datasets", "accelerate", "safetensors", "tokenizers", "matplotlib"),
    *("vllm", "openai", "ray", "deepspeed", "bitsandbytes", "sklearn", "lm_eval"),
)
LAZY_EXCEPTIONS = {("data.sources", "datasets"), ("models.hub", "huggingface_hub"), ("keys", "huggingface_hub")}
"""Heavy imports outside engines/: inside a function, for what only hub ids need."""

LAYERS = (
    ("errors", "escape", "keys", "languages", "paths"),
    ("recipe", "data", "models"),
    ("maths", "protocols", "run"),
    ("stages",),
    ("algorithm",),
    ("engines",),
    ("api",),
    ("reports",),
    ("suites", "lab", "plan"),
    ("commands",),
    ("cli", "__main__"),
)
"""The rooms from the bottom to the top: a module imports from its own layer and from those below it."""


READS = {
    "paths": "the gate: files that are read whole",
    "data.rows": "the gate: rows of any kind of file, and JSON",
    "recipe.files": "the gate: YAML",
    "models.files": "weights, which are hashed, of names that are those of files",
    "models.tokenizers": "vocabularies, which are hashed, of names that are those of files",
    "plan.shapes": "the headers of weights, of a limited length",
    "run.verdicts": "lines of verdicts, after the gate has seen that they are in a file",
    "suites.reward_accuracy.judges": "votes, which are hashed after the gate has read them",
    "run.store": "a run's markers and tables",
    "run.layout": "a run's log",
    "run.log": "what /proc says of GPUs",
    "engines.transformers.models": "/proc/cpuinfo",
    "api": "what a process says that it started itself",
    "suites.judge.judge": "what it has just written",
    "suites.leaderboard": "a file of the package",
    "commands.init": "files of the package",
    "commands.canary": "what it has just written",
}
"""The modules that read or parse by themselves, and what; all others do it through the gate, which has limits."""

READING = {"read_text", "read_bytes", "ParquetFile", "read_table"}
PARSING = {"json.loads", "json.load", "yaml.load", "yaml.safe_load", "torch.load", "pickle.load", "csv.reader"}


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}
MATHS = [name for name in MODULES if name.partition(".")[0] == "maths"]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield what a file imports and whether that is inside a function; type-checking blocks do not run."""

    def walk(node: ast.AST, lazy: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, lazy) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                yield from ((f"{child.module}.{alias.name}", lazy) for alias in child.names)
            yield from walk(child, lazy or isinstance(child, ast.FunctionDef | ast.Lambda))

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


def own_imports(name: str) -> set[str]:
    """Return which of crosspref's modules a module imports, at once or later."""
    found = set()
    for target, _ in imports(MODULES[name]):
        if target.split(".")[0] == "crosspref":
            inside = target.removeprefix("crosspref").lstrip(".")
            found.add(inside if inside in MODULES else inside.rpartition(".")[0])
    return found - {name}


def layer(name: str) -> int:
    room = name.partition(".")[0]
    for number, rooms in enumerate(LAYERS):
        if room in rooms:
            return number
    raise AssertionError(f"{room} has no layer yet: give it one in this test and in docs/design.md")


def heavy_after(code: str) -> list[str]:
    """Run code in a fresh interpreter and return the heavy libraries that it has imported."""
    report = f"import json, sys\n{code}\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def command(*arguments: str) -> str:
    return (
        "from crosspref.cli import main\ntry:\n    code = main("
        f"{list(arguments)!r})\nexcept SystemExit as end:\n    code = end.code\nassert code in (0, None), code"
    )


@pytest.mark.slow
def test_the_probe_sees_a_heavy_import() -> None:
    assert heavy_after("import safetensors") == ["safetensors"]


@pytest.mark.slow
def test_importing_anything_but_engines_is_light() -> None:
    names = [name for name in MODULES if name.startswith(("engines.", "maths.")) is False and name != "__main__"]
    assert len(names) > 60
    lines = [f"import {'.'.join(('crosspref', name)).rstrip('.')}" for name in names]
    public = [f"crosspref.{name}" for name in crosspref.__all__]
    assert heavy_after("\n".join([*lines, *public])) == []


LIGHT = {
    "help": ("--help",),
    "help of a stage": ("score", "--help"),
    "check": ("check", "recipe:quickstart"),
    "plan": ("plan", str(QUICKSTART), "--hardware", "L4x2", "--price", "1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", LIGHT.values(), ids=LIGHT)
def test_commands_that_load_no_model_are_light(arguments: tuple[str, ...]) -> None:
    assert heavy_after(command(*arguments)) == []


@pytest.mark.slow
def test_report_compare_and_verify_are_light(tmp_path: Path) -> None:
    agreement = Unit(tmp_path / "iteration_1" / "agreement" / "crosslingual-multilingual.parquet")
    agreement.write_rows([Agreement(1, "es", "crosslingual", "multilingual", *[0.5] * 3, 1, *[0.5] * 4, 1)], Agreement)
    (tmp_path / "recipe.yaml").write_bytes(QUICKSTART.read_bytes())
    assert heavy_after(command("report", str(tmp_path))) == []
    assert heavy_after(command("compare", str(tmp_path), "--out", str(tmp_path / "table"))) == []
    assert heavy_after(command("verify", str(tmp_path))) == []


def test_what_is_not_there_is_said_as_python_says_it() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = crosspref.nonsense


@pytest.mark.parametrize("name", MODULES)
def test_heavy_libraries_stay_in_engines(name: str) -> None:
    for target, lazy in imports(MODULES[name]):
        library = target.split(".")[0]
        if library not in (*HEAVY, "huggingface_hub") or (lazy and (name, library) in LAZY_EXCEPTIONS):
            continue
        is_engine = name.startswith("engines.")
        assert is_engine or (name.startswith("maths.") and library == "torch"), f"{name} imports {library}"


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name: str) -> None:
    if name == "":
        assert own_imports(name) == set()
        return
    for other in own_imports(name) - {""}:
        assert layer(other) <= layer(name), f"{name} imports {other}, which lies above it"


def test_files_of_others_have_one_way_in() -> None:
    def reads(call: ast.Call) -> bool:
        name = ast.unparse(call.func)
        modes = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
        is_opening = name.endswith("open") and any(mode in ("r", "rb") for mode in modes)
        return is_opening or name in PARSING or (isinstance(call.func, ast.Attribute) and call.func.attr in READING)

    found = set()
    for name, path in MODULES.items():
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        found |= {name for call in calls if reads(call)}
    assert found == set(READS)


def test_maths_knows_nothing_of_the_rest() -> None:
    assert {name: own_imports(name) - set(MATHS) for name in MATHS} == {name: set() for name in MATHS}


def test_no_imports_go_round_in_a_circle() -> None:
    above: list[str] = []
    done: set[str] = set()

    def visit(name: str) -> None:
        assert name not in above, f"a circle: {' -> '.join([*above[above.index(name) :], name])}"
        if name not in done:
            above.append(name)
            for other in sorted(own_imports(name) - {""}):
                visit(other)
            above.pop()
            done.add(name)

    for name in MODULES:
        visit(name)


def test_few_modules_lie_at_the_root() -> None:
    assert len([name for name in MODULES if name and "." not in name and not (SOURCE / name).is_dir()]) <= 10
