"""Recipes as YAML files: reading, overriding, explaining faults, writing.

Every fault of a recipe is reported at once, as one :class:`~crosspref.errors.RecipeError` that names the key, the
value, and what is allowed.
"""

import difflib
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from crosspref.errors import RecipeError
from crosspref.recipe import Recipe, Settings


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
        RecipeError: the file cannot be read, or a setting is unknown, of the wrong type, or contradicts another.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe {path} cannot be read: {error}") from error
    content = parse_yaml(text, f"The recipe {path}")
    if not isinstance(content, dict):
        found = "empty" if content is None else f"a {type(content).__name__}"
        raise RecipeError(f"The recipe {path} must be a mapping of sections, but it is {found}.")
    for change in overrides or []:
        override(content, change)
    return make_recipe(content, str(path))


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
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        lines = [_explain(dict(fault)) for fault in error.errors()]
        count = f"{len(lines)} fault" + ("s" if len(lines) > 1 else "")
        raise RecipeError(f"{where} has {count}:\n" + "\n".join(f"  - {line}" for line in lines)) from error


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


def _section(keys: tuple[int | str, ...]) -> type[Settings]:
    """Return the settings class in which a key path ends."""
    section: type[Settings] = Recipe
    for key in keys:
        field = section.model_fields.get(str(key))
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Settings)), section)
    return section


def _explain(fault: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = _section(fault["loc"][:-1]).model_fields
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=2)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        return f"{key}: unknown setting (value {fault['input']!r}); {hint}Allowed here: {', '.join(known)}"
    if fault["type"] == "missing":
        field = _section(fault["loc"][:-1]).model_fields[str(fault["loc"][-1])]
        return f"{key}: is missing. {field.description}"
    if fault["type"] == "model_type":
        settings = ", ".join(_section(fault["loc"]).model_fields)
        return f"{key}: must be a section with any of {settings}, but it is {fault['input']!r}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{key or 'the recipe'}: {message}"
    return f"{key}: {message}, but it is {fault['input']!r} ({type(fault['input']).__name__})"
