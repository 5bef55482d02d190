"""What all cases share, made once: tiny models, prompts, tables, a finished run, answers, and a judge's verdicts."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gguf
import torch
from fake_judge import FakeJudge
from running import head, rows, small_recipe, write_lines, write_recipe
from safetensors.torch import load_file
from tiny import make_adapter, make_model, nudge, talker
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from crosspref.cli import main

TABLES = ("responses", "scores", "pairs")
INSTRUCTIONS = ["Name a river.", "Say why the sky is blue.", "Greet a friend.", "Count to three."]
TURNS = [("writing", "Write about snow.", "Now make it short."), ("math", "What is 2 + 2?", "And times 3?")]
CLASSIFIER_TEMPLATE = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }} {% endfor %}"


@dataclass(frozen=True)
class World:
    """Where everything lies. Cases copy what they change; nothing in ``root`` may be touched."""

    root: Path

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of a JSONL file."""
        lines = (self.root / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def recipe_content(self, **changes: Any) -> dict[str, Any]:
        """Return a recipe that takes seconds: one iteration of everything but stage 0."""
        evaluation = {"prompts": str(self.root / "held_out.jsonl"), "n": 2, "resamples": 100}
        settings = {"prompts": {"source": str(self.root / "prompts.jsonl")}, "evaluate": evaluation, **changes}
        return small_recipe(self.root / "initial", self.root / "policy", iterations=1, **settings)


def make_world(root: Path) -> int:
    """Make everything in a folder. Call this in a child: it needs torch's threads."""
    _make_models(root)
    head("prompts_train.jsonl", root / "prompts.jsonl", 3)
    head("prompts_heldout.jsonl", root / "held_out.jsonl", 2)
    head("english_preferences.jsonl", root / "preferences.jsonl", 6)
    world = World(root)
    write_recipe(root / "recipe.yaml", world.recipe_content())
    assert main(["run", str(root / "recipe.yaml"), "--out", str(root / "run")]) == 0
    for name in TABLES:
        write_lines(root / f"{name}.jsonl", [asdict(row) for row in rows(root / "run" / "iteration_1" / name)])
    _make_judged(root)
    return 0


def _make_models(root: Path) -> None:
    base = make_model(root / "plain")
    talker(base, root / "initial")
    talker(nudge(base, root / "nudged"), root / "policy")
    make_adapter(root / "initial", root / "adapter")
    model = AutoModelForCausalLM.from_pretrained(root / "policy")
    shutil.copytree(root / "policy", root / "sharded", ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(root / "sharded", max_shard_size="60KB")
    shutil.copytree(root / "policy", root / "classifier")
    torch.manual_seed(5)
    AutoModelForSequenceClassification.from_pretrained(root / "classifier", num_labels=1).save_pretrained(
        root / "classifier"
    )
    (root / "classifier" / "chat_template.jinja").write_text(CLASSIFIER_TEMPLATE, encoding="utf-8")
    _write_gguf(root / "initial", root / "converted.gguf")


def _write_gguf(model: Path, file: Path) -> None:
    """Write a model as a GGUF file, as llama.cpp would convert it."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    words = sorted(tokenizer["model"]["vocab"].items(), key=lambda word: word[1])
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([word for word, _ in words])
    writer.add_token_types([3 if word in special else 1 for word, _ in words])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template((model / "chat_template.jinja").read_text(encoding="utf-8"))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in load_file(model / "model.safetensors").items():
        writer.add_tensor(names.get_name(name, (".weight",)), tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _make_judged(root: Path) -> None:
    """Make answers of a model and of a baseline, and let a judge compare and grade them, for its verdicts."""
    items = [{"id": number, "instruction": text} for number, text in enumerate(INSTRUCTIONS, 1)]
    write_lines(root / "items.jsonl", items)
    for name in ("baseline", "answers"):
        outputs = [{**item, "output": f"{name}: {item['instruction']}", "generator": name} for item in items]
        write_lines(root / f"{name}.jsonl", outputs)
    questions = [
        {"question_id": number, "category": kind, "turns": list(turns)} for number, (kind, *turns) in enumerate(TURNS)
    ]
    write_lines(root / "questions.jsonl", questions)
    for name in ("references", "conversations"):
        spoken = [
            {"question_id": row["question_id"], "model_id": name, "choices": [{"index": 0, "turns": ["One.", "Two."]}]}
            for row in questions
        ]
        write_lines(root / f"{name}.jsonl", spoken)
    settings = {
        "judge": {"model": "judge-1", "concurrency": 2, "timeout": 5.0, "retries": 1},
        "answers": {"max_new_tokens": 8},
        "resources": {"device": "cpu", "dtype": "float32", "threads": 1},
        "xalpaca": {"items": str(root / "items.jsonl"), "baseline": str(root / "baseline.jsonl")},
        "mtbench": {"questions": str(root / "questions.jsonl"), "references": str(root / "references.jsonl")},
        "resamples": 100,
    }
    write_recipe(root / "evaluation.yaml", settings)
    with FakeJudge() as judge:
        of_run = ["evaluate", str(root / "run"), "--suite", "xalpaca", "--languages", "en"]
        assert main([*of_run, "--with", str(root / "evaluation.yaml"), "--judge", judge.url]) == 0
        for suite, answers in (("xalpaca", "answers"), ("mtbench", "conversations")):
            arguments = judged(World(root), suite, root / f"{answers}.jsonl", root / f"{suite}_results")
            assert main([*arguments, "--judge", judge.url]) == 0
            shutil.copy(root / f"{suite}_results" / "verdicts.jsonl", root / f"{suite}_verdicts.jsonl")
    [annotations] = (root / "xalpaca_results").rglob("annotations.json")
    write_lines(root / "annotations.jsonl", json.loads(annotations.read_text(encoding="utf-8")))


def judged(world: World, suite: str, answers: Path, out: Path) -> list[str]:
    """Return the command that has answers judged; by whom is to be added."""
    given = ["--answers", str(answers), "--languages", "en", "--with", str(world.root / "evaluation.yaml")]
    return ["evaluate", "--suite", suite, *given, "--out", str(out)]
