"""``crosspref plan``: its arithmetic against numbers worked out by hand, and what does not fit."""

import json
import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crosspref.cli import main
from crosspref.data.records import Prompt, Response
from crosspref.errors import ModelError, RecipeError
from crosspref.models.locate import locate_model
from crosspref.plan.accelerators import ACCELERATORS, Accelerator, find_hardware
from crosspref.plan.costs import LOGITS_BYTES, Setup, Speeds, adapter_parameters, flops, memory, training_memory
from crosspref.plan.observed import fit_decoding
from crosspref.plan.probe import uncut_length
from crosspref.plan.shapes import ModelShape, read_shape, safetensors_shapes, shape_of
from crosspref.plan.spread import Spread, read_spread
from crosspref.plan.work import Lengths, PhaseWork, Texts, Work, add_pair, plan_work, rows_beside
from crosspref.recipe.files import FOLDER, load_recipe
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import LoraSettings, TrainSettings

QUICKSTART = Path(__file__).parents[1] / "with_stage_0.yaml"
CONFIG = {"hidden_size": 4, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 10}
TENSORS = {
    "model.embed_tokens.weight": [10, 4],
    "model.layers.0.self_attn.q_proj.weight": [4, 4],
    "model.layers.0.mlp.experts.0.up.weight": [6, 4],
    "model.layers.0.mlp.experts.1.up.weight": [6, 4],
    "model.norm.weight": [4],
    "lm_head.weight": [10, 4],
}
SHAPE = ModelShape(
    parameters=1000,
    active=800,
    linear=60,
    layers=1,
    heads=1,
    kv_heads=1,
    head_size=2,
    hidden=4,
    vocabulary=10,
)


def write_header(path: Path, tensors: dict[str, list[int]]) -> None:
    """The header of a safetensors file, without its weights."""
    entries = {name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]} for name, shape in tensors.items()}
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(QUICKSTART)


@pytest.fixture(scope="module")
def phases(recipe: Recipe) -> list[PhaseWork]:
    return plan_work(recipe, Texts(recipe), Lengths())


def part(phases: list[PhaseWork], phase: str, kind: str) -> Work:
    return next(work for row in phases if row.phase == phase for work in row.parts if work.kind == kind)


def test_the_header_alone_tells_the_parameters(tmp_path: Path) -> None:
    write_header(tmp_path / "model.safetensors", TENSORS)
    assert safetensors_shapes(tmp_path / "model.safetensors") == TENSORS
    shape = shape_of({**CONFIG, "num_local_experts": 2, "num_experts_per_tok": 1}, TENSORS, "tiny")
    assert shape.parameters == 40 + 16 + 24 + 24 + 4 + 40
    assert shape.active == shape.parameters - 40 - 24  # without the input embedding, and one of the two experts
    assert shape.linear == 8 + 10 + 10
    assert (shape.kv_heads, shape.head_size, shape.exact) == (2, 2, True)
    tied = shape_of(CONFIG, {name: size for name, size in TENSORS.items() if name != "lm_head.weight"}, "tiny")
    assert tied.active == tied.parameters  # the one table is the output layer


def test_a_damaged_header_is_said(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(ModelError, match=r"model\.safetensors is no safetensors file, or is damaged"):
        safetensors_shapes(tmp_path / "model.safetensors")


def test_a_configuration_that_says_too_little_is_said() -> None:
    with pytest.raises(ModelError, match=r"config\.json of odd does not say num_hidden_layers"):
        shape_of({**CONFIG, "num_hidden_layers": None}, {}, "odd")


def test_flops_by_hand(recipe: Recipe) -> None:
    work = Work("score", read=10, written=20, squares=500)
    # 30 tokens times 2 x 800, and 500 squared tokens times 2 x 1 layer x 1 head x 2.
    forward = 30 * 1600 + 500 * 4
    assert flops(work, SHAPE, recipe) == 2 * forward  # the policy and its reference
    full = TrainSettings()
    assert flops(replace(work, kind="train", settings=full), SHAPE, recipe) == (3 + 1) * forward
    lora = TrainSettings(lora=LoraSettings(), gradient_checkpointing=True)
    assert flops(replace(work, kind="train", settings=lora), SHAPE, recipe) == (2 + 1 + 1) * forward
    simpo = TrainSettings(method="simpo")
    assert flops(replace(work, kind="train", settings=simpo), SHAPE, recipe) == 3 * forward
    kto = TrainSettings(method="kto")
    assert flops(replace(work, kind="train", settings=kto), SHAPE, recipe) == (3 + 1 + 2) * forward


def test_a_pair_by_hand() -> None:
    # A prompt of 10 tokens, answers of 3 and 5: rows of 13 and 15 tokens, of which the second has the prompt no more.
    work = add_pair(Work("train"), 10, (3, 5), TrainSettings())
    assert (work.read, work.written, work.squares) == (10, 8, 13**2 + 15**2 - 10**2)
    work = add_pair(work, 10, (3, 5), TrainSettings(method="kto"), times=2)
    assert (work.read, work.written, work.squares) == (10 + 40, 8 + 16, 294 + 2 * (13**2 + 15**2))


def test_memory_by_hand(recipe: Recipe) -> None:
    sampling = Work("sample", rows=2, width=10)
    setup = Setup(recipe, 2, Spread(), scoring=2)
    # Weights, keys and values of 2 x 10 tokens, and three times float32 logits of 2 rows.
    cache, logits = 2 * 10 * 4 * 2, 3 * 4 * 2 * 10
    assert memory(sampling, SHAPE, setup) == {"weights": 1000 * 2, "cache": cache, "logits": logits}
    scoring = Work("score", rows=2, width=10)
    assert memory(scoring, SHAPE, setup)["weights"] == 2 * 1000 * 2
    assert memory(scoring, SHAPE, replace(setup, scoring=1))["weights"] == 1000 * 2  # two adapters over one base
    vllm = load_recipe(QUICKSTART, ["sample.engine=vllm", "sample.max_prompt_tokens=100", "vllm.tensor_parallel=2"])
    parts = memory(sampling, SHAPE, replace(setup, recipe=vllm))
    # Half of the weights, and of the keys and values of the longest row: 100 tokens and 64 new ones.
    assert (parts["weights"], parts["cache"]) == (1000, 164 * 4 * 2 / 2)


FULL = {"weights": 4000, "gradients": 4000, "optimizer": 8000, "reference": 4000, "copy": 2000}
"""Bytes of 1,000 parameters that one process trains with autocast."""


@pytest.mark.parametrize(
    ("spread", "changed"),
    [
        (Spread(), {}),
        (Spread("DDP", 4), {"gradients": 8000}),  # and its buckets; nothing is shared
        (Spread("ZeRO-2", 4), {"weights": 1000, "gradients": 1000 + 1000, "optimizer": 2000, "reference": 2000}),
        # Two layers (here one is the whole model) and the embeddings are gathered, and their gradients in two formats;
        # the reference is gathered whole, in bfloat16.
        (
            Spread("FSDP", 4),
            {**dict.fromkeys(("weights", "gradients"), 1000), "optimizer": 2000, "reference": 1000 + 2000}
            | {"gathered": (2 * 1000 + 2 * 40) * 8, "copy": 0},
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, Spread) else "",
)
def test_memory_of_full_training_by_hand(recipe: Recipe, spread: Spread, changed: dict[str, float]) -> None:
    full = TrainSettings(micro_batch_size=1)
    parts = training_memory(Work("train", width=10), full, SHAPE, Setup(recipe, 2, spread, scoring=2))
    expected = FULL | {"activations": 2 * 10 * 4 * 2 * 34, "logits": 3 * LOGITS_BYTES} | changed
    assert parts == {part: size for part, size in expected.items() if size}
    exact = training_memory(Work("train", width=10), full, SHAPE, Setup(recipe, 4, Spread(), scoring=2))
    assert "copy" not in exact  # float32 computes with the weights themselves


def test_memory_of_adapters_by_hand(recipe: Recipe) -> None:
    lora = TrainSettings(micro_batch_size=1, lora=LoraSettings(rank=2))
    assert adapter_parameters(lora, SHAPE) == 120
    setup = Setup(recipe, 2, Spread(), scoring=2)
    parts = training_memory(Work("train", width=10), lora, SHAPE, setup)
    assert parts["weights"] == 2 * 1000 + 4 * 120
    assert (parts["gradients"], parts["optimizer"], parts["copy"]) == (480, 960, 240)
    assert "reference" not in parts  # it shares the base
    # In 4 bits are all but the two tables of 40, which stay in bfloat16.
    quantized = lora.model_copy(update={"lora": LoraSettings(rank=2, bits=4)})
    parts = training_memory(Work("train", width=10), quantized, SHAPE, setup)
    assert parts["weights"] == pytest.approx(0.52 * 920 + 2 * 80 + 4 * 120)


CONFIGURATIONS = {
    "fsdp.yaml": "distributed_type: FSDP\nnum_processes: 4\nfsdp_config: {fsdp_version: 2}\n",
    "zero.yaml": "distributed_type: DEEPSPEED\nnum_processes: 2\n"
    "deepspeed_config: {deepspeed_config_file: zero.json}\n",
    "zero.json": '{"zero_optimization": {"stage": 3}}',
    "ddp.yaml": "distributed_type: MULTI_GPU\nnum_processes: 8\n",
}


@pytest.mark.parametrize(
    ("launch", "spread"),
    [
        ("torchrun --standalone --nproc-per-node 8", Spread("DDP", 8)),
        ("torchrun --nnodes=2 --nproc_per_node=4", Spread("DDP", 8)),
        ("accelerate launch --config_file ddp.yaml", Spread("DDP", 8)),
        ("accelerate launch --config_file fsdp.yaml", Spread("FSDP", 4)),
        ("accelerate launch --config_file fsdp.yaml --num-processes 2", Spread("FSDP", 2)),
        ("accelerate launch --config_file zero.yaml", Spread("ZeRO-3", 2)),
        ("accelerate launch --use_deepspeed --zero_stage 1", Spread("ZeRO-1", None)),
        (
            "accelerate launch --use_fsdp --fsdp_reshard_after_forward false",
            Spread("FSDP", None, keeps_gathered=True),
        ),
        ("accelerate launch --config_file gone.yaml", Spread("DDP", None, unread="gone.yaml")),
    ],
)
def test_what_a_launcher_spreads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launch: str, spread: Spread) -> None:
    for name, text in CONFIGURATIONS.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert read_spread(load_recipe(QUICKSTART, [f"resources.launch={json.dumps(launch)}"])) == spread


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero2", "zero3"])
def test_the_files_for_launchers_that_come_with_crosspref(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER / "distributed")
    recipe = load_recipe(QUICKSTART, [f"resources.launch=accelerate launch --config_file {name}.yaml"])
    kind = {"ddp": "DDP", "fsdp2": "FSDP", "zero2": "ZeRO-2", "zero3": "ZeRO-3"}[name]
    assert read_spread(recipe) == Spread(kind, 8)  # type: ignore[arg-type]


def scored_prompt(recipe: Recipe, row: Prompt, prompts: list[Prompt]) -> float:
    """Return the tokens of what a response is conditioned on: by R_c the English prompt."""
    assert recipe.reward.names == ["crosslingual"]
    english = next(other for other in prompts if (other.prompt_id, other.language) == (row.prompt_id, "en"))
    return Lengths().prompt(english.instruction, "en")


def test_the_work_of_the_quickstart(recipe: Recipe, phases: list[PhaseWork]) -> None:
    names = ["prompts", "align_english", "evaluate", "sample", "score", "select", "train", "evaluate"]
    assert [row.phase for row in phases] == names
    sampling = part(phases, "sample", "sample")
    # 24 prompts x 4 responses are 3 turns of 32 rows in each of 4 languages: two of the mean length of 32 tokens, which
    # is half of the limit unless it was measured, and a last one in which a response may reach the limit of 64.
    assert (sampling.units, sampling.rows) == (4 * 96, 32)
    assert sampling.steps == 4 * (2 * 32 + 64)
    assert sampling.row_steps == sampling.written == 4 * 96 * 32  # a row that has ended takes part in no step
    held_out = part(phases, "evaluate", "sample")
    assert (held_out.units, held_out.steps) == (4 * 36, 4 * (32 + 64))  # 12 x 3 responses: 32 rows, and 4 more
    scoring = part(phases, "score", "score")
    assert scoring.written == sampling.written
    prompts = [prompt for prompt in Texts(recipe).training if prompt.language in recipe.languages]
    assert sampling.read == pytest.approx(sum(Lengths().prompt(row.instruction, row.language) for row in prompts))
    # Four responses of 32 tokens see their prompt, which sees itself once.
    sizes = [scored_prompt(recipe, row, prompts) for row in prompts]
    assert scoring.read == pytest.approx(sum(sizes))
    assert scoring.squares == pytest.approx(sum(4 * (size + 32) ** 2 - 3 * size**2 for size in sizes))
    training = part(phases, "train", "train")
    assert training.units == 96
    assert training.written == 96 * 2 * 32
    assert training.read == pytest.approx(sampling.read)  # a pair's two responses share its prompt, too


def test_measured_lengths_count(recipe: Recipe, phases: list[PhaseWork]) -> None:
    lengths = Lengths(response={"en": 10.0, "es": 20.0}, longest={"en": 40.0}, pairs=0.5)
    found = plan_work(recipe, Texts(recipe), lengths)
    assert part(found, "sample", "sample").written == 96 * (10 + 20 + 15 + 15)  # of others the mean of what was seen
    assert part(found, "sample", "sample").steps == 2 * (10 + 20 + 15 + 15) + 4 * 40
    assert part(found, "train", "train").units == 48


@pytest.mark.parametrize(
    ("tokens", "prompt", "n", "rows"),
    [
        (10000, 50, 4, 32),  # memory is no limit
        (1000, 60, 4, 8),  # 8 rows of 100 tokens and their 2 prompts of 60 are 920; a 9th begins a third prompt
        (50, 60, 4, 1),  # one row always goes
    ],
)
def test_rows_beside_each_other_share_their_prompts(tokens: int, prompt: float, n: int, rows: int) -> None:
    assert rows_beside(32, tokens, prompt, 100, n) == rows


def test_rows_of_the_engines(recipe: Recipe) -> None:
    def rows(cache_tokens: float, *changes: str) -> int:
        changed = load_recipe(QUICKSTART, [*changes, "evaluate.n=500"])
        return part(plan_work(changed, Texts(changed), Lengths(), cache_tokens), "evaluate", "sample").rows

    assert rows(math.inf) == 32  # sample.batch_size
    assert rows(math.inf, "sample.engine=vllm") == 256
    assert rows(math.inf, "sample.engine=vllm", "vllm.max_sequences=100") == 100
    assert 20 < rows(1000, "sample.engine=vllm") < 32  # its cache is full: responses of 32 tokens, and a prompt
    assert rows(math.inf, "sample.engine=server", "server.concurrency=48") == 48


def test_batches_of_two_sizes_tell_reading_from_computing(recipe: Recipe) -> None:
    speeds = Speeds(read=1e-9, decode=1e-10, score=1e-11, train=0)
    batches = [Work("sample", read=50 * rows, steps=64, row_steps=64 * rows) for rows in (32, 4, 1)]
    seconds = [speeds.seconds(work, SHAPE, recipe, 4) for work in batches]
    assert seconds[1] == pytest.approx(64 * (4000e-9 + 4 * 1600e-10) + 200 * 1600e-11)
    read, decode = fit_decoding(list(zip(seconds, batches, strict=True)), SHAPE, 4, score=1e-11)
    assert (read, decode) == (pytest.approx(1e-9), pytest.approx(1e-10))


def test_hardware_is_found_by_name_and_number() -> None:
    assert find_hardware("H100-SXM") == ACCELERATORS["H100-SXM"]
    assert find_hardware("a100-80gbx8") == replace(ACCELERATORS["A100-80GB"], count=8)
    assert find_hardware("MINEx2", memory=10, tflops=5) == Accelerator("MINE", 10, 5, None, 2)
    assert find_hardware(None) is None


def test_unknown_hardware_lists_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(QUICKSTART), "--hardware", "H1000"]) == 1
    errors = capsys.readouterr().err
    assert "'H1000' is not known" in errors
    assert all(name in errors for name in ACCELERATORS)
    with pytest.raises(RecipeError, match="--memory GB and --tflops T"):
        find_hardware("H1000", memory=80)


def plan_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any], str]:
    code = main(["plan", *arguments, "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


def write_large(folder: Path, **config: Any) -> Path:
    """A model as Llama-3-8B, of which only the headers are here; nothing may read its weights."""
    folder.mkdir(exist_ok=True)
    hidden, width, layers, vocabulary = 4096, 14336, 32, 128256
    shapes = {"q": [hidden, hidden], "k": [1024, hidden], "v": [1024, hidden], "o": [hidden, hidden]}
    shapes |= {"gate": [width, hidden], "up": [width, hidden], "down": [hidden, width]}
    tensors = {f"layers.{layer}.{name}": shape for layer in range(layers) for name, shape in shapes.items()}
    tensors |= {"embed_tokens": [vocabulary, hidden], "lm_head": [vocabulary, hidden]}
    write_header(folder / "model.safetensors", tensors)
    config |= {"hidden_size": hidden, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": vocabulary}), encoding="utf-8")
    return folder


@pytest.fixture
def large(tmp_path: Path) -> Path:
    return write_large(tmp_path / "large")


def test_a_model_that_does_not_fit_is_said_with_what_helps(large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["--set", f"models.initial={large}", "--set", "train.lora=null", "--set", "align_english.lora=null"]
    code, plan, errors = plan_json(capsys, str(QUICKSTART), "--hardware", "A100-80GB", "--price", "2", *changes)
    assert code == 1
    rows = {row["phase"]: row for row in plan["rows"]}
    assert {phase: row["fits"] for phase, row in rows.items() if row["fits"] is not None} == {
        **dict.fromkeys(("align_english", "train"), False),
        **dict.fromkeys(("evaluate", "sample", "score"), True),
    }
    # 8.03e9 parameters: weights, gradients, two moments and the reference, in float32, and a copy in bfloat16.
    assert rows["train"]["memory"] == pytest.approx(8.03e9 * 22, rel=0.05)
    assert sum(rows["train"]["parts"].values()) == rows["train"]["memory"]
    assert plan["price"] == pytest.approx(plan["seconds"] / 3600 * 2)
    assert "train (train) needs about 18" in errors
    assert "train.lora: {}, train.gradient_checkpointing: true" in errors
    assert "FSDP or ZeRO-3 over 8 devices" in errors


@pytest.mark.parametrize(
    ("launch", "fits"), [("torchrun --nproc-per-node 8", False), ("accelerate launch --use_fsdp", True)]
)
def test_full_training_fits_where_it_is_cut_up(
    large: Path, capsys: pytest.CaptureFixture[str], launch: str, fits: bool
) -> None:
    changes = [f"models.initial={large}", f"resources.launch={launch}", "train.lora=null", "train.micro_batch_size=1"]
    changes += ["align_english.lora=null", "align_english.micro_batch_size=1"]
    code, plan, _ = plan_json(
        capsys,
        str(QUICKSTART),
        "--hardware",
        "A100-80GBx8",
        *(word for change in changes for word in ("--set", change)),
    )
    assert code == (not fits)
    assert [row["fits"] for row in plan["rows"] if row["phase"] == "train"] == [fits]


def test_the_papers_zero_2_fits_eight_devices(large: Path, recipe: Recipe) -> None:
    shape = read_shape(locate_model(str(large)))
    settings = TrainSettings(micro_batch_size=1, gradient_checkpointing=True)
    setup = Setup(recipe, 2, Spread("ZeRO-2", 8), scoring=2)
    needed = sum(training_memory(Work("train", width=3000), settings, shape, setup).values())
    assert 50e9 < needed < 72e9


def test_hours_count_the_devices_that_work(large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def seconds(hardware: str, *changes: str) -> dict[str, float]:
        settings = [f"models.initial={large}", *changes]
        words = [word for change in settings for word in ("--set", change)]
        _, plan, _ = plan_json(capsys, str(QUICKSTART), "--hardware", hardware, *words)
        return {row["phase"]: row["seconds"] - 60 for row in plan["rows"] if row["tokens"]}

    one, idle = seconds("H200"), seconds("H200x8")
    assert idle == one  # executor local works on one device, and so does training without a launcher
    trained = seconds("H200x8", "resources.launch=torchrun --nproc-per-node 4")
    assert (trained["score"], trained["train"]) == (one["score"], pytest.approx(one["train"] / 4))
    spread = seconds("H200x8", "resources.executor=ray", "ray.workers=8", "train.precompute_reference=true")
    assert spread["score"] == pytest.approx(one["score"] / 8)
    alone = seconds("H200", "train.precompute_reference=true")
    assert spread["reference"] == pytest.approx(alone["reference"])  # which one process computes


GPUS = {"8x80gb": "A100-80GBx8", "1x80gb": "A100-80GB", "1x24gb-lora": "RTX-4090", "1x24gb-qlora": "RTX-4090"}


@pytest.fixture
def papers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the paper's recipe takes, by size: prompts in a directory, and what to set for pi_I and pi_0."""
    monkeypatch.chdir(tmp_path)
    folder = Path("data/ultrafeedback_parallel")
    folder.mkdir(parents=True)
    for language in ("en", "es", "ru", "de", "fr"):
        rows = [
            {"instruction_id": str(row), "instruction": f"{row} word" * (4 if row % 8 else 400)} for row in range(64)
        ]
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / f"{language}.jsonl").write_text(text, encoding="utf-8")
    pairs = [{"prompt": f"{row} word", "chosen": "yes " * 900, "rejected": "no " * 900} for row in range(8)]
    Path("data/english_preferences.jsonl").write_text(
        "".join(f"{json.dumps(row)}\n" for row in pairs), encoding="utf-8"
    )
    models = {name: write_large(tmp_path / name, note=name) for name in ("initial", "policy")}
    return [f"models.{name}={path}" for name, path in models.items()]


@pytest.mark.parametrize(("name", "hardware"), GPUS.items())
def test_the_papers_job_fits_into_what_its_recipe_is_for(
    papers: list[str], capsys: pytest.CaptureFixture[str], name: str, hardware: str
) -> None:
    settings = papers[:1] if name.startswith("1x24gb") else papers
    words = [word for change in settings for word in ("--set", change)]
    code, plan, errors = plan_json(capsys, f"recipe:gpus/{name}", "--hardware", hardware, *words)
    assert code == 0, errors
    assert {row["phase"] for row in plan["rows"] if row["fits"]} >= {"sample", "score", "train"}
    changed = load_recipe(f"recipe:gpus/{name}")
    assert (changed.sample.engine, changed.sample.n) == ("vllm", 10)
    assert (changed.sample.max_new_tokens == 2400) == (name != "1x24gb-lora")


def test_the_papers_recipe_as_written_does_not_fit(papers: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for change in papers for word in ("--set", change)]
    code, plan, _ = plan_json(capsys, "recipe:paper/table2-icr", "--hardware", "A100-80GBx8", *words)
    assert code == 1
    assert {row["phase"] for row in plan["rows"] if row["fits"] is False} == {"train"}


def test_weights_too_large_for_any_phase(large: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, plan, errors = plan_json(
        capsys, str(QUICKSTART), "--memory", "12", "--tflops", "50", "--set", f"models.initial={large}"
    )
    assert code == 1
    assert "sample (sample) needs about 1" in errors
    assert "the weights alone are too large for one device" in errors
    assert "train.lora.bits: 4" in errors
    assert plan["seconds"] > 0


def test_without_hardware_there_are_no_hours(capsys: pytest.CaptureFixture[str]) -> None:
    code, plan, _ = plan_json(capsys, str(QUICKSTART))
    assert code == 0
    assert plan["seconds"] is plan["price"] is None
    assert all(row["seconds"] is None and row["fits"] is None for row in plan["rows"])
    assert any("--probe" in note for note in plan["notes"])


def test_numbers_that_make_no_sense_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(QUICKSTART), "--memory", "-3"]) == 1
    assert "--memory must be above 0, but it is -3.0" in capsys.readouterr().err
    assert main(["plan", str(QUICKSTART), "--probe", "--hardware", "L4"]) == 1
    assert "give one of them" in capsys.readouterr().err


@pytest.mark.parametrize("chance", [0.0, 0.005, 0.05])
def test_lengths_are_foreseen_from_responses_that_were_cut_off(chance: float) -> None:
    """Each token ends a response with the same chance; only the first 40 of 200 tokens are seen."""
    draws = np.random.default_rng(7).geometric(chance, 4000) if chance else np.full(4000, 10**6)
    seen = [
        Response("a", "en", 0, "", [1] * min(length, 40), "stop" if length <= 40 else "length", None)
        for length in draws
    ]
    assert uncut_length(seen, 200) == pytest.approx(np.minimum(draws, 200).mean(), rel=0.05)
