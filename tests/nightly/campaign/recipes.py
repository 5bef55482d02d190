"""Recipes that nobody would write: settings of every kind in every place, YAML of all sorts, and broken bytes."""

import copy
import random
import re
from collections.abc import Iterator
from typing import Any

import yaml

from crosspref.recipe.files import FOLDER, known_recipes, load_recipe
from crosspref.recipe.schema import Recipe

from .cases import Case, examine_here
from .mutate import change_bytes, odd_file, odd_value
from .world import World, judged

PLACE = "PUT-YAML-HERE"
SNIPPETS = [
    *("!!python/object/apply:os.system ['touch stray']", "!!python/name:os.system", "!<tag:yaml.org,2002:int> 1"),
    *("!!int ''", "!!int x", "!!int [1]", "!!float x", "!!float {}", "!!bool maybe", "!!null x"),
    *("!!timestamp 2025-99-99", "!!binary 4pyT", "!!set {a}", "!!set [a]", "!!omap [a]", "!!omap [{a: 1}]"),
    *("!!pairs [a]", "!!pairs {}", "!!map []", "!!seq {}", "!!str {a: 1}", "!!value =", "!x y", "!", "!!"),
    *("&a [*a]", "&a {b: *a}", "*nowhere", "&a", "{<<: &a {<<: *a}}", "{<<: [1]}", "{<<: 1}", "{<<: {a: 1}, a: 2}"),
    *("{a: 1, a: 2}", "{[1]: 2}", "{{a: 1}: 2}", "{? [a, b] : c}", "{~: 1}", "{1: 2, '1': 3}", "{true: 1}"),
    *("{.nan: 1}", ".nan", ".inf", "-.INF", "1e999", "0o17", "0b1", "1:30:00", "1_0", "+.5", "2025-02-30"),
    *("9" * 5000, "[" * 2000, "{a: " * 2000, "[" * 300 + "]" * 300, "- " * 500 + "a", "'", '"', "`x`", "=", "<<"),
    *('"\\x00"', '"\\ud800"', '"\\e[31m"', "|\n  a\n b", ">9\n a", "|+", "[a, b", "{a: b", "a: b: c", "- a", "? a"),
    *("---", "...", "#", "\t", "\x85", "\u2028"),
]  # fmt: skip
AROUND = [
    *("%YAML 9.9\n---\n", "%TAG ! x\n---\n", "\ufeff", "---\n", "\t", "# " + "x" * 100_000 + "\n", "- a\n", "\x00"),
]  # fmt: skip
CHEAP = (
    *("iterations=1", "prompts.limit=1", "sample.n=2", "sample.max_new_tokens=4", "sample.engine=transformers"),
    *("reward.engine=transformers", "translate.max_new_tokens=4", "train.epochs=1", "evaluate.n=1"),
    *("evaluate.limit=1", "evaluate.resamples=10", "resources.process_per_phase=false", "resources.executor=local"),
    "resources.launch=null",
)  # fmt: skip
"""What keeps a run short, whatever else its recipe says."""


class Recipes:
    """What all cases share: every setting, and the recipes from which they begin."""

    COUNT = 1000

    def __init__(self, world: World) -> None:
        self.world = world
        self.settings = dict(_settings())
        self.words = [word for values in self.settings.values() for word in values]
        self.small = world.recipe_content()
        self.bases = [self.small, *(self._shipped(name) for name in known_recipes())]
        self.texts = [(FOLDER / f"{name}.yaml").read_text(encoding="utf-8") for name in known_recipes()]

    def _shipped(self, name: str) -> dict[str, Any]:
        """Return a recipe that extends one that comes with crosspref, with models and prompts that are here."""
        recipe, root = load_recipe(f"recipe:{name}"), self.world.root
        here = {
            ("models", "initial"): "initial",
            ("models", "policy"): "policy",
            ("translate", "model"): "policy",
            ("reward", "reward_model"): "classifier",
            ("prompts", "source"): "prompts.jsonl",
            ("evaluate", "prompts"): "held_out.jsonl",
            ("align_english", "preferences"): "preferences.jsonl",
        }
        content: dict[str, Any] = {"extends": f"recipe:{name}", "languages": ["en", "es"]}
        for (section, key), place in here.items():
            if getattr(getattr(recipe, section), key, None) is not None:
                content.setdefault(section, {})[key] = str(root / place)
        return content

    def __call__(self, case: Case) -> None:
        """Write a recipe, and give it to a command."""
        chance, kind = case.chance, case.chance.randrange(100)
        file, overrides = case.folder / "recipe.yaml", []
        is_small = kind >= 80
        if kind < 12:
            data = change_bytes(chance, _readable_anywhere(chance.choice(self.texts)).encode())
        else:
            content = copy.deepcopy(self.small if is_small else chance.choice(self.bases))
            if kind < 24:
                overrides = [f"--set={key}={_flow(chance, value)}" for key, value in self._changes(chance)]
            else:
                for key, value in self._changes(chance):
                    _put(content, key, value)
            data = _written(chance, content)
        file.write_bytes(data)
        if chance.random() < 0.02:
            odd_file(chance, file)
        self._give(case, file.name, overrides, may_run=is_small)
        case.require_untouched()

    def _give(self, case: Case, file: str, overrides: list[str], *, may_run: bool) -> None:
        """Give a recipe to a command; those that come with crosspref may name models that take long to run."""
        kind = case.chance.randrange(100)
        if kind < 8:
            case.guard()
            case.run("plan", file, *overrides)
        elif kind < 12:
            case.guard("out", "out/*")
            answers = self.world.root / "answers.jsonl"
            case.run(*judged(self.world, "xalpaca", answers, case.folder / "out"), "--with", file, *overrides)
        elif kind < 50 and may_run:
            case.guard("out/*")
            outcome = case.run("run", file, "--out", "out", *overrides, *(f"--set={change}" for change in CHEAP))
            if outcome.code == 1 and "\nPhase " in outcome.output:
                case.counts["stopped in a phase"] += 1
        else:
            case.guard()
            case.run("check", file, *overrides, trouble=examine_here)

    def _changes(self, chance: random.Random) -> Iterator[tuple[str, Any]]:
        """Yield settings and what is to stand there; in many recipes only what is allowed, or nearly so."""
        only_near = chance.random() < 0.4
        for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
            key = chance.choice(list(self.settings))
            kind = chance.randrange(20)
            if only_near or kind < 5:
                key = chance.choice([key for key, near in self.settings.items() if near])
                yield key, chance.choice(self.settings[key])
            elif kind < 12:
                yield key, odd_value(chance)
            elif kind < 14:
                yield key, chance.choice(self.words)
            elif kind < 17:
                yield key, PLACE
            elif kind < 18:
                yield f"{key}.{chance.choice(('x', 'name', ''))}", odd_value(chance)
            else:
                other = (key.upper(), f"{key}s", "extends", "preset", key.partition(".")[0], "")
                yield chance.choice(other), odd_value(chance)


def _settings() -> Iterator[tuple[str, list[Any]]]:
    """Yield every setting of a recipe, section or value, with values that it allows or just does not allow."""
    schema = Recipe.model_json_schema()

    def walk(prefix: str, node: dict[str, Any]) -> Iterator[tuple[str, list[Any]]]:
        parts = [node, *node.get("anyOf", ())]
        names = [part["$ref"].rpartition("/")[2] for part in parts if "$ref" in part]
        parts += [schema["$defs"][name] for name in names]
        values = [
            value for part in parts for value in [*part.get("enum", ()), *([part["const"]] if "const" in part else ())]
        ]
        for part in parts:
            for bound in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
                if bound in part:
                    values += [part[bound] - 1, part[bound], part[bound] + 1]
        if prefix:
            yield prefix, [*values, *([node["default"]] if "default" in node else ())]
        for part in parts:
            for name, inner in part.get("properties", {}).items():
                yield from walk(f"{prefix}.{name}".lstrip("."), inner)

    return walk("", schema)


def _readable_anywhere(text: str) -> str:
    """Return the text of a recipe that comes with crosspref without paths that hold in its own folder alone."""
    return re.sub(r"^extends: (.+)\.yaml$", r"extends: recipe:small/\1", text, flags=re.MULTILINE)


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = content.get(section)
        if not isinstance(inner, dict):
            inner = content[section] = {}
        content = inner
    content[last] = value


def _flow(chance: random.Random, value: Any) -> str:
    """Return a value as the text behind ``--set key=``."""
    text = yaml.dump(value, default_flow_style=True, allow_unicode=True, width=1 << 20).removesuffix("\n...\n")
    return text.strip("\n").replace(PLACE, chance.choice(SNIPPETS))


def _written(chance: random.Random, content: dict[str, Any]) -> bytes:
    """Return a recipe as YAML: as a library writes it, or as hardly anybody would."""
    if chance.random() < 0.1:
        for key in chance.sample(list(content), k=min(2, len(content))):
            content[key] = chance.choice((PLACE, None, [content[key]], str(content[key])))
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=chance.random() < 0.5)
    text = text.replace(PLACE, chance.choice(SNIPPETS))
    kind = chance.randrange(20)
    if kind == 0:
        text = chance.choice(AROUND) + text
    elif kind == 1:
        text += chance.choice(("---\na: 1\n", "...\nx", text, "\x00", "models: {}\n", f"bomb: {_bomb(chance)}\n"))
    elif kind == 2:
        text = text.replace("\n", chance.choice(("\r\n", "\r", "\x85", "\n\n", "\u2028", "\n\t")))
    elif kind == 3:
        text = re.sub(r"\[\]|null|true|en\b", lambda _: _bomb(chance), text, count=1)
    data = text.encode("utf-8", "surrogatepass")
    if kind == 4:
        data = text.encode(chance.choice(("utf-16", "utf-32", "latin-1")), "replace")
    return change_bytes(chance, data) if kind == 5 else data


def _bomb(chance: random.Random) -> str:
    """Return YAML of a few hundred bytes that stands for billions of values."""
    levels = chance.choice((5, 9, 20))
    value = "x"
    parts = []
    for level in range(levels):
        of = ", ".join([value] * 10) if chance.random() < 0.5 else None
        parts.append(f"&l{level} [{of}]" if of else f"&l{level} {{{', '.join(f'k{n}: {value}' for n in range(10))}}}")
        value = f"*l{level}"
    return f"[{', '.join(parts)}]"
