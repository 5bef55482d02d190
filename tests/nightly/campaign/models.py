"""Model directories that are broken: configurations, tokenizers, templates, weights, adapters, GGUF files."""

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .cases import Case, Outcome, examine_here
from .mutate import change_bytes, change_tree, dump_json, odd_file, odd_value
from .world import World

TEMPLATES = [
    *("", " ", "{{ 1 / 0 }}", "{{ x.y.z }}", "{% if %}", "{% endfor %}", "{{ messages }", "{{", "{# ", "a" * 100_000),
    *("{{ raise_exception('m\x1b[31m') }}", "{% for m in messages %}{{ m.content }}{% endfor %}", "{{ messages[9] }}"),
    *("{% for i in range(10**8) %}{% for j in range(10**8) %}x{% endfor %}{% endfor %}", "{{ 'x' * 10**10 }}"),
    *("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    *("{{ 10**10**8 }}", "{% include 'config.json' %}", "{% import 'os' as os %}", "\x00", "\ud800"),
    *("{{ strftime_now('%' * 999) }}", "{{ messages | tojson }}", "{{ messages[0]['content'] * 5000 }}", "{% break %}"),
    *("{{ cycler() }}", "{{ namespace(a=1).b.c }}", "{% generation %}x{% endgeneration %}", "{{ bos_token * 9 }}"),
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m %}{% endfor %}",
]  # fmt: skip
HEADERS: list[Callable[[random.Random, int], int]] = [
    lambda _, length: length + 1,
    lambda _, length: length - 1,
    lambda _, length: 0,
    lambda _, length: 2**63,
    lambda _, length: 2**64 - 1,
    lambda _, length: 100_000_001,
    lambda chance, length: chance.randrange(2 * length),
]
"""What the length of a safetensors header may be said to be."""

SHARES = (
    *(("config.json", 6), ("tokenizer.json", 4), ("tokenizer_config.json", 3), ("generation_config.json", 3)),
    *(("chat_template.jinja", 5), ("model.safetensors", 5), ("added", 2)),
)
"""The files of a model, and how often each of them is the broken one."""

ADDED = {
    "special_tokens_map.json": {"eos_token": "<|eos|>"},
    "added_tokens.json": {"<|new|>": 9999},
    "model.safetensors.index.json": {"weight_map": {"a": "model.safetensors"}},
    "vocab.json": {"a": 0},
    "preprocessor_config.json": {"image_processor_type": "X"},
    "adapter_config.json": {"peft_type": "LORA"},
    "pytorch_model.bin": "no pickle",
    "modeling_own.py": "import pathlib; pathlib.Path('stray').touch()",
}
"""Files that may lie in a model's directory too."""


class Models:
    """What all cases share: models of several kinds, of which each case breaks a copy."""

    COUNT = 300

    def __init__(self, world: World) -> None:
        self.world = world

    def __call__(self, case: Case) -> None:
        """Break a model; check a recipe that names it and, if it is called ready, let it answer."""
        others = {0: self.gguf, 1: self.adapter, 2: self.sharded}
        change = others.get(case.chance.randrange(10), self.directory)
        model, only_values = change(case)
        case.guard("out.jsonl*")
        role = case.chance.choice(("models.policy", "models.policy", "models.initial"))
        checked = case.run("check", self.world.root / "recipe.yaml", f"--set={role}={model}", trouble=examine_here)
        if checked.code == 0 and role == "models.policy":
            self._answer(case, model, checked, only_values)
        case.require_untouched()

    def _answer(self, case: Case, model: Path, checked: Outcome, only_values: bool) -> None:
        settings = ("sample.n=2", "sample.max_new_tokens=2", "prompts.limit=1", "resources.device=cpu")
        given = ("--prompts", self.world.root / "prompts.jsonl", "--languages", "en", "--out", "out.jsonl")
        answered = case.run("sample", "--model", model, *given, *(f"--set={setting}" for setting in settings))
        is_said = only_values or "is converted, and then examined" in checked.output
        if answered.code == 1 and not is_said:
            case.expect(answered, 0, "`check` says that it is ready")

    def directory(self, case: Case) -> tuple[Path, bool]:
        """Break one or two files of a whole model."""
        model = case.folder / "model"
        shutil.copytree(self.world.root / "policy", model)
        names, weights = zip(*SHARES, strict=True)
        only_values = False
        for name in dict.fromkeys(case.chance.choices(names, weights, k=case.chance.choice((1, 1, 1, 2)))):
            only_values = self._break(case.chance, model, name) or only_values
        return model, only_values

    def _break(self, chance: random.Random, model: Path, name: str) -> bool:
        """Break a file of a model; tell whether only values of weights may have changed, which no header shows."""
        file = model / name
        if name == "added":
            name = chance.choice(list(ADDED))
            content = change_tree(chance, ADDED[name]) if chance.random() < 0.7 else ADDED[name]
            (model / name).write_bytes(dump_json(chance, content))
        elif not file.exists() or chance.random() < 0.08:
            odd_file(chance, file)
        elif name == "model.safetensors":
            return _break_weights(chance, file)
        elif name == "chat_template.jinja":
            text = chance.choice(TEMPLATES)
            whole = file.read_text(encoding="utf-8")
            text = chance.choice((text, whole + text, text + whole))
            file.write_bytes(text.encode("utf-8", "surrogatepass"))
        elif chance.random() < 0.2:
            file.write_bytes(change_bytes(chance, file.read_bytes()))
        else:
            tree = json.loads(file.read_text(encoding="utf-8"))
            for _ in range(chance.choice((1, 1, 2, 4))):
                tree = change_tree(chance, tree, _odd_setting)
            file.write_bytes(dump_json(chance, tree))
        return False

    def sharded(self, case: Case) -> tuple[Path, bool]:
        """Break the index of a model in several files, or take one of them away."""
        chance, model = case.chance, case.folder / "model"
        shutil.copytree(self.world.root / "sharded", model)
        index = model / "model.safetensors.index.json"
        tree = json.loads(index.read_text(encoding="utf-8"))
        parts = sorted(model.glob("model-*.safetensors"))
        kind = chance.randrange(6)
        if kind == 0:
            odd_file(chance, chance.choice(parts))
        elif kind == 1:
            return model, _break_weights(chance, chance.choice(parts))
        elif kind == 2:
            name = chance.choice(list(tree["weight_map"]))
            own = ("pytorch_model.bin", "config.json", parts[0].name, "")
            tree["weight_map"][name] = chance.choice(("../policy/model.safetensors", "/etc/hostname", *own))
        elif kind == 3:
            shutil.copy(parts[0], parts[-1])
        else:
            tree = change_tree(chance, tree)
        index.write_bytes(dump_json(chance, tree))
        return model, False

    def adapter(self, case: Case) -> tuple[Path, bool]:
        """Break an adapter's configuration or weights."""
        chance, model = case.chance, case.folder / "model"
        shutil.copytree(self.world.root / "adapter", model)
        config = model / "adapter_config.json"
        if chance.random() < 0.3:
            return model, _break_weights(chance, model / "adapter_model.safetensors")
        tree = json.loads(config.read_text(encoding="utf-8"))
        tree = change_tree(chance, tree, _odd_setting)
        if isinstance(tree, dict) and chance.random() < 0.2:
            bases = (str(model), "..", "nowhere", "/", str(self.world.root / "plain"), "a/b", None)
            tree["base_model_name_or_path"] = chance.choice(bases)
        config.write_bytes(dump_json(chance, tree))
        return model, False

    def gguf(self, case: Case) -> tuple[Path, bool]:
        """Break a GGUF file: its header, its length, or anything else."""
        chance, file = case.chance, case.folder / "model.gguf"
        data = (self.world.root / "converted.gguf").read_bytes()
        kind = chance.randrange(4)
        if kind == 0:
            data = data[: chance.choice((0, 4, 23, 24, 100, len(data) // 2, len(data) - 1))]
        elif kind == 1:
            place = chance.choice((4, 8, 16))  # version, tensors, keys
            data = data[:place] + struct.pack("<Q", chance.choice((0, 1, 7, 2**31, 2**63))) + data[place + 8 :]
        elif kind == 2:
            head = chance.choice((200, 5000))
            data = change_bytes(chance, data[:head]) + data[head:]
        file.write_bytes(data if kind < 3 else change_bytes(chance, data))
        return file, kind == 3


def _odd_setting(chance: random.Random) -> Any:
    """Return an odd value, more often than elsewhere one that is possible at first sight."""
    if chance.random() < 0.5:
        return chance.choice(
            (0, 1, 2, 3, 7, 33, 64, -1, 10**6, 10**9, 0.5, None, "float16", "eager", "llama", "GPT2Config", [1])
        )
    return odd_value(chance)


def _break_weights(chance: random.Random, file: Path) -> bool:
    """Break a safetensors file; tell whether only values changed."""
    data = file.read_bytes()
    [length] = struct.unpack("<Q", data[:8])
    header, values = data[8 : 8 + length], data[8 + length :]
    kind = chance.randrange(6)
    if kind == 0:
        data = struct.pack("<Q", chance.choice(HEADERS)(chance, length)) + header + values
    elif kind == 1:
        data = data[: chance.choice((0, 1, 8, 9, length, 8 + length, len(data) - 500, len(data) - 1))]
    elif kind == 2:
        data += chance.choice((b"\x00", b"x" * 500, values))
    elif kind == 3:
        place = chance.randrange(len(values))
        values = values[:place] + chance.choice((b"\xff" * 8, b"\x00" * 400, chance.randbytes(64))) + values[place:]
        data = data[: 8 + length] + values[: len(data) - 8 - length]
    else:
        changed = json.dumps(change_tree(chance, json.loads(header), _odd_setting), default=str).encode()
        data = struct.pack("<Q", len(changed)) + changed + values
    file.write_bytes(data)
    return kind == 3
