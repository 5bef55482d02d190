"""Recipes: what is refused and how it is said, and that nothing is lost between a recipe and its file."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

import crosspref
from crosspref.errors import RecipeError
from crosspref.recipe.files import (
    FOLDER,
    PRESETS,
    describe_settings,
    dump_recipe,
    flatten,
    known_recipes,
    load_recipe,
    make_recipe,
    override,
    parse_yaml,
    stage_settings,
)
from crosspref.recipe.schema import Recipe
from crosspref.recipe.sections import Settings, TrainSettings
from crosspref.recipe.stages import SampleStage, ScoreStage, SelectStage, StageSettings, TrainStage
from crosspref.suites.settings import EvaluationSettings

SOURCE = Path(crosspref.__file__).parent
RECIPES = sorted(path for path in FOLDER.rglob("*.yaml") if path.parent.name != "distributed")  # those are accelerate's
PAPER = sorted(path.name for path in (FOLDER / "paper").glob("*.yaml"))


def content(**sections: Any) -> dict[str, Any]:
    return {
        "models": {"initial": "base", "policy": "aligned"},
        "languages": ["en", "es"],
        "prompts": {"source": "prompts.jsonl"},
        **sections,
    }


def faults(given: dict[str, Any]) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        make_recipe(given)
    head, *lines = str(caught.value).splitlines()
    assert head == f"The recipe has {len(lines)} fault{'s' * (len(lines) > 1)}:"
    return [line.removeprefix("  - ") for line in lines]


def with_set(*changes: str, **sections: Any) -> Recipe:
    changed = content(**sections)
    for change in changes:
        override(changed, change)
    return make_recipe(changed)


def paper(name: str) -> Recipe:
    return load_recipe(FOLDER / "paper" / f"{name}.yaml")


def differences(path: Path, other: Path) -> set[str]:
    settings, others = flatten(load_recipe(path)), flatten(load_recipe(other))
    return {key for key in {*settings, *others} if settings.get(key) != others.get(key)}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(FOLDER).with_suffix("")))
def test_shipped_recipes_are_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert (recipe.iterations == 0) == ("pi_0" in path.stem)
    assert reread(recipe) == recipe


def test_every_recipe_of_the_paper_has_a_twin_and_every_twin_is_of_one() -> None:
    assert len(PAPER) == 14
    small = {path.name for path in (FOLDER / "small").glob("*.yaml")}
    ours = {name for name in small if re.match(r"base|pi_0|methods-", name)}
    assert small - ours == set(PAPER)


@pytest.mark.parametrize("name", PAPER)
def test_a_twin_differs_from_the_others_as_its_paper_recipe_does(name: str) -> None:
    changed = differences(FOLDER / "paper" / name, FOLDER / "paper" / "table2-icr.yaml")
    twins_changed = differences(FOLDER / "small" / name, FOLDER / "small" / "base.yaml")
    assert twins_changed - {"iterations", "select.min_gap"} <= changed  # the paper keeps every gap anyway
    # What the small base has from the start, and what only accelerators, other models or another data set allow.
    spared = {"iterations", "translate.truncated", "translate.max_new_tokens", "prompts.source", "reward.reward_model"}
    spared |= {"models.initial", "models.policy"} if name.startswith("table8") else set()
    assert changed - spared <= twins_changed
    small = load_recipe(FOLDER / "small" / name)
    assert (small.translate.truncated, small.select.truncated) == ("keep", "keep")


def test_small_recipes_start_from_what_pi_0_recipes_write() -> None:
    for path in (FOLDER / "small").glob("*.yaml"):
        recipe = load_recipe(path)
        if recipe.align_english is None:
            made = re.fullmatch(r"runs/small/(.+)/iteration_0/policy", recipe.models.policy or "")
            assert made, path
            source = load_recipe(FOLDER / "small" / f"{made[1]}.yaml")
            assert (source.align_english.method, source.iterations) == (recipe.reward.algorithm, 0)
            assert source.models.initial == recipe.models.initial


def test_the_papers_recipe_has_the_papers_settings() -> None:
    # Sections 5.1 and B.3 (Tables 2 and 9).
    recipe = paper("table2-icr")
    sample, train = recipe.sample, recipe.train
    assert (sample.n, sample.temperature, sample.top_p, sample.max_new_tokens) == (10, 0.9, 1.0, 2400)
    assert (recipe.reward.beta, recipe.length_penalty.mode, recipe.iterations, recipe.seed) == (0.1, "optimal", 2, 42)
    assert (train.beta, train.nll_weight, train.learning_rate, train.batch_size, train.epochs) == (0.1, 1, 5e-7, 16, 1)
    assert (train.scheduler, train.warmup_ratio, train.lora, train.max_length >= 2400) == ("cosine", 0.03, None, True)
    assert (train.method, train.reference, recipe.reward.reference) == ("dpo", "previous", "initial")
    assert (recipe.reward.name, recipe.reward.algorithm, recipe.select.min_gap) == ("crosslingual", "dpo", 0.0)


def test_the_papers_other_recipes_have_the_papers_settings() -> None:
    kto = paper("table2-kto")  # Table 9, Eq. 16 and 17
    assert (kto.train.learning_rate, kto.train.batch_size, kto.train.warmup_ratio) == (5e-7, 32, 0.03)
    assert (kto.train.epochs, kto.train.beta, kto.train.method, kto.train.nll_weight) == (1, 0.1, "kto", 0.0)
    assert (kto.models.policy, kto.reward.algorithm) == ("princeton-nlp/Llama-3-Base-8B-SFT-KTO", "kto")
    assert set(paper("table5-low-resource").languages) == {"en", "bn", "sw", "th"}
    no_penalty, moving = paper("table6-no-length-penalty"), paper("table6-previous-reference")
    assert (no_penalty.length_penalty.mode, no_penalty.iterations) == ("none", 1)
    assert (moving.reward.reference, moving.train.reference, moving.iterations) == ("previous", "previous", 2)
    for name in ("table8-icr-instruct", "table8-lidr-instruct"):
        recipe = paper(name)  # Table 7
        assert (recipe.models.policy, recipe.prompts.limit) == ("meta-llama/Meta-Llama-3-8B-Instruct", 1000)
        assert (recipe.language_imbalance is None) == (name == "table8-icr-instruct")
    assert paper("table2-lidr").language_imbalance is not None
    for name in ("multilingual", "translated"):
        recipe = paper(f"table12-{name}")
        assert (recipe.reward.name, recipe.iterations) == (name, 1)
    assert paper("table1-rewards").reward.names == ["crosslingual", "multilingual", "translated", "reward_model"]
    assert [paper(f"table13-{n}").prompts.limit for n in (1000, 5000)] == [1000, 5000]
    znlp = paper("znlp")
    assert (znlp.reward.counting, znlp.reward.beta, znlp.length_penalty.mode) == ("znlp", 1.0, "grid")
    assert (znlp.select.truncated, znlp.select.degenerate, znlp.select.min_gap) == ("keep", "keep", 0.0)
    assert znlp.resources.shard_prompts == 48


def test_the_readme_names_every_recipe_of_the_paper() -> None:
    named = set(re.findall(r"`([\w-]+)`", (FOLDER / "README.md").read_text(encoding="utf-8")))
    assert {Path(name).stem for name in PAPER} <= named


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"sample": {"temprature": 1.0}}, "sample.temprature: unknown setting; did you mean temperature? "),
        ({"sampel": {"n": 4}}, "sampel: unknown setting; did you mean sample? "),
        ({"train": {"lora": {"rnak": 8}}}, "train.lora.rnak: unknown setting; did you mean rank? "),
        ({"sample": {"n": "ten"}}, "sample.n: Input should be a valid integer, but it is 'ten' (str)"),
        ({"seed": True}, "seed: Input should be a valid integer, but it is True (bool)"),
        ({"seed": 2**32}, "seed: Input should be less than 4294967296, but it is 4294967296 (int)"),
        ({"sample": {"top_p": 1.5}}, "sample.top_p: Input should be less than or equal to 1, but it is 1.5 (float)"),
        ({"train": {"beta": float("inf")}}, "train.beta: Input should be a finite number, but it is inf (float)"),
        ({"select": {"truncated": 1}}, "select.truncated: Input should be 'drop' or 'keep', but it is 1 (int)"),
        ({"sample": None}, "sample: must be a section with any of engine, n, temperature, "),
        ({"models": {"policy": "p"}}, "reward: algorithm dpo compares the policy with the model it was aligned from"),
        ({"models": {}}, "align_english: there is no English-aligned model: set models.policy (pi_0)"),
        ({"languages": "en"}, "languages: Input should be a valid list, but it is 'en' (str)"),
        ({"languages": []}, "languages: List should have at least 1 item after validation, not 0, but it is [] (list)"),
        ({"languages": ["en", "sp"]}, "languages: unknown language 'sp': "),
        ({"languages": ["en", "es", "en"]}, "languages: 'en' is listed more than once"),
        ({"length_penalty": {"mode": "fixed"}}, "length_penalty.alpha: alpha must be given with mode fixed only"),
        ({"length_penalty": {"alpha": 0.1}}, "length_penalty.alpha: alpha must be given with mode fixed only"),
        ({"train": {"batch_size": 10}}, "train.micro_batch_size: micro_batch_size must divide batch_size: 10 is not "),
        ({"align_english": {"preferences": "p"}}, "align_english: models.policy and align_english contradict each "),
    ],
)
def test_each_fault_names_key_value_and_what_is_allowed(sections: dict[str, Any], said: str) -> None:
    [line] = faults(content(**sections))
    assert line.startswith(said)


BY_TOKENS = {
    "sample": {"engine": "server"},
    "server": {"protocol": "chat"},
    "length_penalty": {"unit": "tokens"},
}
FREE = {"models": {"policy": "aligned"}, "reward": {"algorithm": "simpo"}}
"""A policy that was aligned without a reference."""

ORPO = {"preferences": "p", "method": "orpo"}
STAGE_0 = {"models": {"initial": "base"}, "align_english": {"preferences": "p"}}


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        # The models and the algorithm.
        ({"reward": {"algorithm": "simpo"}}, "reward"),
        ({"models": {"policy": "p"}, "reward": {"algorithm": "kto"}}, "reward"),
        ({"models": {}, "align_english": {"preferences": "p"}}, "align_english"),
        ({**STAGE_0, "reward": {"algorithm": "kto"}}, "reward"),
        ({**STAGE_0, "align_english": ORPO}, "reward"),
        # References.
        ({**FREE, "reward": {"algorithm": "orpo", "reference": "previous"}}, "reward.reference"),
        ({**FREE, "train": {"reference": "initial"}}, "train"),
        ({"train": {"method": "simpo", "reference": "initial"}}, "train.reference"),
        ({**STAGE_0, "align_english": {**ORPO, "reference": "initial"}}, "align_english.reference"),
        # Which rewards.
        ({"reward": {"also": ["crosslingual"]}}, "reward.also"),
        ({"reward": {"also": ["multilingual"] * 2}}, "reward.also"),
        ({"reward": {"name": "reward_model"}}, "reward.reward_model"),
        ({"reward": {"also": ["reward_model"]}}, "reward.reward_model"),
        ({"reward": {"reward_model": "m"}}, "reward.reward_model"),
        # What the released scripts compute.
        ({"reward": {"counting": "znlp", "name": "translated"}, "resources": {"shard_prompts": 3}}, "reward.counting"),
        ({"preset": "znlp", "reward": {"also": ["translated"]}}, "reward.counting"),
        ({"preset": "znlp", "reward": {"algorithm": "ipo"}}, "reward.counting"),
        ({**FREE, "reward": {"algorithm": "simpo", "counting": "znlp"}}, "reward.counting"),
        ({"reward": {"counting": "znlp"}}, "resources"),
        ({"preset": "znlp", "resources": {"shard_prompts": 50}}, "resources"),
        # Model servers.
        ({"reward": {"engine": "server"}, "server": {"protocol": "chat"}}, "server"),
        ({"reward": {"also": ["translated"]}, **BY_TOKENS}, "server"),
        ({"reward": {"engine": "server", "counting": "znlp"}, "resources": {"shard_prompts": 3}}, "reward.counting"),
        ({"server": {"url": "localhost:8000/v1"}}, "server.url"),
        ({"server": {"urls": {"pi_I": "http://me:secret@localhost/v1"}}}, "server.urls.pi_I"),
        # Language imbalance.
        ({"language_imbalance": {}, "languages": ["es", "fr"]}, "language_imbalance"),
        ({"language_imbalance": {}, "languages": ["en"]}, "language_imbalance"),
    ],
)
def test_each_contradiction_gives_one_fault(sections: dict[str, Any], key: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe(content(**sections))
    assert caught.value.keys == (key,)


def test_what_does_not_contradict() -> None:
    assert make_recipe(content(**FREE)).models.initial is None
    assert make_recipe(content(**FREE, train={"method": "simpo"})).train.reference == "previous"
    orpo = make_recipe(content(models={"initial": "base"}, align_english=ORPO, reward={"algorithm": "orpo"}))
    assert (orpo.models.policy, orpo.models.initial) == (None, "base")
    assert make_recipe(content(train={"method": "kto", "reference": "initial"})).reward.algorithm == "dpo"
    assert make_recipe(content(preset="znlp", reward={"algorithm": "kto", "name": "multilingual"})).reward.beta == 1.0
    asked = {"name": "reward_model", "reward_model": "m", "also": ["crosslingual"]}
    assert make_recipe(content(reward=asked)).reward.names == ["reward_model", "crosslingual"]


def test_a_contradiction_is_not_reported_for_a_section_that_is_faulty_itself() -> None:
    [line] = faults(content(models={"initial": "base", "polcy": "aligned"}))
    assert line.startswith("models.polcy: unknown setting; did you mean policy?")


def test_all_faults_come_at_once() -> None:
    lines = faults(
        {
            "models": {"initial": "base"},
            "languages": ["xx", "es", "es", "yy"],
            "prompts": {},
            "sample": {"n": 1, "top_k": 3},
            "length_penalty": {"mode": "fixed", "unit": "words"},
            "train": {"batch_size": 6, "lr": 1e-3},
        }
    )
    assert sorted(line.partition(": ")[0] for line in lines) == [
        "align_english",
        "languages",
        "length_penalty.alpha",
        "length_penalty.unit",
        "prompts.source",
        "sample.n",
        "sample.top_k",
        "train.lr",
        "train.micro_batch_size",
    ]
    [languages] = [line for line in lines if line.startswith("languages")]
    for said in (
        "unknown language 'xx'",
        "unknown language 'yy'",
        "'es' is listed more than once",
        "known languages: af, am,",
    ):
        assert said in languages


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("5e-7", 5e-7),
        ("-.5e3", -500.0),
        ("1_000.5", 1000.5),
        ("010", 10),
        ("09", 9),
        ("1:30", "1:30"),
        ("0x10", "0x10"),
        ("2020-01-01", "2020-01-01"),
        ("[no, yes]", ["no", "yes"]),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("'5'", "5"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    found = parse_yaml(text, "x")
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nseed: 2\n", "duplicate key 'seed'"),
        ("sample:\n  n: 4\n  temperature: 1\n  n: 5\n", "duplicate key 'n'"),
        ("", "must be a mapping of sections, but it is empty"),
        ("- seed\n", "must be a mapping of sections, but it is a list"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=said) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot be read: .*No such file"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("seed: 1 # é".encode("latin-1"))
    with pytest.raises(RecipeError, match="cannot be read: 'utf-8' codec"):
        load_recipe(tmp_path / "latin.yaml")


def test_overrides() -> None:
    recipe = with_set(
        "sample.n=4", "train.lora.rank=8", "evaluate.prompts=held.jsonl", "sample.n=6", train={"lora": None}
    )
    assert (recipe.sample.n, recipe.train.lora.rank, recipe.evaluate.prompts) == (6, 8, "held.jsonl")
    english = with_set("align_english.lora.rank=4", "align_english.preferences=p", models={"initial": "base"})
    assert (english.align_english.lora.rank, english.align_english.lora.alpha) == (4, 32.0)
    assert with_set("train.lora=", train={"lora": {"rank": 2}}).train.lora is None
    assert with_set("prompts.source=a=b").prompts.source == "a=b"
    assert load_recipe(RECIPES[0], ["seed=7"]).seed == 7


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("sample.n", "--set must be section.key=value, for example sample.n=4, but it is 'sample.n'"),
        ("=4", "--set must be section.key=value"),
        ("seed.x=1", "--set seed.x: seed is a value, not a section"),
        ("languages.x.y=1", "--set languages.x.y: languages is a value, not a section"),
        ("sample.n=[1", "--set sample.n is not valid YAML"),
        ("smple.n=4", "smple: unknown setting; did you mean sample?"),
        ("sample..n=4", "sample.: unknown setting"),
        ("sample=4", "sample: must be a section with any of engine, n, "),
    ],
)
def test_overrides_that_make_no_sense(change: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        with_set(change, seed=1)
    assert said in str(caught.value)


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").parent.mkdir(exist_ok=True, parents=True)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


BASE = """
models: {initial: base, policy: aligned}
languages: [en, es]
prompts: {source: prompts.jsonl, limit: 9}
sample: {n: 4, temperature: 0.5}
translate: {codes: {es: spa}}
train: {lora: {rank: 4}, beta: 0.2}
"""
EXTENDS_B = "extends: b.yaml"


def test_a_recipe_is_merged_over_the_one_that_it_extends(tmp_path: Path) -> None:
    write(
        tmp_path,
        base=BASE,
        middle="extends: base.yaml\nsample: {temperature: 0.7}\nlanguages: [en, fr, de]\ntrain: {lora: {alpha: 8}}\n",
        top="extends: ./middle.yaml\nsample: {temperature: 0.9}\nprompts: {limit:}\ntranslate: {codes: {fr: fra}}\n",
    )
    recipe = load_recipe(tmp_path / "top.yaml", ["sample.n=6"])
    assert (recipe.sample.n, recipe.sample.temperature) == (6, 0.9)
    assert recipe.languages == ["en", "fr", "de"]
    assert (recipe.prompts.source, recipe.prompts.limit) == ("prompts.jsonl", None)
    assert (recipe.train.lora.rank, recipe.train.lora.alpha, recipe.train.beta) == (4, 8, 0.2)
    assert recipe.translate.codes == {"es": "spa", "fr": "fra"}
    assert "extends" not in dump_recipe(recipe)
    (tmp_path / "resolved.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "resolved.yaml") == recipe


def test_null_replaces_a_section(tmp_path: Path) -> None:
    stage_0 = BASE.replace(", policy: aligned", "") + "align_english: {preferences: p}\n"
    write(
        tmp_path, base=stage_0, top="extends: base.yaml\nmodels: {policy: mine}\nalign_english: null\ntrain: {lora:}\n"
    )
    recipe = load_recipe(tmp_path / "top.yaml")
    assert (recipe.align_english, recipe.train.lora, recipe.train.beta) == (None, None, 0.2)
    assert load_recipe(tmp_path / "top.yaml", ["train.lora.alpha=1"]).train.lora.rank == 16


def test_extends_is_relative_to_its_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "shared", base=BASE)
    write(tmp_path / "mine" / "inner", top="extends: ../../shared/base.yaml\n")
    monkeypatch.chdir(tmp_path / "mine")
    assert load_recipe("inner/top.yaml").sample.n == 4


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a": EXTENDS_B, "b": "extends: c.yaml", "c": EXTENDS_B}, "in a circle: a.yaml extends b.yaml "),
        ({"a": "extends: a.yaml"}, "Recipes extend each other in a circle: a.yaml extends a.yaml."),
        ({"a": EXTENDS_B}, "The recipe b.yaml, which a.yaml extends, cannot be read: [Errno 2] No such file"),
        ({"a": EXTENDS_B, "b": "- 1"}, "The recipe b.yaml, which a.yaml extends, must be a mapping of sections, "),
        ({"a": EXTENDS_B, "b": "seed: [1"}, "The recipe b.yaml, which a.yaml extends, is not valid YAML: "),
        (
            {"a": EXTENDS_B, "b": "sample: &s\n  n: *s"},
            "b.yaml, which a.yaml extends, is not valid YAML: a value contains",
        ),
        ({"a": "extends: [b.yaml]"}, "a.yaml has 1 fault:\n  - extends: must be the path of a recipe file"),
        ({"a": EXTENDS_B, "b": "preset: x"}, "b.yaml has 1 fault:\n  - preset: unknown preset 'x'; Known: znlp"),
        ({"a": BASE + "extend: b.yaml"}, "a.yaml has 1 fault:\n  - extend: unknown setting"),
    ],
)
def test_extending_what_cannot_be_extended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], said: str
) -> None:
    write(tmp_path, **files)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        load_recipe("a.yaml")
    assert said in str(caught.value)


def test_a_fault_names_the_file_that_it_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        tmp_path,
        base=BASE + "evaluate: {n: 0}\nseed: -1\n",
        top="extends: base.yaml\npreset: znlp\nsample: {n: 1}\nreward: {name: translated}\nseed: -2\n",
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        load_recipe("top.yaml", ["train.beta=0", "iterations=-1"])
    head, *lines = str(caught.value).splitlines()
    assert head == "top.yaml has 6 faults:"
    found = [re.fullmatch(r"  - ([\w.]+): .*?(?: \(from (.+)\))?", line) for line in lines]
    assert {match[1]: match[2] for match in found if match} == {
        "evaluate.n": "base.yaml",
        "iterations": "--set",
        "reward.counting": "the preset znlp",
        "sample.n": None,
        "seed": None,
        "train.beta": "--set",
    }
    assert lines[1].endswith("but it is -2 (int)")


def test_a_preset_lies_under_the_settings_that_come_with_it() -> None:
    plain = make_recipe(content(preset="znlp"))
    assert (plain.reward.counting, plain.reward.beta, plain.length_penalty.mode) == ("znlp", 1.0, "grid")
    assert plain == make_recipe(content(**PRESETS["znlp"])) == with_set("preset=znlp")
    mine = with_set("preset=znlp", "select.min_gap=0.1", reward={"beta": 0.3}, length_penalty={"mode": "none"})
    assert (mine.reward.counting, mine.reward.beta, mine.length_penalty.mode) == ("znlp", 0.3, "none")
    assert (mine.select.truncated, mine.select.min_gap) == ("keep", 0.1)
    assert "preset" not in dump_recipe(plain)
    assert make_recipe(content(preset=None)) == make_recipe(content())
    assert "translate" not in PRESETS["znlp"]


def test_a_preset_lies_over_what_was_there_before_it_was_named(tmp_path: Path) -> None:
    write(
        tmp_path,
        base=BASE + "length_penalty: {mode: none}\nselect: {min_gap: 0.2}\n",
        top="extends: base.yaml\npreset: znlp\nselect: {min_gap: 0.3}\n",
        upper="extends: top.yaml\nlength_penalty: {mode: optimal}\n",
    )
    top, upper = load_recipe(tmp_path / "top.yaml"), load_recipe(tmp_path / "upper.yaml")
    assert (top.length_penalty.mode, top.select.min_gap, top.reward.counting) == ("grid", 0.3, "znlp")
    assert (upper.length_penalty.mode, upper.select.min_gap, upper.reward.counting) == ("optimal", 0.3, "znlp")
    asked = load_recipe(tmp_path / "base.yaml", ["length_penalty.mode=optimal", "preset=znlp"])
    assert (asked.length_penalty.mode, asked.select.min_gap, asked.reward.counting) == ("optimal", 0.0, "znlp")


def test_reading_a_recipe_changes_no_preset_and_no_dictionary() -> None:
    before = json.dumps(PRESETS)
    given = content(preset="znlp", train={"lora": {}})
    text = json.dumps(given)
    make_recipe(given)
    load_recipe(FOLDER / "quickstart.yaml", ["preset=znlp", "select.min_gap=0.7", "resources.shard_prompts=6"])
    assert (json.dumps(PRESETS), json.dumps(given)) == (before, text)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"preset": "znpl"}, "preset: unknown preset 'znpl'; did you mean znlp? Known: znlp"),
        ({"preset": ["znlp"]}, "preset: unknown preset ['znlp']; "),
        ({"extends": "x.yaml"}, "extends: "),
    ],
)
def test_presets_and_extends_that_make_no_sense(given: dict[str, Any], said: str) -> None:
    [line] = faults(content(**given))
    assert line.startswith(said)
    [(key, value)] = given.items()
    with pytest.raises(RecipeError, match=f"--set has 1 fault:\n  - {key}: "):
        load_recipe(RECIPES[0], [f"{key}={json.dumps(value)}"])


def test_the_settings_begin_with_the_keys_that_are_no_settings() -> None:
    first, second, *rest = describe_settings()
    assert "`extends: FILE`" in first
    assert "`preset: NAME`" in second
    assert second.endswith(f"Known: {', '.join(PRESETS)}.")
    assert not [line for line in rest if "extends" in line or "preset:" in line]


def as_text(recipe: Recipe) -> str:
    """JSON tells 32 from 32.0, as fingerprints do; comparing recipes would not."""
    return json.dumps(flatten(recipe))


def reread(recipe: Recipe) -> Recipe:
    return make_recipe(parse_yaml(dump_recipe(recipe), "x"))


@pytest.mark.parametrize("text", ["no", "1e5", "09", "~", "5e-7", "1:30", "", "é\x85", "a\u2028b", "- a: b", "<<", "#"])
def test_texts_stay_texts(text: str) -> None:
    assert reread(make_recipe(content(prompts={"source": text}))).prompts.source == text


TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
POSITIVE = st.floats(min_value=1e-4, max_value=10, allow_nan=False)


@settings(max_examples=40, deadline=None)
@given(
    st.fixed_dictionaries({"initial": TEXT, "policy": TEXT}),
    st.lists(st.sampled_from(["en", "no", "pt-br", "zh"]), min_size=1, unique=True),
    st.fixed_dictionaries({"source": TEXT}, optional={"limit": st.integers(1, 10**9) | st.none()}),
    st.fixed_dictionaries({}, optional={"temperature": POSITIVE | st.integers(1, 9), "n": st.integers(2, 99)}),
    st.fixed_dictionaries({"learning_rate": POSITIVE}, optional={"lora": st.sampled_from([None, {}, {"rank": 3}])}),
    st.sampled_from([{}, {"mode": "none"}, {"mode": "fixed", "alpha": -1e-9}, {"mode": "fixed", "alpha": 3}]),
)
def test_a_recipe_survives_its_file(models, languages, prompts, sample, train, penalty) -> None:
    given = content(models=models, languages=languages, prompts=prompts, sample=sample, train=train)
    recipe = make_recipe({**given, "length_penalty": penalty})
    assert reread(recipe) == recipe
    assert as_text(reread(recipe)) == as_text(recipe)


def sections(section: type[Settings] = Recipe) -> set[type[Settings]]:
    kinds = {
        kind for field in section.model_fields.values() for kind in (field.annotation, *_arguments(field.annotation))
    }
    inner = {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Settings)}
    return {section}.union(*(sections(kind) for kind in inner))


def _arguments(annotation: Any) -> tuple[Any, ...]:
    return getattr(annotation, "__args__", ())


def numbers(annotation: Any, bounds: frozenset[str] = frozenset()) -> Iterator[frozenset[str]]:
    """Yield the kinds of bounds of each number that an annotation allows: ge, gt, le, lt."""
    if annotation in (int, float):
        yield bounds
    elif get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        found = [bound for field in more if isinstance(field, FieldInfo) for bound in field.metadata]
        yield from numbers(inner, bounds | {type(bound).__name__.lower() for bound in found})
    elif get_origin(annotation) is not Literal:
        for inner in get_args(annotation):
            yield from numbers(inner, bounds)


def test_every_number_has_bounds() -> None:
    unbound, count = [], 0
    for section in (Recipe, EvaluationSettings):
        for kind in sections(section):
            for name in kind.model_fields:
                for bounds in numbers(get_type_hints(kind, include_extras=True)[name]):
                    count += 1
                    if not (bounds & {"ge", "gt"} and bounds & {"le", "lt"}):
                        unbound.append(f"{kind.__name__}.{name}")
    assert unbound == []
    assert count > 60


@pytest.mark.parametrize(
    "change",
    [
        "sample.temperature=5e-324", "sample.temperature=1e308", "sample.temperature=0", "sample.temperature=.nan",
        "sample.n=1000000000", "sample.n=1", "sample.n=4.0", "sample.n=true", "sample.n='4'", "sample.top_p=1.5",
        "sample.max_new_tokens=1000000000", "sample.max_new_tokens=-1", "sample.batch_size=0", "iterations=1000000000",
        "resources.threads=99999999999999999999", "resources.threads=0", "train.learning_rate=.inf",
        "train.learning_rate=1e30", "train.beta=5e-324", "train.beta=1e308", "train.epochs=1000000000", "seed=-1",
        "train.weight_decay=-0.1", "reward.beta=-0.1", "select.upper_bound=-.inf",
        "length_penalty={mode: fixed, alpha: .nan}", "length_penalty={mode: fixed, alpha: 1e300}",
        "evaluate.resamples=1000000000", "server.timeout=0", "server.timeout=1e300", "server.retries=-1",
        "ray.cpus_per_worker=-1", "ray.workers=1000000", "vllm.memory=0", "prompts.source=7", "models.policy=7",
        "prompts.limit=0", "languages=[]", "languages=[es, es]", "languages=es", "train.lora={rank: 1000000000}",
        "train.lora={target_modules: '(((('}", "train.lora={target_modules: '*'}",
        "train.lora={target_modules: 'a{99999999999}'}",
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_the_work(change: str) -> None:
    key = change.partition("=")[0]
    with pytest.raises(RecipeError) as caught:
        with_set(change)
    [found] = caught.value.keys
    assert found.startswith(key)


def test_every_setting_is_described() -> None:
    assert len(sections()) == 17
    for section in sections():
        assert section.__doc__
        assert not [name for name, field in section.model_fields.items() if not (field.description or "").strip(" .")]


def test_only_models_languages_and_prompts_have_no_default() -> None:
    required = {name for name, field in Recipe.model_fields.items() if field.is_required()}
    assert required == {"models", "languages", "prompts"}


def test_every_setting_is_read_somewhere() -> None:
    read = set()
    for path in SOURCE.rglob("*.py"):
        if path.parent.name != "recipe" and path.name not in ("settings.py", "changes.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    holder = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
                    read.add((holder, node.attr))
    # What sections are called where they are read; `settings` is a section that was handed over.
    names = {"recipe", "settings", "resources", "asked", "penalty", *Recipe.model_fields, "lora"}
    # `reward.also` is read as a part of `reward.names`.
    settings = {"names" if name == "also" else name for section in sections() for name in section.model_fields}
    unread = {name for name in settings if not any((holder, name) in read for holder in names)}
    assert not unread


def test_a_recipe_that_comes_with_the_package_is_named_without_its_place(tmp_path: Path) -> None:
    assert load_recipe("recipe:small/table2-icr") == load_recipe(FOLDER / "small" / "table2-icr.yaml")
    write(tmp_path, mine="extends: recipe:small/table2-icr\niterations: 1\n")
    mine = load_recipe(tmp_path / "mine.yaml")
    assert mine == load_recipe("recipe:small/table2-icr", ["iterations=1"])


def test_an_unknown_shipped_recipe_lists_the_known_ones() -> None:
    for name in ("smal/table2-icr", "distributed/ddp", "../recipes/quickstart"):
        with pytest.raises(RecipeError) as caught:
            load_recipe(f"recipe:{name}")
        assert all(known in str(caught.value) for known in known_recipes())
    assert {"quickstart", "small/table2-icr", "paper/znlp"} <= set(known_recipes())


@pytest.mark.parametrize(
    ("kind", "override", "key"),
    [
        (SampleStage, "train.epochs=2", "train"),
        (SampleStage, "sample.temprature=1", "sample.temprature"),
        (TrainStage, "models.policy=x", "models.policy"),
        (TrainStage, "train={method: kto, precompute_reference: true}", "train.precompute_reference"),
        (ScoreStage, "reward={engine: server, counting: znlp}", "reward.counting"),
        (SelectStage, "languages=[xx]", "languages"),
    ],
)
def test_a_stage_alone_takes_its_own_sections_only(kind: type[StageSettings], override: str, key: str) -> None:
    given = {"languages": ["es"], **({"prompts": {"source": "p.jsonl"}} if "prompts" in kind.model_fields else {})}
    assert stage_settings(kind, given, []).languages == ["es"]
    with pytest.raises(RecipeError) as caught:
        stage_settings(kind, given, [override])
    assert caught.value.keys == (key,)


def test_a_fault_of_a_stage_alone_says_where_it_is_from() -> None:
    with pytest.raises(RecipeError) as caught:
        stage_settings(TrainStage, {"languages": ["es", "klingon"]}, ["train.epochs=0"])
    head, first, second = str(caught.value).splitlines()
    assert "--set" not in head
    assert "languages" in first
    assert first.endswith("(from the options and tables)")
    assert second.endswith("(from --set)")


def test_a_preset_counts_in_a_stage_as_far_as_the_stage_reads_it() -> None:
    given = {"languages": ["es"], "prompts": {"source": "p.jsonl"}}
    score = stage_settings(ScoreStage, given, ["preset=znlp", "reward.beta=0.5"])
    assert (score.reward.counting, score.reward.beta, score.length_penalty.mode) == ("znlp", 0.5, "grid")
    assert stage_settings(TrainStage, {"languages": ["es"]}, ["preset=znlp"]).train == TrainSettings()
    with pytest.raises(RecipeError) as caught:
        stage_settings(ScoreStage, given, ["extends=x.yaml"])
    assert caught.value.keys == ("extends",)
