"""Recipes: what is refused and how it is said, and that nothing is lost between a recipe and its file."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import crosspref
from crosspref.errors import RecipeError
from crosspref.recipe import Recipe, Settings
from crosspref.recipe_file import dump_recipe, flatten, load_recipe, make_recipe, override, parse_yaml

SOURCE = Path(crosspref.__file__).parent
RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


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


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    assert load_recipe(path).iterations >= 1


def test_the_papers_recipe_has_the_papers_settings() -> None:
    # Sections 5.1 and B.3 (Tables 2 and 9).
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "llama3-8b-icr.yaml")
    sample, train = recipe.sample, recipe.train
    assert (sample.n, sample.temperature, sample.top_p, sample.max_new_tokens) == (10, 0.9, 1.0, 2400)
    assert (recipe.reward.beta, recipe.length_penalty.mode, recipe.iterations, recipe.seed) == (0.1, "optimal", 2, 42)
    assert (train.beta, train.nll_weight, train.learning_rate, train.batch_size, train.epochs) == (0.1, 1, 5e-7, 16, 1)
    assert (train.scheduler, train.warmup_ratio, train.lora, train.max_length >= 2400) == ("cosine", 0.03, None, True)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"sample": {"temprature": 1.0}}, "sample.temprature: unknown setting (value 1.0); did you mean temperature? "),
        ({"sampel": {"n": 4}}, "sampel: unknown setting (value {'n': 4}); did you mean sample? "),
        ({"train": {"lora": {"rnak": 8}}}, "train.lora.rnak: unknown setting (value 8); did you mean rank? "),
        ({"sample": {"n": "ten"}}, "sample.n: Input should be a valid integer, but it is 'ten' (str)"),
        ({"sample": {"n": 4.0}}, "sample.n: Input should be a valid integer, but it is 4.0 (float)"),
        ({"seed": True}, "seed: Input should be a valid integer, but it is True (bool)"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0, but it is -1 (int)"),
        ({"seed": 2**32}, "seed: Input should be less than 4294967296, but it is 4294967296 (int)"),
        ({"sample": {"n": 1}}, "sample.n: Input should be greater than or equal to 2, but it is 1 (int)"),
        ({"sample": {"top_p": 1.5}}, "sample.top_p: Input should be less than or equal to 1, but it is 1.5 (float)"),
        ({"train": {"beta": float("inf")}}, "train.beta: Input should be a finite number, but it is inf (float)"),
        ({"select": {"truncated": 1}}, "select.truncated: Input should be 'drop' or 'keep', but it is 1 (int)"),
        ({"sample": None}, "sample: must be a section with any of n, temperature, "),
        ({"models": {"policy": "p"}}, "models.initial: is missing. pi_I: the model before preference alignment"),
        ({"languages": "en"}, "languages: Input should be a valid list, but it is 'en' (str)"),
        ({"languages": []}, "languages: List should have at least 1 item after validation, not 0, but it is [] (list)"),
        ({"languages": ["en", "sp"]}, "languages: unknown language 'sp' (did you mean "),
        ({"languages": ["en", "es", "en"]}, "languages: 'en' is listed more than once"),
        (
            {"length_penalty": {"mode": "fixed"}},
            "length_penalty.alpha: alpha goes with mode fixed: mode is 'fixed' and alpha is None",
        ),
        (
            {"length_penalty": {"alpha": 0.1}},
            "length_penalty.alpha: alpha goes with mode fixed: mode is 'optimal' and alpha is 0.1",
        ),
        ({"train": {"batch_size": 10}}, "train.micro_batch_size: micro_batch_size must divide batch_size: 10 is no "),
        (
            {"models": {"initial": "base"}},
            "align_english: there is no English-aligned model: give models.policy (pi_0)",
        ),
        ({"align_english": {"preferences": "p"}}, "align_english: models.policy and align_english contradict each "),
    ],
)
def test_each_fault_names_key_value_and_what_is_allowed(sections: dict[str, Any], said: str) -> None:
    [line] = faults(content(**sections))
    assert line.startswith(said)


def test_a_contradiction_is_not_reported_for_a_section_that_is_faulty_itself() -> None:
    [line] = faults(content(models={"initial": "base", "polcy": "aligned"}))
    assert line.startswith("models.polcy: unknown setting (value 'aligned'); did you mean policy?")


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
        "known are af, am,",
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


def test_norwegian_and_small_numbers_in_a_recipe() -> None:
    recipe = with_set("languages=[en, no]", "train.learning_rate=5e-7")
    assert (recipe.languages, recipe.train.learning_rate) == (["en", "no"], 5e-7)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nseed: 2\n", "the key 'seed' is given twice"),
        ("sample:\n  n: 4\n  temperature: 1\n  n: 5\n", "the key 'n' is given twice"),
        ("seed: [1\n", "is not valid YAML"),
        ("seed: !!int x\n", "is not valid YAML"),
        ("seed: !!python/object:os.system x\n", "is not valid YAML"),
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
        ("sample.n", "--set takes section.key=value, for example sample.n=4, but got 'sample.n'"),
        ("=4", "--set takes section.key=value"),
        ("seed.x=1", "--set seed.x=1: seed is a value, not a section"),
        ("languages.x.y=1", "--set languages.x.y=1: languages is a value, not a section"),
        ("sample.n=[1", "--set sample.n=[1 is not valid YAML"),
        ("smple.n=4", "smple: unknown setting (value {'n': 4}); did you mean sample?"),
        ("sample..n=4", "sample.: unknown setting"),
        ("sample=4", "sample: must be a section with any of n, "),
    ],
)
def test_overrides_that_make_no_sense(change: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        with_set(change, seed=1)
    assert said in str(caught.value)


def as_text(recipe: Recipe) -> str:
    """JSON tells 32 from 32.0, as fingerprints do; comparing recipes would not."""
    return json.dumps(flatten(recipe))


def reread(recipe: Recipe) -> Recipe:
    return make_recipe(parse_yaml(dump_recipe(recipe), "x"))


@pytest.mark.parametrize("text", ["no", "1e5", "09", "~", "5e-7", "1:30", "", "é\x85", "a\u2028b", "- a: b", "<<", "#"])
def test_texts_stay_texts(text: str) -> None:
    assert reread(make_recipe(content(prompts={"source": text}))).prompts.source == text


TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False)


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


def test_every_setting_is_described() -> None:
    assert len(sections()) == 12
    for section in sections():
        assert section.__doc__
        assert not [name for name, field in section.model_fields.items() if not (field.description or "").strip(" .")]


def test_only_models_languages_and_prompts_have_no_default() -> None:
    required = {name for name, field in Recipe.model_fields.items() if field.is_required()}
    assert required == {"models", "languages", "prompts"}


def test_every_setting_is_read_somewhere() -> None:
    read = set()
    for path in SOURCE.rglob("*.py"):
        if path.name not in ("recipe.py", "recipe_file.py", "settings.py", "changes.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    holder = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
                    read.add((holder, node.attr))
    # What sections are called where they are read; `settings` is a section that was handed over.
    names = {"recipe", "settings", "resources", "asked", "penalty", *Recipe.model_fields, "lora"}
    settings = {name for section in sections() for name in section.model_fields}
    unread = {name for name in settings if not any((holder, name) in read for holder in names)}
    assert not unread
