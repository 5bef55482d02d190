"""``crosspref settings``: every setting with its type, default and description."""

import json
from collections.abc import Iterator
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from crosspref.recipe.files import PRESETS
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import Settings


def describe_settings(kind: type[Settings] = Recipe) -> Iterator[str]:
    """Yield the lines of a commented file, such as a recipe, that holds every setting with its default."""
    if kind is not Recipe:
        yield from _describe(kind, 0)
        return
    yield "# A recipe file may also have `extends: FILE` (relative to itself): it is merged over that recipe."
    yield f"# It may have `preset: NAME`, settings that go together, under its own. Known: {', '.join(PRESETS)}."
    yield from _describe(Recipe, 0)


def _describe(section: type[Settings], indent: int) -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = _section_in(field)
        yield f"{' ' * indent}# {field.description}"
        if inner is None:
            yield f"{' ' * indent}{name}: {_default(field)}{_choices(field)}"
        else:
            optional = "  # null by default" if field.default is None else ""
            yield f"{' ' * indent}{name}:{optional}"
            yield from _describe(inner, indent + 2)


def _section_in(field: FieldInfo) -> type[Settings] | None:
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
