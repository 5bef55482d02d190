"""What ``crosspref check`` finds before a run: missing libraries, silent servers, absent devices, models too large."""

import importlib.util
import json
import re
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from http_server import JsonHandler, LocalServer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from crosspref.api import align, examine
from crosspref.commands.check import check_recipe
from crosspref.errors import CrossprefError, MissingLibraryError, ModelError, RecipeError, ServerError
from crosspref.recipe.files import load_recipe

Models = dict[str, tuple[Path, Path]]


class ListOfModels(JsonHandler):
    """Answers as a model server that is asked for its models."""

    def get(self) -> None:
        self.send_json(200, {"object": "list", "data": [{"id": "pi_0", "object": "model"}]})


@pytest.fixture
def server() -> Iterator[str]:
    with LocalServer(ListOfModels) as local:
        yield local.url


@pytest.fixture
def recipe_file(tiny_models: Models, tmp_path: Path) -> str:
    initial, policy = tiny_models["llama"]
    (tmp_path / "prompts.jsonl").write_text('{"prompt_id": "a", "en": "Why?", "es": "¿Por qué?"}\n', encoding="utf-8")
    content = {
        "models": {"initial": str(initial), "policy": str(policy)},
        "languages": ["en", "es"],
        "prompts": {"source": str(tmp_path / "prompts.jsonl")},
        "sample": {"max_new_tokens": 64},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(content), encoding="utf-8")
    return str(tmp_path / "recipe.yaml")


def check(recipe: str, *overrides: str) -> list[str]:
    return list(check_recipe(load_recipe(recipe, list(overrides)), apart=False))


def test_a_recipe_without_faults_is_ready(recipe_file: str) -> None:
    *lines, last = check(recipe_file)
    assert last == "ok    ready"
    assert all(line.startswith(("ok    ", "note  ")) for line in lines)


@pytest.mark.parametrize(
    ("library", "override"),
    [
        ("vllm", "sample.engine=vllm"),
        ("openai", "sample.engine=server"),
        ("openai", "reward.engine=server"),
        ("ray", "resources.executor=ray"),
        ("bitsandbytes", "train.lora={bits: 4}"),
    ],
)
def test_the_library_of_a_chosen_engine_is_missing(
    recipe_file: str, library: str, override: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == library else find_spec(name))
    with pytest.raises(MissingLibraryError) as caught:
        check(recipe_file, override)
    assert caught.value.given[0] == library


def test_a_gguf_model_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find_spec(name))
    with pytest.raises(MissingLibraryError) as caught:
        check("recipe:quickstart")
    assert caught.value.given[0] == "gguf"


def test_a_server_that_does_not_answer(recipe_file: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ServerError, match=f"127.0.0.1:{port}"):
        check(recipe_file, "sample.engine=server", f"server.url=http://127.0.0.1:{port}/v1")


def test_a_server_that_lacks_a_model(recipe_file: str, server: str) -> None:
    lines = check(recipe_file, "sample.engine=server", f"server.url={server}")
    assert f"ok    pi_0 is served at {server}" in lines
    with pytest.raises(ServerError, match="pi_I"):
        check(recipe_file, "sample.engine=server", "reward.engine=server", f"server.url={server}")


def test_a_server_need_not_hold_yet_what_stage_0_makes(recipe_file: str, server: str, tmp_path: Path) -> None:
    preferences = tmp_path / "preferences.jsonl"
    preferences.write_text('{"prompt": "Why?", "chosen": "So.", "rejected": "No."}\n', encoding="utf-8")
    stage_0 = ("models.policy=null", f"align_english.preferences={preferences}", "server.names={pi_0: later}")
    assert check(recipe_file, *stage_0, "sample.engine=server", f"server.url={server}")[-1] == "ok    ready"


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there(recipe_file: str, device: str) -> None:
    with pytest.raises(RecipeError, match=f"resources.device: {device}"):
        check(recipe_file, f"resources.device={device}")


def test_a_model_whose_weights_do_not_fit(recipe_file: str, tiny_models: Models, tmp_path: Path) -> None:
    """A terabyte of weights, which take no room on the disk."""
    large = write_sparse(tiny_models["llama"][1], tmp_path / "large", hidden_size=1 << 22, num_hidden_layers=100)
    with pytest.raises(ModelError, match="weights alone"):
        check(recipe_file, f"models.policy={large}", "resources.device=cpu")
    served = ("sample.engine=server", "reward.engine=server", "resources.launch=torchrun")
    with pytest.raises(ServerError):  # here the model is on no single device, so its size is no fault
        check(recipe_file, f"models.policy={large}", *served, "server.url=http://127.0.0.1:9/v1")


def write_sparse(source: Path, target: Path, **changes: int) -> Path:
    """Copy a model whose configuration is another, with the headers of its weights and nothing behind them."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    (target / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(target), dtype=torch.float32)
    (target / "model.safetensors").unlink()
    files = {name: f"model-{number}.safetensors" for number, name in enumerate(model.state_dict())}
    index = json.dumps({"metadata": {}, "weight_map": files})
    (target / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    for name, weight in model.state_dict().items():
        entry = {"dtype": "F32", "shape": list(weight.shape), "data_offsets": [0, weight.nbytes]}
        text = json.dumps({name: entry}).encode()
        with (target / files[name]).open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            stream.truncate(8 + len(text) + weight.nbytes)
    return target


def test_several_faults_are_reported_together(recipe_file: str) -> None:
    with pytest.raises(CrossprefError) as caught:
        check(recipe_file, "resources.device=nonsense", "prompts.source=nowhere.jsonl", "sample.engine=vllm")
    message = str(caught.value)
    assert all(message.count(part) == 1 for part in ("resources.device: ", "'nowhere.jsonl'", "library 'vllm'"))


def test_wrong_paths_are_named_before_anything_takes_time(recipe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = {
        "translate.model": "no/such/model",
        "models.initial": "./no-pi_I",
        "prompts.source": "[no-prompts.jsonl, package:no_such_package/x]",
        "evaluate.prompts": "no-heldout.jsonl",
    }
    recipe = load_recipe(recipe_file, [f"{key}={value}" for key, value in nowhere.items()] + ["reward.name=translated"])

    def take_long(*_: object, **__: object) -> tuple[list[str], list[CrossprefError]]:
        raise TimeoutError

    monkeypatch.setattr("crosspref.commands.check.examine", take_long)
    lines = check_recipe(recipe)
    first = [next(lines) for _ in range(5)]
    assert all(line.startswith("fault ") for line in first)
    for name in ("no/such/model", "./no-pi_I", "no-prompts.jsonl", "package:no_such_package/x", "no-heldout.jsonl"):
        assert sum(f"{name!r}" in line for line in first) == 1
    with pytest.raises(TimeoutError):
        next(lines)


def faults_of(recipe: str, *overrides: str) -> tuple[list[str], list[CrossprefError]]:
    return examine(load_recipe(recipe, list(overrides)), apart=False)


@pytest.mark.parametrize("modules", ["[q_proj, v_proj]", "all-linear", r"'.*\.(q|v)_proj'"])
def test_modules_that_are_there(recipe_file: str, modules: str) -> None:
    assert faults_of(recipe_file, f"train.lora={{target_modules: {modules}}}")[1] == []


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        ("q_proj", r"\[q_proj\]"),
        ("'q_proj, v_proj'", r"\[q_proj, v_proj\]"),
        ("[q_proj, c_attn]", "no module c_attn"),
        (r"'.*\.c_attn'", "down_proj, gate_proj"),
        ("[input_layernorm]", "down_proj, gate_proj"),
        ("[q_proj, lm_head]", "output layer"),
    ],
)
def test_modules_that_get_no_adapter_are_told_with_those_that_could(recipe_file: str, modules: str, said: str) -> None:
    _, faults = faults_of(recipe_file, f"train.lora={{target_modules: {modules}}}")
    assert len(faults) == 1
    assert isinstance(faults[0], RecipeError)
    assert faults[0].keys == ("train.lora.target_modules",)
    assert re.search(said, str(faults[0]))


def test_no_modules_at_all_are_refused(recipe_file: str) -> None:
    with pytest.raises(RecipeError, match="target_modules"):
        load_recipe(recipe_file, ["train.lora={target_modules: []}"])


def test_a_token_without_an_embedding(recipe_file: str, tiny_models: Models, tmp_path: Path) -> None:
    """One that every conversation has; an added token that none has is no fault."""
    directories = [tmp_path / "initial", tmp_path / "policy"]
    template = (tiny_models["llama"][0] / "chat_template.jinja").read_text(encoding="utf-8")
    for source, target in zip(tiny_models["llama"], directories, strict=True):
        shutil.copytree(source, target)
        tokenizer = AutoTokenizer.from_pretrained(target)
        rows = len(tokenizer)
        tokenizer.add_tokens(["<|begin|>"], special_tokens=True)
        tokenizer.save_pretrained(target)
        (target / "chat_template.jinja").write_text(template, encoding="utf-8")
    models = (f"models.initial={directories[0]}", f"models.policy={directories[1]}")
    assert faults_of(recipe_file, *models)[1] == []
    for target in directories:
        (target / "chat_template.jinja").write_text("<|begin|>" + template, encoding="utf-8")
    _, faults = faults_of(recipe_file, *models)
    assert [type(fault) for fault in faults] == [ModelError, ModelError]
    for directory, fault in zip(directories, faults, strict=True):
        assert all(part in str(fault) for part in (str(directory), "<|begin|>", f"id {rows},", f"for {rows} tokens"))


@pytest.mark.parametrize(
    ("override", "keys"),
    [
        ("sample.max_new_tokens=1024", ("sample.max_new_tokens",)),
        ("sample.max_prompt_tokens=2", ("sample.max_new_tokens", "sample.max_prompt_tokens")),
        ("reward={name: translated}", ("translate.max_new_tokens",)),
    ],
)
def test_a_context_without_room_for_a_prompt(recipe_file: str, override: str, keys: tuple[str, ...]) -> None:
    _, faults = faults_of(recipe_file, override)
    assert [fault.keys for fault in faults if isinstance(fault, RecipeError)] == [keys]


def test_prompts_that_are_too_long_are_counted(recipe_file: str, tmp_path: Path) -> None:
    rows = [{"prompt_id": f"p{count}", "en": "Why?", "es": "no " * count} for count in (1, 900, 2000)]
    (tmp_path / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    lines, faults = faults_of(recipe_file)
    assert faults == []
    assert [line for line in lines if line.startswith("note")] == [
        "note  2 of 3 prompts in 'es' are longer than the 960 tokens that a prompt may have, and will be dropped"
    ]


def test_quantised_weights_are_not_trained(recipe_file: str, tiny_models: Models, tmp_path: Path) -> None:
    policy = shutil.copytree(tiny_models["llama"][1], tmp_path / "policy")
    stored = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    config = json.loads((policy / "config.json").read_text(encoding="utf-8"))
    (policy / "config.json").write_text(json.dumps({**config, "quantization_config": stored}), encoding="utf-8")
    _, faults = faults_of(recipe_file, f"models.policy={policy}")
    assert [type(fault) for fault in faults] == [ModelError]
    assert "original weights" in str(faults[0])


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


def put(path: Path, **values: object) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**content, **values}), encoding="utf-8")


BROKEN: dict[str, Callable[[Path], object]] = {
    "config null": lambda model: (model / "config.json").write_text("null"),
    "config cut": lambda model: cut(model / "config.json", 20),
    "config no UTF-8": lambda model: (model / "config.json").write_bytes(b'{"model_type": "\xff"}'),
    "no model_type": lambda model: (model / "config.json").write_text("{}"),
    "hidden_size zero": lambda model: put(model / "config.json", hidden_size=0),
    "more layers": lambda model: put(model / "config.json", num_hidden_layers=3),
    "vocab_size small": lambda model: put(model / "config.json", vocab_size=7),
    "rope nonsense": lambda model: put(model / "config.json", rope_parameters={"rope_type": "spiral"}),
    "activation": lambda model: put(model / "config.json", hidden_act="of_tomorrow"),
    "kernel": lambda model: put(model / "config.json", _attn_implementation="somebody/kernels"),
    "weights cut": lambda model: cut(model / "model.safetensors", 500),
    "weights header": lambda model: (model / "model.safetensors").write_bytes(b"\xff" * 64),
    "tokenizer null": lambda model: (model / "tokenizer.json").write_text("null"),
    "tokenizer kind": lambda model: (model / "tokenizer.json").write_text(
        '{"version": "1.0", "model": {"type": "No"}}'
    ),
    "tokenizer merges": lambda model: put(model / "tokenizer.json", model={"type": "BPE", "vocab": {}, "merges": [5]}),
    "tokenizer config": lambda model: (model / "tokenizer_config.json").write_text("{"),
    "template": lambda model: (model / "chat_template.jinja").write_text("{% if %}"),
    "template memory": lambda model: (model / "chat_template.jinja").write_text("{{ 'x' * 10 ** 15 }}"),
    "template no UTF-8": lambda model: (model / "chat_template.jinja").write_bytes(b"\xff\xfe{{ messages }}"),
    "generation end": lambda model: put(model / "generation_config.json", eos_token_id="x"),
    "generation cut": lambda model: cut(model / "generation_config.json", 5),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_model_is_not_ready(kind: str, recipe_file: str, tiny_models: Models, tmp_path: Path) -> None:
    models = []
    for role, source in zip(("initial", "policy"), tiny_models["llama"], strict=True):
        model = shutil.copytree(source, tmp_path / role)
        BROKEN[kind](model)
        models.append(f"models.{role}={model}")
    _, faults = faults_of(recipe_file, *models)
    assert faults
    assert all(isinstance(fault, ModelError) for fault in faults), faults
    assert any(str(tmp_path) in str(fault) for fault in faults)


def write_gguf(path: Path, architecture: str = "llama") -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in {
        "context_length": 64,
        "embedding_length": 8,
        "feed_forward_length": 16,
        "block_count": 1,
    }.items():
        writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_uint32(f"{architecture}.attention.head_count", 2)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tensor("token_embd.weight", np.zeros((32, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["whole", "cut", "zeros", "header alone", "unknown architecture", "empty"])
def test_a_gguf_file_is_looked_at_before_it_is_converted(
    kind: str, recipe_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSPREF_CACHE", str(tmp_path / "cache"))
    file = write_gguf(tmp_path / "model.gguf", "of_tomorrow" if kind == "unknown architecture" else "llama")
    match kind:
        case "cut":
            cut(file, 100)
        case "zeros" | "empty":
            file.write_bytes(bytes(300 if kind == "zeros" else 0))
        case "header alone":
            file.write_bytes(b"GGUF\x03\0\0\0")
    lines, faults = faults_of(recipe_file, f"models.policy={file}")
    is_noted = any("converted" in line for line in lines)
    assert (is_noted, [type(fault) for fault in faults]) == ((True, []) if kind == "whole" else (False, [ModelError]))


@pytest.mark.slow
def test_what_a_child_finds_is_the_same(recipe_file: str) -> None:
    overrides = ["resources.device=nonsense", "train.lora={target_modules: q_proj}", "sample.engine=vllm"]
    recipe = load_recipe(recipe_file, overrides)
    here, there = examine(recipe, apart=False), examine(recipe, apart=True)
    assert here[0] == there[0]
    assert [(type(fault), str(fault)) for fault in here[1]] == [(type(fault), str(fault)) for fault in there[1]]
    assert len(here[1]) == 3


def test_a_run_hears_of_faults_of_training_before_anything_is_sampled(recipe_file: str, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file, ["train.lora={target_modules: q_proj}", "resources.process_per_phase=false"])
    with pytest.raises(RecipeError, match=r"train\.lora\.target_modules"):
        align(recipe, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.parquet"))
