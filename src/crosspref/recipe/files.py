"""Recipes as YAML files: reading, extending, overriding, explaining faults, writing, and listing all settings.

A recipe has layers: the file that it ``extends``, its ``preset``, its own settings, and then the preset and the
settings of ``--set``. Each layer is merged over the previous ones. ``extends`` and ``preset`` are resolved here, so the
resulting recipe has neither.

All faults of a recipe are reported together in one :class:`~crosspref.errors.RecipeError`. Each names the setting, its
value if the setting is known, what is allowed, and the layer that it comes from.
"""

import copy
import difflib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from crosspref.errors import RecipeError, shown
from crosspref.escape import one_line
from crosspref.paths import read_text
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import Settings

PRESETS: dict[str, dict[str, Any]] = {
    # What the paper's released scripts compute. The defaults follow the paper instead.
    "znlp": {
        # The scripts skip the first response token, count the end-of-turn token, and add log p(PAD) in padded rows.
        # They leave out beta, so their alpha is that of the unscaled reward.
        "reward": {"counting": "znlp", "beta": 1.0},
        # They try 0, 0.001 ... 0.999 and take the smallest of the best.
        "length_penalty": {"mode": "grid"},
        # They filter nothing and keep ties, even where the chosen response is the rejected one.
        "select": {"truncated": "keep", "degenerate": "keep", "min_gap": 0.0},
        # They score batches of 3 in file order, and padding depends on the batch, so shards must hold whole batches.
        "resources": {"shard_prompts": 48},
    },
}
"""Presets: settings that belong together, by name."""

_FILE_KEYS = ("extends", "preset")
"""Keys that a recipe file may have, but that are not settings."""

_Layers = Sequence[tuple[str, dict[str, Any]]]
"""The name and content of each layer of a recipe, from the lowest to the highest."""
PREFIX = "recipe:"
FOLDER = Path(__file__).parents[1] / "data" / "recipes"
"""The folder of the recipes that come with crosspref: ``recipe:NAME`` is ``NAME.yaml`` in it."""

_SettingsType = TypeVar("_SettingsType", bound=Settings)

_MOST_BYTES = 2**20
_MOST_VALUES = 100_000
_MOST_LEVELS = 64
_MOST_EXTENDED = 20
"""How much a recipe may hold: bytes of a file, values, values inside one another, and files that extend each other."""

_TOO_DEEP = f"nested more than {_MOST_LEVELS} levels deep"
_MOST_FAULTS = 20
_SHOWN_KEY = 200
"""How many faults a message lists, and how many characters it shows of a key."""


class _Loader(yaml.SafeLoader):
    """Reads YAML 1.2 scalars: ``no`` is Norwegian, not False; ``5e-7`` is a number; ``010`` is ten, not eight.

    Recipes may come from anybody: duplicate keys, keys that are no texts, and tags are errors, and so is what holds too
    much or is nested too deeply.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.values = self.levels = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        self.values += 1
        self.levels += 1
        if getattr(event, "tag", None) is not None:
            raise _yaml_error(f"the tag {shown(event.tag)}: a recipe has no tags", event)
        if self.values > _MOST_VALUES:
            raise _yaml_error(f"more than {_MOST_VALUES:,} values", event)
        if self.levels > _MOST_LEVELS:
            raise _yaml_error(_TOO_DEEP, event)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.levels -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _yaml_error(f"the key {shown(key)} is no text; write it in quotes", key_node)
            if key in keys:
                raise _yaml_error(f"duplicate key {shown(key)}", key_node)
            keys.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node))


def _yaml_error(problem: str, place: Any) -> yaml.MarkedYAMLError:
    """Return the error of an event or a node."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or ``_Loader`` would read as another type."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # In other styles PyYAML writes these line breaks unescaped, and reads them back as spaces.
        style = '"' if set(data) & {"\x85", "\u2028", "\u2029"} else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_NUMBER = re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?([eE][-+]?\d+)?$|^[-+]?\.\d+([eE][-+]?\d+)?$|^[-+]?\.(inf|nan)$")
_Loader.yaml_implicit_resolvers = {}
_Dumper.add_representer(str, _Dumper.represent_str)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
for _tag, _pattern, _first in (
    ("bool", re.compile("^(true|false|True|False)$"), "tfTF"),
    ("int", re.compile(r"^[-+]?\d+$"), "-+0123456789"),
    ("float", _NUMBER, "-+.0123456789"),
    ("null", re.compile("^(null|~|)$"), ["n", "~", ""]),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, list(_first))


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML 1.2 text. ``where`` names it in error messages.

    Raises:
        RecipeError: the text is not valid YAML, has a duplicate key or a tag, or holds too much.
    """
    try:
        content = yaml.load(text, Loader=_Loader)  # noqa: S506 - derives from SafeLoader
        values, levels = _size(content, {})
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number of thousands of digits
        raise RecipeError(f"{where} is not valid YAML: {error}") from None  # it shows a part of the text, as it is
    except RecursionError:
        raise RecipeError(f"{where} is not valid YAML: {_TOO_DEEP}.") from None
    if levels > _MOST_LEVELS:
        raise RecipeError(f"{where} is {_TOO_DEEP}, counted where an alias repeats values.")
    if values > _MOST_VALUES:
        raise RecipeError(f"{where} has more than {_MOST_VALUES:,} values, counted where an alias repeats them.")
    return content


def _size(value: Any, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return how many values there are in a value, and how many stand inside one another, each alias of it counted.

    A long text counts as several. ``known`` has the results by identity.

    Raises:
        ValueError: the value contains itself.
    """
    if not isinstance(value, dict | list):
        return 1 + (len(value) // 100 if isinstance(value, str) else 0), 0
    if id(value) not in known:
        known[id(value)] = 0, 0  # while it is looked at
        inner = [_size(each, known) for each in (value.values() if isinstance(value, dict) else value)]
        count, levels = 1 + sum(size for size, _ in inner), 1 + max((levels for _, levels in inner), default=0)
        known[id(value)] = count, levels
    if known[id(value)] == (0, 0):
        raise ValueError("a value contains itself through an alias")
    return known[id(value)]


def known_recipes() -> list[str]:
    """Return the names of the recipes that come with crosspref."""
    names = (path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))
    return sorted(name for name in names if not name.startswith("distributed/"))  # those configure accelerate


def _locate(name: str | Path, folder: Path | None = None) -> Path:
    """Return the file of a recipe: of ``recipe:NAME``, or of a path, which is relative to ``folder`` if that is given.

    Raises:
        RecipeError: no such recipe comes with crosspref.
    """
    if not str(name).startswith(PREFIX):
        return Path(name) if folder is None else folder / name
    wanted, known = str(name).removeprefix(PREFIX).removesuffix(".yaml"), known_recipes()
    if wanted not in known:
        hint = _did_you_mean(wanted, known)
        raise RecipeError(f"No recipe {shown(wanted)} comes with crosspref; {hint}Known: {', '.join(known)}")
    return FOLDER / f"{wanted}.yaml"


def _did_you_mean(given: object, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(given)[:_SHOWN_KEY], list(known), n=2)
    return f"did you mean {' or '.join(near)}? " if near else ""


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe and apply overrides of the form ``section.key=value``, where the value is YAML.

    Args:
        path: a file, or ``recipe:NAME`` for a recipe that comes with crosspref.
        overrides: the overrides, in their order.

    Raises:
        RecipeError: a file cannot be read, or a setting is unknown, of the wrong type, or contradicts another.
    """
    overrides = overrides or []
    above = _layers_of(overrides)  # before a file is read
    layers = [*_file_layers(_locate(path)), *above]
    return check_settings(Recipe, _merge_with(layers, overrides), str(path), layers)


def _layers_of(overrides: Sequence[str]) -> _Layers:
    """Return the layers of ``--set``: its preset, if it has one, and its settings."""
    changes: dict[str, Any] = {}
    for change in overrides:
        override(changes, change)
    _refuse_extends(changes, "--set")
    return _own_layers(changes, "--set")


def _merge_with(layers: _Layers, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the layers merged. The last one is that of the overrides, which are applied in the given order."""
    content = _merge_all(layers[:-1])
    for change in overrides:
        override(content, change)
    content.pop("preset", None)
    return content


def _file_layers(path: Path, above: tuple[Path, ...] = ()) -> _Layers:
    """Return the layers of a file and of the files that it extends. ``above`` are the files that extend this one."""
    if len(above) > _MOST_EXTENDED:
        raise RecipeError(f"More than {_MOST_EXTENDED} recipes extend each other, from {above[0]} to {above[-1]}.")
    content = _read_mapping(path, f"The recipe {path}" + (f", which {above[-1]} extends," if above else ""))
    if path.resolve() in [extending.resolve() for extending in above]:
        raise RecipeError(f"Recipes extend each other in a circle: {' extends '.join(map(str, (*above, path)))}.")
    layers, base = _own_layers(content, str(path)), content.get("extends")
    if base is None:
        return layers
    if not isinstance(base, str):
        raise _recipe_error(str(path), [("extends", f"must be the path of a recipe file, but it is {shown(base)}")])
    return [*_file_layers(_locate(base, path.parent), (*above, path)), *layers]


def _read_mapping(path: Path, where: str) -> dict[str, Any]:
    try:
        text = read_text(path, _MOST_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{where} cannot be read: {error}") from error
    content = parse_yaml(text, where)
    if not isinstance(content, dict):
        actual = "empty" if content is None else f"a {type(content).__name__}"
        raise RecipeError(f"{where} must be a mapping of sections, but it is {actual}.")
    return content


def load_settings(kind: type[_SettingsType], path: str | Path | None, overrides: list[str]) -> _SettingsType:
    """Read settings other than a recipe from a YAML file, if one is given, and apply overrides as to a recipe.

    Raises:
        RecipeError: the file cannot be read, or settings are invalid; the error lists every fault.
    """
    content = {} if path is None else _read_mapping(Path(path), f"The file {path}")
    for change in overrides:
        override(content, change)
    where = "--set" if path is None else str(path)
    return check_settings(kind, content, where)


def stage_settings(kind: type[_SettingsType], given: dict[str, Any], overrides: Sequence[str]) -> _SettingsType:
    """Return the sections that a single stage reads, from its options and the overrides of ``--set``.

    A preset may be named. Only those of its sections count that the stage reads.

    Raises:
        RecipeError: settings are invalid; the error lists every fault.
    """
    *presets, own = _layers_of(overrides)
    read = [(name, {key: preset[key] for key in preset if key in kind.model_fields}) for name, preset in presets]
    layers = [*read, ("the options and tables", given), own]
    return check_settings(kind, _merge_with(layers, overrides), "The command line", layers)


def _own_layers(content: dict[str, Any], name: str) -> _Layers:
    """Return the layers of one file: its preset, if it has one, and its own settings."""
    preset = content.get("preset")
    own = (name, {key: value for key, value in content.items() if key not in _FILE_KEYS})
    if preset is None:
        return [own]
    if preset not in list(PRESETS):
        hint = _did_you_mean(preset, PRESETS)
        raise _recipe_error(name, [("preset", f"unknown preset {shown(preset)}; {hint}Known: {', '.join(PRESETS)}")])
    return [(f"the preset {preset}", PRESETS[preset]), own]


def _merge_all(layers: _Layers) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, layer in layers:
        try:
            content = merged(content, layer)
        except RecursionError as error:  # a dictionary of Python's
            raise _recipe_error(name, [("", "a section is nested without end")]) from error
    return content


def merged(lower: Any, upper: Any) -> Any:
    """Return ``upper`` merged over ``lower``: sections are merged, everything else is replaced. Changes neither."""
    if not isinstance(upper, dict):
        return copy.deepcopy(upper)
    below = lower if isinstance(lower, dict) else {}
    return copy.deepcopy(below) | {key: merged(below.get(key), value) for key, value in upper.items()}


def override(content: dict[str, Any], change: str) -> None:
    """Apply ``section.key=value`` to a recipe's content.

    Raises:
        RecipeError: ``change`` does not have that form.
    """
    key, equals, value = change.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set must be section.key=value, for example sample.n=4, but it is {shown(change)}.")
    target, said = content, f"--set {key[:_SHOWN_KEY]}"
    *sections, last = key.strip().split(".")
    if len(sections) > _MOST_LEVELS:
        raise RecipeError(f"{said}: the setting is {_TOO_DEEP}.")
    for depth, section in enumerate(sections, start=1):
        if target.get(section) is None:
            target[section] = {}
        if not isinstance(target[section], dict):
            raise RecipeError(f"{said}: {'.'.join(sections[:depth])} is a value, not a section.")
        target = target[section]
    target[last] = parse_yaml(value, said)


def make_recipe(content: dict[str, Any], where: str = "The recipe") -> Recipe:
    """Validate a mapping and return it as a recipe.

    Raises:
        RecipeError: settings are invalid; the error lists every fault.
    """
    _refuse_extends(content, where)
    layers = _own_layers(content, where)
    return check_settings(Recipe, _merge_all(layers), where, layers)


def _refuse_extends(content: dict[str, Any], where: str) -> None:
    if "extends" in content:
        raise _recipe_error(where, [("extends", "is allowed in a recipe file only: its path is relative to that file")])


def check_settings(
    kind: type[_SettingsType], content: dict[str, Any], where: str, layers: _Layers = ()
) -> _SettingsType:
    """Check a mapping and return it as settings; ``where`` names it in errors, ``layers`` say where values come from.

    Raises:
        RecipeError: settings are invalid; the error lists every fault.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        faults: list[tuple[str, str]] = []
        for fault in error.errors(include_url=False):
            message = ""
            if len(faults) < _MOST_FAULTS:
                origin = next((name for name, layer in reversed(layers) if _sets(layer, fault["loc"])), where)
                message = _explain(dict(fault), kind) + (f" (from {origin})" if origin != where else "")
            faults.append((".".join(map(str, fault["loc"])), message))
        raise _recipe_error(where, faults) from error


def _sets(layer: Any, keys: tuple[int | str, ...]) -> bool:
    """Return whether a layer sets this key, or replaces a section that contains it."""
    for key in keys:
        if not isinstance(layer, dict):
            return True
        if key not in layer:
            return False
        layer = layer[key]
    return True


def _recipe_error(where: str, faults: list[tuple[str, str]]) -> RecipeError:
    """Return one error for all faults, each with the setting's key and a message."""
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    lines = [f"  - {one_line(key, 200) or 'the recipe'}: {message}" for key, message in faults[:_MOST_FAULTS]]
    if len(faults) > _MOST_FAULTS:
        lines.append(f"  ... and {len(faults) - _MOST_FAULTS} more")
    return RecipeError("\n".join([f"{where} has {count}:", *lines]), tuple(key for key, _ in faults))


def dump_recipe(recipe: Recipe) -> str:
    """Return the whole recipe, including defaults, as YAML. ``load_recipe`` reads it back as an equal recipe."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def flatten(recipe: Recipe) -> dict[str, Any]:
    """Return the settings as ``{"section.key": value}``."""

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        if isinstance(value, dict):
            return {k: v for key, item in value.items() for k, v in walk(f"{prefix}.{key}".lstrip("."), item).items()}
        return {prefix: value}

    return walk("", recipe.model_dump(mode="json"))


def _explain(fault: dict[str, Any], root: type[Settings]) -> str:
    """Return what is wrong with a setting and what is allowed, from pydantic's description of the fault."""
    if fault["type"] == "extra_forbidden":
        file_keys = _FILE_KEYS if root is Recipe and len(fault["loc"]) == 1 else ()
        known = [*_section_at(fault["loc"][:-1], root).model_fields, *file_keys]
        hint = _did_you_mean(fault["loc"][-1], known)
        return f"unknown setting; {hint}Allowed here: {', '.join(known)}"  # its value may be a key: server.api_key
    if fault["type"] == "missing":
        field = _section_at(fault["loc"][:-1], root).model_fields[str(fault["loc"][-1])]
        return f"is missing. {field.description}"
    if fault["type"] == "model_type":
        settings = ", ".join(_section_at(fault["loc"], root).model_fields)
        return f"must be a section with any of {settings}, but it is {shown(fault['input'])}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return message
    return f"{message}, but it is {shown(fault['input'])} ({type(fault['input']).__name__})"


def describe_settings(kind: type[Settings] = Recipe) -> Iterator[str]:
    """Yield the lines of a commented YAML file that has every setting with its default, such as a recipe."""
    if kind is Recipe:
        yield "# A recipe may also have `extends: FILE` (a path relative to the recipe): it is merged over that recipe."
        yield f"# It may have `preset: NAME`: settings that belong together. Known: {', '.join(PRESETS)}."
    yield from _describe(kind, 0)


def _describe(section: type[Settings], indent: int) -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = _section_of(field)
        yield f"{' ' * indent}# {field.description}"
        if inner is None:
            yield f"{' ' * indent}{name}: {_default(field)}{_choices(field)}"
        else:
            optional = "  # null by default" if field.default is None else ""
            yield f"{' ' * indent}{name}:{optional}"
            yield from _describe(inner, indent + 2)


def _section_at(keys: tuple[int | str, ...], root: type[Settings]) -> type[Settings]:
    """Return the settings class of the innermost section on a path of keys."""
    section = root
    for key in keys:
        field = section.model_fields.get(str(key))
        section = (_section_of(field) if field else None) or section
    return section


def _section_of(field: FieldInfo) -> type[Settings] | None:
    """Return a field's settings class if the field is a section, which may be optional."""
    kinds = [field.annotation, *get_args(field.annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Settings)), None)


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "(required)"
    is_word = field.default is None or isinstance(field.default, bool)
    return json.dumps(field.default) if is_word else str(field.default)


def _choices(field: FieldInfo) -> str:
    for kind in (field.annotation, *get_args(field.annotation)):
        if get_origin(kind) is Literal:
            return f"  # {' | '.join(map(str, get_args(kind)))}"
    return ""
