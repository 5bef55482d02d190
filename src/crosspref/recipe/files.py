"""Recipes as YAML files: reading, extending, overriding, explaining faults, writing.

A recipe comes in layers: the file that it ``extends``, the ``preset`` that it names, its own settings; then the preset
and the settings of ``--set``. Each is merged over the ones before. The two keys are used up here: no recipe has them.

Every fault of a recipe is reported at once, as one :class:`~crosspref.errors.RecipeError` that names the key, the
value, what is allowed, and the layer if it is not the recipe's own.
"""

import copy
import difflib
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from crosspref.errors import RecipeError
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import Settings

PRESETS: dict[str, dict[str, Any]] = {
    # What the paper's released scripts do, where the default here is what the paper says.
    "znlp": {
        # They drop the first response token, count the end-of-turn token, and let log p(PAD) into padded rows. They
        # leave out beta, so their alpha is that of the un-scaled reward.
        "reward": {"counting": "znlp", "beta": 1.0},
        # They try 0, 0.001 ... 0.999, of which the smallest of the best wins.
        "length_penalty": {"mode": "grid"},
        # They filter nothing, and keep ties, down to a chosen response that is the rejected one.
        "select": {"truncated": "keep", "degenerate": "keep", "min_gap": 0.0},
        # They score batches of 3 in file order, and padding depends on what is beside: a shard must hold whole batches.
        "resources": {"shard_prompts": 48},
    },
}
"""Settings that go together, by the name under which ``preset`` asks for them."""

_CONSUMED = ("extends", "preset")
"""The keys that a recipe's content may have and a recipe has not."""

_Layers = list[tuple[str, dict[str, Any]]]
"""What each part of a recipe is called and says, the undermost first."""

_Kind = TypeVar("_Kind", bound=Settings)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: ``no`` is Norwegian and not False, ``5e-7`` is a number, ``010`` is ten and not eight.

    A key given twice is an error.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node))


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or the rules of ``_Loader`` would take for something else than text."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # In any other style PyYAML writes these line breaks as they are, and reads them back as spaces.
        style = '"' if set(data) & {"\x85", "\u2028", "\u2029"} else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_NUMBER = re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?([eE][-+]?\d+)?$|^[-+]?\.\d+([eE][-+]?\d+)?$|^[-+]?\.(inf|nan)$")
_INTEGER = re.compile(r"^[-+]?\d+$")
_Loader.yaml_implicit_resolvers = {}
_Dumper.add_representer(str, _Dumper.represent_str)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
for _tag, _pattern, _first in (
    ("bool", re.compile("^(true|false|True|False)$"), "tfTF"),
    ("int", _INTEGER, "-+0123456789"),
    ("float", _NUMBER, "-+.0123456789"),
    ("null", re.compile("^(null|~|)$"), ["n", "~", ""]),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, list(_first))


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML 1.2 text; ``where`` names it in the error.

    Raises:
        RecipeError: it is not YAML, or gives a key twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - derives from SafeLoader
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an explicit tag such as !!int on what is none
        raise RecipeError(f"{where} is not valid YAML: {error}") from error


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file and apply overrides of the form ``section.key=value`` (the value is YAML).

    Raises:
        RecipeError: a file cannot be read, or a setting is unknown, of the wrong type, or contradicts another.
    """
    changes: dict[str, Any] = {}
    for change in overrides or []:
        override(changes, change)
    _refuse_extends(changes, "--set")
    layers = [*_file_layers(Path(path)), *_own_layers(changes, "--set")]
    content = _merge_all(layers[:-1])
    for change in overrides or []:  # one after the other, as they were given
        override(content, change)
    content.pop("preset", None)
    return _check(content, str(path), layers)


def _file_layers(path: Path, above: tuple[Path, ...] = ()) -> _Layers:
    """Return the layers of a file, and of what it extends; ``above`` are the files that extend it."""
    if path.resolve() in [other.resolve() for other in above]:
        raise RecipeError(f"Recipes extend each other in a circle: {' extends '.join(map(str, (*above, path)))}.")
    content = _mapping(path, f"The recipe {path}" + (f", which {above[-1]} extends," if above else ""))
    own, base = _own_layers(content, str(path)), content.get("extends")
    if base is None:
        return own
    if not isinstance(base, str):
        raise _faulty(str(path), [f"extends: must be the path of a recipe file, but it is {base!r}"])
    return [*_file_layers(path.parent / base, (*above, path)), *own]


def _mapping(path: Path, where: str) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{where} cannot be read: {error}") from error
    content = parse_yaml(text, where)
    if not isinstance(content, dict):
        found = "empty" if content is None else f"a {type(content).__name__}"
        raise RecipeError(f"{where} must be a mapping of sections, but it is {found}.")
    return content


def load_settings(kind: type[_Kind], path: str | Path | None, overrides: list[str]) -> _Kind:
    """Read settings that are no recipe from a YAML file, if there is one, and apply overrides as to a recipe.

    Raises:
        RecipeError: the file cannot be read; or it lists every fault with its key, its value and what is allowed.
    """
    content = {} if path is None else _mapping(Path(path), f"The file {path}")
    for change in overrides:
        override(content, change)
    where = "What was given with --set" if path is None else str(path)
    return _validate(kind, content, where, [])


def _own_layers(content: dict[str, Any], name: str) -> _Layers:
    """Return the preset that a content names, and its own settings."""
    preset = content.get("preset")
    own = (name, {key: value for key, value in content.items() if key not in _CONSUMED})
    if preset is None:
        return [own]
    if preset not in list(PRESETS):
        near = difflib.get_close_matches(str(preset), PRESETS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise _faulty(name, [f"preset: unknown preset {preset!r}; {hint}Known: {', '.join(PRESETS)}"])
    return [(f"the preset {preset}", PRESETS[preset]), own]


def _merge_all(layers: _Layers) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for name, content in layers:
        try:
            merged = _merge(merged, content)
        except RecursionError as error:
            raise _faulty(name, ["a section contains itself, by a YAML alias"]) from error
    return merged


def _merge(lower: Any, upper: Any) -> Any:
    """Return ``upper`` over ``lower``, both untouched: sections are merged, everything else is replaced."""
    if not isinstance(upper, dict):
        return copy.deepcopy(upper)
    below = lower if isinstance(lower, dict) else {}
    return copy.deepcopy(below) | {key: _merge(below.get(key), value) for key, value in upper.items()}


def override(content: dict[str, Any], change: str) -> None:
    """Apply ``section.key=value`` to a recipe's content.

    Raises:
        RecipeError: it is not of that form.
    """
    key, equals, value = change.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set takes section.key=value, for example sample.n=4, but got {change!r}.")
    target = content
    *sections, last = key.strip().split(".")
    for depth, section in enumerate(sections, start=1):
        if target.get(section) is None:
            target[section] = {}
        if not isinstance(target[section], dict):
            raise RecipeError(f"--set {change}: {'.'.join(sections[:depth])} is a value, not a section.")
        target = target[section]
    target[last] = parse_yaml(value, f"--set {change}")


def make_recipe(content: dict[str, Any], where: str = "The recipe") -> Recipe:
    """Check a mapping and return it as a recipe.

    Raises:
        RecipeError: lists every fault with its key, its value and what is allowed.
    """
    _refuse_extends(content, where)
    layers = _own_layers(content, where)
    return _check(_merge_all(layers), where, layers)


def _refuse_extends(content: dict[str, Any], where: str) -> None:
    if "extends" in content:
        raise _faulty(where, ["extends: belongs into a recipe file, to which its path is relative"])


def _check(content: dict[str, Any], where: str, layers: _Layers) -> Recipe:
    return _validate(Recipe, content, where, layers)


def _validate(kind: type[_Kind], content: dict[str, Any], where: str, layers: _Layers) -> _Kind:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            origin = next((name for name, layer in reversed(layers) if _decides(layer, fault["loc"])), where)
            lines.append(_explain(dict(fault), kind) + (f" (from {origin})" if origin != where else ""))
        raise _faulty(where, lines) from error


def _decides(layer: Any, keys: tuple[int | str, ...]) -> bool:
    """Tell whether a layer gives this key, or replaces a section that it is in."""
    for key in keys:
        if not isinstance(layer, dict):
            return True
        if key not in layer:
            return False
        layer = layer[key]
    return True


def _faulty(where: str, lines: list[str]) -> RecipeError:
    count = f"{len(lines)} fault" + ("s" if len(lines) > 1 else "")
    return RecipeError(f"{where} has {count}:\n" + "\n".join(f"  - {line}" for line in lines))


def dump_recipe(recipe: Recipe) -> str:
    """Return the whole recipe, defaults included, as YAML that ``load_recipe`` reads back to an equal recipe."""
    content = recipe.model_dump(mode="json")
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def flatten(recipe: Recipe) -> dict[str, Any]:
    """Return the settings as ``{"section.key": value}``."""

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        if isinstance(value, dict):
            return {k: v for key, item in value.items() for k, v in walk(f"{prefix}.{key}".lstrip("."), item).items()}
        return {prefix: value}

    return walk("", recipe.model_dump(mode="json"))


def _section(keys: tuple[int | str, ...], root: type[Settings]) -> type[Settings]:
    """Return the settings class in which a key path ends."""
    section = root
    for key in keys:
        field = section.model_fields.get(str(key))
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Settings)), section)
    return section


def _explain(fault: dict[str, Any], root: type[Settings]) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        own = _CONSUMED if root is Recipe and len(fault["loc"]) == 1 else ()
        known = [*_section(fault["loc"][:-1], root).model_fields, *own]
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=2)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        return f"{key}: unknown setting (value {fault['input']!r}); {hint}Allowed here: {', '.join(known)}"
    if fault["type"] == "missing":
        field = _section(fault["loc"][:-1], root).model_fields[str(fault["loc"][-1])]
        return f"{key}: is missing. {field.description}"
    if fault["type"] == "model_type":
        settings = ", ".join(_section(fault["loc"], root).model_fields)
        return f"{key}: must be a section with any of {settings}, but it is {fault['input']!r}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{key or 'the recipe'}: {message}"
    return f"{key}: {message}, but it is {fault['input']!r} ({type(fault['input']).__name__})"
