"""Readers against what hypothesis draws, which makes an example that fails as small as it can."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from crosspref.data.messages import read_instruction
from crosspref.data.preferences import load_preferences
from crosspref.data.prompts import load_prompts
from crosspref.data.records import Pair, Prompt, Response, Score, Translation
from crosspref.data.rows import READERS
from crosspref.data.tables import read_rows
from crosspref.errors import CrossprefError
from crosspref.recipe.files import load_recipe, make_recipe, override, parse_yaml
from crosspref.recipe.sections import PromptSettings
from crosspref.run.verdicts import VerdictLog

from .mutate import NUMBERS, TEXTS, as_json

if TYPE_CHECKING:  # `tests/unit/test_readers.py` has no use for what cases import
    from .cases import Case
    from .world import World

EXAMPLES = 50
SCALARS = st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.sampled_from(TEXTS) | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
WORDS = ("id", "prompt_id", "language", "en", "es", "pt_BR", "prompt", "text", "messages", "chosen", "rejected")
FIELDS = ("sample", "token_ids", "finish_reason", "seed", "reward", "characters", "implicit_reward", "role", "content")
COLUMNS = st.sampled_from((*WORDS, *FIELDS)) | st.text(max_size=4)
ROWS = st.lists(st.dictionaries(COLUMNS, VALUES, max_size=6), max_size=4)
MESSAGES = st.lists(st.fixed_dictionaries({"role": SCALARS, "content": VALUES}) | VALUES, max_size=4)
BYTES = st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
RECIPES = st.dictionaries(st.sampled_from(("models", "languages", "prompts", "sample", "train")) | COLUMNS, VALUES)


class Readers:
    """Each case is one reader and one kind of input, with many examples."""

    COUNT = 60

    def __init__(self, world: "World") -> None:
        self.world = world

    def __call__(self, case: "Case") -> None:
        """Draw many examples for one of the readers."""
        name = list(READING)[case.number % len(READING)]
        case.guard("input.*", ".hypothesis/*")
        check = partial(read_examples, name, case.folder, EXAMPLES, case.chance.getrandbits(32))
        case.call(check, f"readers: {name}, {EXAMPLES} examples")
        case.counts["examples"] += EXAMPLES
        case.require_untouched()


def read_examples(name: str, folder: Path, count: int, drawn_from: int) -> None:
    """Draw so many examples for a reader, which may raise nothing but the package's own errors."""
    strategy, read = READING[name]

    @seed(drawn_from)
    @settings(max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def check(value: Any) -> None:
        try:
            read(folder, value)
        except CrossprefError as error:
            str(error)

    check()


_KINDS = (Prompt, Response, Translation, Score, Pair)


def _write(folder: Path, name: str, content: bytes) -> Path:
    file = folder / name
    file.write_bytes(content)
    return file


def _rows(folder: Path, rows: list[dict[str, Any]]) -> Path:
    return _write(folder, "input.jsonl", b"".join(as_json(row) + b"\n" for row in rows))


def _read_bytes(ending: str, folder: Path, content: bytes) -> None:
    file = _write(folder, f"input{ending}", content)
    load_prompts(PromptSettings(source=str(file)), ["es"])


def _read_prompts(folder: Path, rows: list[dict[str, Any]]) -> None:
    load_prompts(PromptSettings(source=str(_rows(folder, rows)), on_problem="drop"), ["es"])


def _read_preferences(folder: Path, rows: list[dict[str, Any]]) -> None:
    load_preferences(str(_rows(folder, rows)))


def _read_table(kind: type, folder: Path, rows: list[dict[str, Any]]) -> None:
    read_rows(_rows(folder, rows), kind)


def _read_recipe(folder: Path, content: bytes) -> None:
    load_recipe(_write(folder, "input.yaml", content))


def _override(_: Path, texts: tuple[str, str]) -> None:
    content: dict[str, Any] = {"sample": {"n": 4}, "languages": ["en"]}
    override(content, "=".join(texts))


def _read_verdicts(folder: Path, value: Any) -> None:
    content = value if isinstance(value, bytes) else as_json(value)
    VerdictLog.open(_write(folder, "input.jsonl", content), writable=False)


READING: dict[str, tuple[st.SearchStrategy[Any], Callable[[Path, Any], object]]] = {
    **{f"a {ending} of bytes": (BYTES, partial(_read_bytes, ending)) for ending in READERS},
    "rows as prompts": (ROWS, _read_prompts),
    "rows as preferences": (ROWS, _read_preferences),
    **{f"rows as {kind.__name__}": (ROWS, partial(_read_table, kind)) for kind in _KINDS},
    "messages": (MESSAGES | VALUES, lambda _, value: read_instruction(value)),
    "a recipe": (RECIPES, lambda _, content: make_recipe(content)),
    "YAML": (st.text(max_size=200), lambda _, text: parse_yaml(text, "It")),
    "a recipe of bytes": (BYTES, _read_recipe),
    "an override": (st.tuples(st.text(max_size=20), st.text(max_size=20)), _override),
    "verdicts": (BYTES | VALUES, _read_verdicts),
}
"""The readers by what they read: what is drawn, and what reads it."""
