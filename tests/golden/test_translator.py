"""Translators against naive greedy loops, with tiny models of random weights and real language tokens."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import naive
import pytest
import torch
from tiny import DATA, make_tokenizer
from tiny_engines import END, EOS, RESOURCES, Models, change_json, copy_with
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
    NllbTokenizer,
)

from crosspref.engines import EngineSettings
from crosspref.engines.transformers import translator as transformers_translator
from crosspref.engines.transformers.translator import ChatTranslator, TranslationModel
from crosspref.errors import ModelError
from crosspref.models.locate import is_encoder_decoder, locate_model
from crosspref.protocols import Sampled
from crosspref.recipe.sections import SampleSettings, TranslateSettings

NLLB_CODES = {"en": "eng_Latn", "es": "spa_Latn", "ru": "rus_Cyrl"}
SHAPE = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,  # a tied random model says its last token again and again
}
REQUESTS = [
    ("Hi!", "en", "es"),
    ("The sky is blue, and red in the evening.", "en", "es"),
    ("¿Qué es un volcán?", "es", "en"),
    ("Назови три столицы.", "ru", "en"),
    ("Name two.", "en", "ru"),
]

Request = tuple[str, str, str]


def save(model: Any, tokenizer: Any, directory: Path, scale: float = 8.0) -> Path:
    """Write both; ``scale`` sharpens the model's distributions, so that wrong positions and masks show."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
        # Language tokens, which a text does not show, stay unlikely.
        model.lm_head.weight[[number for token, number in tokenizer.get_vocab().items() if len(token) > 4]] = 0
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def letters() -> list[str]:
    rows = [json.loads(line) for line in (DATA / "prompts_train.jsonl").read_text(encoding="utf-8").splitlines()]
    return sorted({letter for row in rows for text in row.values() for letter in text} - {" "})


@pytest.fixture(scope="module")
def nllb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model like NLLB: a token per language in front of the source and of the translation."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "▁", *letters()]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = NllbTokenizer(vocab=vocabulary, merges=[], src_lang="fra_Latn", model_max_length=64)
    torch.manual_seed(0)
    model = M2M100ForConditionalGeneration(M2M100Config(vocab_size=len(tokenizer), decoder_start_token_id=2, **SHAPE))
    return save(model, tokenizer, tmp_path_factory.mktemp("nllb"))


@pytest.fixture(scope="module")
def mbart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model like mbart-large-en-ro: a token per language behind the source; translations begin with it."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "▁", *letters()]
    tokenizer = MBartTokenizer(vocab=[(token, -1.0) for token in tokens], model_max_length=64)
    torch.manual_seed(0)
    start = tokenizer.convert_tokens_to_ids("ro_RO")
    model = MBartForConditionalGeneration(
        MBartConfig(vocab_size=len(tokenizer), decoder_start_token_id=start, forced_eos_token_id=None, **SHAPE)
    )
    return save(model, tokenizer, tmp_path_factory.mktemp("mbart"))


def make_marian(directory: Path, *targets: str, seed: int = 1) -> Path:
    """Write a Marian model: nothing but the end behind the source; its start is its padding, which it must not emit."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|eos|>", special_tokens=[("<|eos|>", EOS)]
    )
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    if targets:
        tokenizer.add_tokens([f">>{target}<<" for target in targets])
    tokenizer.chat_template = None
    tokenizer.model_max_length = 512  # more than the model has positions for
    torch.manual_seed(seed)
    pad = tokenizer.pad_token_id
    model = MarianMTModel(
        MarianConfig(vocab_size=len(tokenizer), pad_token_id=pad, eos_token_id=EOS, decoder_start_token_id=pad, **SHAPE)
    )
    model.generation_config = GenerationConfig(
        decoder_start_token_id=pad,
        eos_token_id=EOS,
        pad_token_id=pad,
        bad_words_ids=[[pad]],
        forced_eos_token_id=EOS,
        num_beams=4,
        max_length=20,
    )
    model.final_logits_bias[0, pad] = 100.0  # so the ban on padding decides
    return save(model, tokenizer, directory)


@pytest.fixture(scope="module")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_marian(tmp_path_factory.mktemp("marian"))


def translator(directory: Path, codes: dict[str, str] | None = None, max_new_tokens: int = 12) -> TranslationModel:
    translate = TranslateSettings(codes=codes or {}, max_new_tokens=max_new_tokens)
    return TranslationModel(EngineSettings(translate=translate, resources=RESOURCES), locate_model(str(directory)))


def translate(engine: TranslationModel | ChatTranslator, requests: Sequence[Request]) -> list[Sampled | None]:
    return engine.translate(requests, lambda *_: None)


def naive_translation(
    directory: Path, source: list[int], start: list[int], never: int | None = None, most: int = 12
) -> tuple[str, str]:
    """Return (text, finish reason) of one row's likeliest tokens, without cache or padding."""
    model = AutoModelForSeq2SeqLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    eos = model.generation_config.eos_token_id
    ids = list(start)
    # ``start`` holds the token that generation begins with, and the target's where it is forced: one of the new tokens.
    for _ in range(most + 1 - len(start)):
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([ids]), use_cache=False
            ).logits[0, -1]
        if never is not None:
            logits[never] = -torch.inf
        ids.append(int(logits.argmax()))
        if ids[-1] == eos:
            break
    tokenizer = AutoTokenizer.from_pretrained(directory)
    reason = "stop" if ids[-1] == eos else "length"
    return tokenizer.decode(ids[len(start) :], skip_special_tokens=True, clean_up_tokenization_spaces=False), reason


def both(answer: Sampled | None) -> tuple[str, str]:
    assert answer is not None
    assert answer.token_ids == []
    return answer.text, answer.finish_reason


@pytest.mark.parametrize("rows", [1, 32])
def test_nllb_equals_naive_greedy_decoding(nllb: Path, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers_translator, "BATCH_ROWS", rows)
    found = translate(translator(nllb, NLLB_CODES), REQUESTS)
    tokenizer = AutoTokenizer.from_pretrained(nllb)
    for (text, source, target), answer in zip(REQUESTS, found, strict=True):
        body = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = [tokenizer.convert_tokens_to_ids(NLLB_CODES[source]), *body, 2]
        start = [2, tokenizer.convert_tokens_to_ids(NLLB_CODES[target])]
        assert both(answer) == naive_translation(nllb, ids, start)
    assert len({both(answer)[0] for answer in found}) == len(REQUESTS)


def test_mbart_begins_with_the_language(mbart: Path) -> None:
    codes = {"en": "en_XX", "es": "es_XX", "ru": "ru_RU"}
    found = translate(translator(mbart, codes), REQUESTS)
    tokenizer = AutoTokenizer.from_pretrained(mbart)
    for (text, source, target), answer in zip(REQUESTS, found, strict=True):
        body = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = [*body, 2, tokenizer.convert_tokens_to_ids(codes[source])]
        assert both(answer) == naive_translation(mbart, ids, [tokenizer.convert_tokens_to_ids(codes[target])])


def test_m2m100_tokens_of_languages_are_no_part_of_the_text(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="M2M100's tokenizer needs it")
    from transformers import M2M100Tokenizer

    (tmp_path / "letters.txt").write_text("\n".join(letters()) * 3, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "letters.txt"),
        model_prefix=str(tmp_path / "pieces"),
        vocab_size=len(letters()) + 4,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "pieces.model"))
    pieces = [processor.IdToPiece(number) for number in range(processor.GetPieceSize())]
    tokens = dict.fromkeys(["<s>", "<pad>", "</s>", "<unk>", *pieces])
    (tmp_path / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    tokenizer = M2M100Tokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "pieces.model"))
    torch.manual_seed(0)
    size = tokenizer.get_lang_id("zu") + 1
    model = M2M100ForConditionalGeneration(M2M100Config(vocab_size=size, decoder_start_token_id=2, **SHAPE))
    with torch.no_grad():
        model.lm_head.weight[len(tokens) :] = 0
    directory = save(model, tokenizer, tmp_path / "m2m100")
    found = translate(translator(directory), REQUESTS)  # its codes are the tags
    for (text, source, target), answer in zip(REQUESTS, found, strict=True):
        body = tokenizer(text, add_special_tokens=False)["input_ids"]
        start = [2, tokenizer.get_lang_id(target)]
        assert both(answer) == naive_translation(directory, [tokenizer.get_lang_id(source), *body, 2], start)
        assert "__" not in both(answer)[0]
    with pytest.raises(ModelError, match=r"no token for the language 'la'.*It knows: af, "):
        translate(translator(directory), [("Hi!", "en", "la")])


def test_marian_needs_no_codes_and_keeps_its_own_bans(marian: Path) -> None:
    requests = [(text, "xx", "en") for text, _, _ in REQUESTS]
    found = translate(translator(marian), requests)
    tokenizer = AutoTokenizer.from_pretrained(marian)
    pad = tokenizer.pad_token_id
    for (text, _, _), answer in zip(requests, found, strict=True):
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], EOS]
        expected = naive_translation(marian, ids, [pad], never=pad)
        assert both(answer) == expected
        assert expected != naive_translation(marian, ids, [pad])
    assert {reason for _, reason in map(both, found)} == {"length"}  # although the model forces an end at its limit


def test_a_model_without_codes_has_one_target(marian: Path) -> None:
    engine = translator(marian)
    assert all(translate(engine, [("Hola", "es", "en"), ("Hallo", "de", "en")]))
    with pytest.raises(ModelError, match=r"cannot be told into which language .* for en and for es"):
        translate(engine, [("Hi", "en", "es")])


def test_targets_in_front_of_the_text(tmp_path: Path) -> None:
    directory = make_marian(tmp_path / "many", "spa", "fra")
    engine = translator(directory, {"es": "spa", "fr": "fra"})
    found = translate(engine, [("Hi!", "en", "fr"), ("Hi!", "en", "es")])
    tokenizer = AutoTokenizer.from_pretrained(directory)
    for target, answer in zip(("fra", "spa"), found, strict=True):
        ids = [
            tokenizer.convert_tokens_to_ids(f">>{target}<<"),
            *tokenizer(" Hi!", add_special_tokens=False)["input_ids"],
            EOS,
        ]
        pad = tokenizer.pad_token_id
        assert both(answer) == naive_translation(directory, ids, [pad], never=pad)
    with pytest.raises(ModelError, match=r"no token for the language 'de'.*It knows: fra, spa"):
        translate(engine, [("Hi!", "en", "de")])


def test_names_of_languages_and_of_the_end_are_text_inside_a_text(nllb: Path, tmp_path: Path) -> None:
    many = make_marian(tmp_path / "many", "spa", "fra")
    names = ("spa_Latn", "eng_Latn", "</s>", ">>fra<<", "<|eos|>")
    for directory, text in ((nllb, "a spa_Latn </s> b"), (many, "a >>fra<< <|eos|> b")):
        codes = {"es": "spa_Latn", "en": "eng_Latn"} if directory == nllb else {"es": "spa"}
        languages = translator(directory, codes).languages
        tokenizer = languages.tokenizer
        controls = {tokenizer.convert_tokens_to_ids(name) for name in names} - {tokenizer.unk_token_id, None}
        plain, ids = languages.encode("a b", "en", "es"), languages.encode(text, "en", "es")
        assert sum(token in controls for token in ids) == sum(token in controls for token in plain)
        assert (ids[0], ids[-1]) == (plain[0], plain[-1])
        shown = tokenizer.decode(ids, skip_special_tokens=True)
        assert "".join(filter(str.isalpha, text)) in "".join(filter(str.isalpha, shown))  # there are only letters


@pytest.mark.parametrize(("source", "target"), [("en", "es"), ("es", "en")])
def test_an_unknown_code_is_named_with_known_ones(nllb: Path, source: str, target: str) -> None:
    engine = translator(nllb, {"en": "eng_Latn"})
    with pytest.raises(ModelError, match=r"'es'.* translate.codes, such as es: CODE. It knows: est_Latn.*\.\.\.$"):
        translate(engine, [("Hi!", source, target)])


def test_a_named_special_token_is_no_language(nllb: Path) -> None:
    with pytest.raises(ModelError, match="no token for the language '<mask>'"):
        translate(translator(nllb, {"en": "eng_Latn", "es": "<mask>"}), [("Hi!", "en", "es")])


def test_a_text_beyond_the_models_positions_is_given_up_and_never_cut(nllb: Path, marian: Path) -> None:
    # NLLB: one token per letter and word, and two more. 64 positions.
    fits, beyond = "a" * 61, "a" * 62
    steps: list[tuple[int, int]] = []
    requests = [(beyond, "en", "es"), (fits, "en", "es"), (beyond, "es", "en")]
    found = translator(nllb, NLLB_CODES).translate(requests, lambda *step: steps.append(step))
    assert [answer is None for answer in found] == [True, False, True]
    assert sum(units for units, _ in steps) == 3
    tokenizer = AutoTokenizer.from_pretrained(nllb)
    start = [2, tokenizer.convert_tokens_to_ids("spa_Latn")]
    ids = [tokenizer.convert_tokens_to_ids("eng_Latn"), *tokenizer(fits, add_special_tokens=False)["input_ids"], 2]
    assert len(ids) == 64
    assert both(found[1]) == naive_translation(nllb, ids, start)
    assert translate(translator(marian), [("the sky is blue " * 20, "en", "es")]) == [None]


def test_a_tokenizers_tighter_limit_counts(nllb: Path, tmp_path: Path) -> None:
    directory = copy_with(nllb, tmp_path / "tight", "tokenizer_config.json", model_max_length=10)
    found = translate(translator(directory, NLLB_CODES), [("a" * 7, "en", "es"), ("a" * 8, "en", "es")])
    assert [answer is None for answer in found] == [False, True]


def test_no_more_new_tokens_than_positions(marian: Path) -> None:
    answer = translate(translator(marian, max_new_tokens=1000), [("Hi!", "en", "es")])[0]
    tokenizer = AutoTokenizer.from_pretrained(marian)
    ids, pad = [*tokenizer("Hi!", add_special_tokens=False)["input_ids"], EOS], tokenizer.pad_token_id
    assert both(answer) == naive_translation(marian, ids, [pad], never=pad, most=64)


def test_an_end_stops_a_translation_and_is_not_part_of_it(nllb: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(nllb)
    text, reason = both(translate(translator(nllb, NLLB_CODES), REQUESTS[:1])[0])
    assert reason == "length"
    last = text[-1]
    end = tokenizer.convert_tokens_to_ids(last)
    assert end != tokenizer.unk_token_id
    directory = copy_with(nllb, tmp_path / "ends", "generation_config.json", eos_token_id=end)
    found = both(translate(translator(directory, NLLB_CODES), REQUESTS[:1])[0])
    assert found == (text[: text.index(last)], "stop")


def test_progress_counts_texts_and_tokens(nllb: Path) -> None:
    steps: list[tuple[int, int]] = []
    translator(nllb, NLLB_CODES, 5).translate(REQUESTS, lambda *step: steps.append(step))
    assert sum(units for units, _ in steps) == len(REQUESTS)
    assert 0 < sum(tokens for _, tokens in steps) <= 5 * len(REQUESTS)
    assert translate(translator(nllb, NLLB_CODES), []) == []


def test_a_model_that_cannot_translate_is_refused(nllb: Path, tiny_models: Models, tmp_path: Path) -> None:
    assert is_encoder_decoder(locate_model(str(nllb)))
    with pytest.raises(ModelError, match="cannot be loaded"):
        translator(tiny_models["llama"][0])
    directory = shutil.copytree(nllb, tmp_path / "no-start")
    for name in ("generation_config.json", "config.json"):
        change_json(directory / name, decoder_start_token_id=None, bos_token_id=None, forced_bos_token_id=None)
    with pytest.raises(ModelError, match="with which token a translation begins"):
        translator(directory)


def chat(directory: Path, is_policy: bool = True, max_new_tokens: int = 12, **sampling: Any) -> ChatTranslator:
    translate = TranslateSettings(max_new_tokens=max_new_tokens)
    settings = EngineSettings(translate=translate, sample=SampleSettings(**sampling), resources=RESOURCES)
    return ChatTranslator(settings, locate_model(str(directory)), is_policy=is_policy)


NAMES = {"en": "English", "es": "Spanish", "ru": "Russian"}


def prompt_of(directory: Path, text: str, target: str) -> list[int]:
    """Return the ids of E.2's prompt, written out."""
    return naive.prompt_ids(
        directory,
        f"Please translate the following sentences into {NAMES[target]}. The input sentences are wrapped by "
        f"<sentence> and </sentence>:\n\n<sentence>\n{text}\n</sentence>",
    )


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_a_chat_model_is_asked_as_in_the_paper_and_takes_the_likeliest_tokens(kind: str, tiny_models: Models) -> None:
    directory = tiny_models[kind][1]
    # A temperature, and fewer new tokens than the recipe samples, that must have no effect.
    found = translate(chat(directory, temperature=5.0, top_p=0.3, max_new_tokens=12), REQUESTS)
    model, tokenizer = naive.load(directory), AutoTokenizer.from_pretrained(directory)
    for (text, _, target), answer in zip(REQUESTS, found, strict=True):
        ids = naive.greedy(model, prompt_of(directory, text, target), 12)
        assert answer is not None
        assert answer.token_ids == ids
        shown = [token for token in ids if token not in tokenizer.all_special_ids]
        assert answer.text == tokenizer.decode(shown, clean_up_tokenization_spaces=False)
        assert answer.finish_reason == ("stop" if ids[-1] in (EOS, END) else "length")
    others = translate(chat(directory, is_policy=False), REQUESTS)
    assert [answer.text for answer in others if answer] == [answer.text for answer in found if answer]
    assert all(answer is not None and answer.token_ids == [] for answer in others)


def test_a_text_that_is_too_long_to_be_asked_about_has_no_translation(tiny_models: Models) -> None:
    directory = tiny_models["llama"][1]
    longest = len(prompt_of(directory, REQUESTS[0][0], "es"))
    found = translate(chat(directory, max_prompt_tokens=longest), REQUESTS[:2])
    assert [answer is None for answer in found] == [False, True]


@pytest.mark.parametrize(
    ("answered", "text", "ids"),
    [
        ("\n<sentence> Hola.\n\nAdiós.</sentence>\n", "Hola.\n\nAdiós.", []),
        ("Hola.\n</sentence>", "Hola.", []),
        ("<sentence>\nHola, que se cor", "Hola, que se cor", []),
        (" Hola.\n", " Hola.\n", [5, 2]),
        ("Write <sentence> and </sentence> around it.", "Write <sentence> and </sentence> around it.", [5, 2]),
    ],
)
def test_tags_around_an_answer_are_taken_off(answered: str, text: str, ids: list[int], tiny_models: Models) -> None:
    engine = chat(tiny_models["llama"][1])
    engine.sampler.sample = lambda *_: [[Sampled(answered, [5, 2], "stop")]]  # type: ignore[method-assign]
    assert translate(engine, [("Hi.", "en", "es")]) == [Sampled(text, ids, "stop")]
    engine.close()
    assert engine.sampler.model is None


def test_an_answer_of_blanks_is_read_once(tiny_models: Models) -> None:
    """To look for a tag behind each blank would take hours."""
    engine, answered = chat(tiny_models["llama"][1]), f"Hola.{' ' * 300_000}x"
    engine.sampler.sample = lambda *_: [[Sampled(answered, [5, 2], "stop")]]  # type: ignore[method-assign]
    assert translate(engine, [("Hi.", "en", "es")]) == [Sampled(answered, [5, 2], "stop")]
