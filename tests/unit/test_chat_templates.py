"""Chat templates of many shapes: what they do to messages, that text stays text, and that no day is like another."""

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tiny import make_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AddedToken, ByT5Tokenizer, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from crosspref.data.records import Pair, Prompt
from crosspref.engines.transformers.asking import describe_template, describe_texts, examine_asking, require_askable
from crosspref.engines.transformers.chat import AS_IT_IS, ChatTokenizer
from crosspref.errors import DataError, ModelError
from crosspref.recipe.files import make_recipe
from crosspref.recipe.sections import AskingSettings
from crosspref.run.job import asking_of

LOOP, ANSWERS = "{% for message in messages %}", "{% if add_generation_prompt %}<|assistant|>{% endif %}"
SAID = "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}" + ANSWERS

CHATML = (
    "{%- if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are Tiny.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{{ '<|start_header_id|>system<|end_header_id|>\n\nToday: ' + strftime_now('%d %b %Y') }}<|eot_id|>"
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}"
    "{% endif %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
LLAMA_2 = MISTRAL.replace("+ eos_token", "+ ' ' + eos_token")
PHI_3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
QWEN_3 = (
    "{% for message in messages %}{% set content = message.content %}"
    "{% if message.role == 'assistant' %}{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)


def finished(tokenizer: Any, special: Sequence[str], added: Sequence[str] = (), **names: str) -> Any:
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in special], special_tokens=True)
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in added])
    for name, token in names.items():
        setattr(tokenizer, name, token)
    return tokenizer


def byte_level() -> Any:
    own = Tokenizer(models.BPE())
    own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    own.train_from_iterator(["what is the end"], trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=own)


def pieces(*, unigram: bool, legacy: bool) -> Any:
    """As converted from sentencepiece: a text gets a space in front, in older ones behind every added token, too."""
    special, letters = ["<unk>", "<s>", "</s>"], sorted(set("what is the end then? WY_<>|/[]INSTmoudlrsykbf\n\u2581"))
    if unigram:
        own = Tokenizer(models.Unigram())
        trainer: Any = trainers.UnigramTrainer(
            vocab_size=90, special_tokens=special, unk_token="<unk>", initial_alphabet=letters
        )
    else:
        own = Tokenizer(models.BPE(unk_token="<unk>"))
        trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=special, initial_alphabet=letters)
    if legacy:
        own.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        own.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    strip = decoders.Strip(content=" ", left=1)
    own.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), strip])
    own.train_from_iterator(["what is the end then? </s> <s>"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


CHATML_TOKENS, PHI_TOKENS = ["<|im_start|>", "<|im_end|>"], ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
HEADERS = ["<|begin|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
TURNS = ["<start_of_turn>", "<end_of_turn>"]
SHAPES: dict[str, tuple[Any, str, str]] = {
    "chatml": (lambda: finished(byte_level(), CHATML_TOKENS), CHATML, "<|im_end|>"),
    "unmarked": (lambda: finished(byte_level(), ["<|eos|>"], CHATML_TOKENS, eos_token="<|eos|>"), CHATML, "<|im_end|>"),
    "llama 3": (lambda: finished(byte_level(), HEADERS, bos_token="<|begin|>"), LLAMA_3, "<|eot_id|>"),
    "gemma": (lambda: finished(pieces(unigram=False, legacy=False), TURNS), GEMMA, "<end_of_turn>"),
    "unigram": (lambda: finished(pieces(unigram=True, legacy=False), TURNS), GEMMA, "<end_of_turn>"),
    "mistral": (lambda: finished(pieces(unigram=False, legacy=True), ["[INST]", "[/INST]"]), MISTRAL, "</s>"),
    "llama 2": (lambda: pieces(unigram=False, legacy=False), LLAMA_2, "</s>"),
    "llama 2, legacy": (lambda: pieces(unigram=False, legacy=True), LLAMA_2, "</s>"),
    "phi 3": (lambda: finished(pieces(unigram=True, legacy=True), PHI_TOKENS), PHI_3, "<|end|>"),
    "qwen 3": (lambda: finished(byte_level(), CHATML_TOKENS, ["<think>", "</think>"]), QWEN_3, "<|im_end|>"),
    "slow": (lambda: finished(ByT5Tokenizer(extra_ids=0), CHATML_TOKENS), CHATML, "<|im_end|>"),
}


@pytest.fixture(scope="module", params=SHAPES)
def shape(request: pytest.FixtureRequest) -> tuple[ChatTokenizer, str]:
    make, template, end = SHAPES[request.param]
    tokenizer = make()
    tokenizer.chat_template = template
    return ChatTokenizer(tokenizer, AS_IT_IS, request.param), end


def with_template(template: str, **asking: Any) -> ChatTokenizer:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return ChatTokenizer(tokenizer, AskingSettings(**asking), "tiny")


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_the_templates_own_token_ends_a_turn(shape: tuple[ChatTokenizer, str]) -> None:
    tokenizer, end = shape
    assert tokenizer.tokenizer.convert_ids_to_tokens(tokenizer.end_of_turn) == end
    assert end in tokenizer.controls


def test_what_names_no_control_token_is_encoded_as_ever(shape: tuple[ChatTokenizer, str]) -> None:
    tokenizer, _ = shape
    own, chat = tokenizer.tokenizer, [turn("user", "what is < the end? "), turn("assistant", " no"), turn("user", "?")]
    if not tokenizer.template.tells_date:
        assert tokenizer.chat_ids(chat) == own.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    if own.convert_tokens_to_ids("\u2581") is None or own.convert_tokens_to_ids("\u2581") == own.unk_token_id:
        assert tokenizer.response_ids(" so <|", False) == own(" so <|", add_special_tokens=False)["input_ids"]


def test_an_answers_text_gets_the_ids_that_stand_behind_a_prompt(shape: tuple[ChatTokenizer, str]) -> None:
    """Those of a whole conversation without those of its prompt; and from sampled ids to a text and back."""
    tokenizer, _ = shape
    own, question = tokenizer.tokenizer, turn("user", "what is <it> then?")
    for text in ("the end", "what is <the> end", "is\n the", "what"):
        prompt = tokenizer.prompt_ids(question["content"])
        rendered = tokenizer.template.render([question, turn("assistant", text)], finished=True)
        whole = own(rendered[: rendered.rindex(text) + len(text)], add_special_tokens=False)["input_ids"]
        assert whole[: len(prompt)] == prompt
        sampled = whole[len(prompt) :]
        if tokenizer.template.name == "mistral":  # both the template and the tokenizer put a space there, and one shows
            assert tokenizer.text(sampled) == " " + text
            sampled = sampled[1:]
        assert tokenizer.response_ids(text, ended=False) == sampled
        assert tokenizer.text(sampled) == text
    assert tokenizer.response_ids("", ended=True) == [tokenizer.end_of_turn]


def test_bytes_are_encoded_alike_wherever_they_stand(shape: tuple[ChatTokenizer, str]) -> None:
    tokenizer, _ = shape
    is_spaced = "\u2581" in tokenizer.tokenizer.get_vocab()
    assert bool(tokenizer.opening) == is_spaced
    if not is_spaced:
        for text in ("\n\nthe end ", " the", "é 你"):
            assert (
                tokenizer.response_ids(text, False) == tokenizer.tokenizer(text, add_special_tokens=False)["input_ids"]
            )


def test_a_servers_text_begins_as_that_of_token_ids(shape: tuple[ChatTokenizer, str]) -> None:
    """Servers show the space between prompt and answer, which is in no text of token ids alone."""
    tokenizer, _ = shape
    hides = {"llama 2", "llama 2, legacy"} & {tokenizer.template.name}
    assert tokenizer.text_answer(" the end", "stop", 3).text == ("the end" if hides else " the end")
    assert tokenizer.text_answer("the end \n", "stop", 3).text == "the end \n"


def test_the_name_of_a_control_token_is_text(shape: tuple[ChatTokenizer, str]) -> None:
    tokenizer, _ = shape
    controls, own = set(tokenizer.controls.values()), tokenizer.tokenizer

    def count(ids: list[int]) -> int:
        return sum(token in controls for token in ids)

    plain = count(tokenizer.prompt_ids("what"))
    for name in tokenizer.controls:
        for text in (f"what is {name} then?", name, name + name, f"the{name}end", f"\n{name} s\n"):
            asked, answered = tokenizer.prompt_ids(text), tokenizer.response_ids(text, ended=True)
            assert (text, count(asked), count(answered)) == (text, plain, 1)
            assert text.strip() in own.decode(asked, skip_special_tokens=False)
            assert tokenizer.text(answered).strip() == text.strip()


def test_names_are_encoded_as_if_there_were_no_such_tokens() -> None:
    tokenizer = with_template("{{ bos_token }}" + LOOP + SAID)
    tokens = tokenizer.tokenizer(" of <|end|>? <|user|>", add_special_tokens=False, split_special_tokens=True)
    text = " of <|end|>? <|user|>"
    assert tokenizer.response_ids(text, ended=False) == tokens["input_ids"]
    assert tokenizer.prompt_ids(text)[2:-2] == tokens["input_ids"]
    chat = [turn("system", text), turn("user", "a"), turn("assistant", text), turn("user", "b")]
    marks = [token for token in tokenizer.chat_ids(chat) if token < 6]
    assert marks == [0, 5, 2, 3, 2, 4, 2, 3, 2, 4]


def test_added_words_stay_tokens_of_text() -> None:
    tokenizer = finished(byte_level(), CHATML_TOKENS, ["Tiny", "  ", "assistant"])
    tokenizer.chat_template = CHATML
    chat = ChatTokenizer(tokenizer, AS_IT_IS, "tiny")
    assert set(chat.controls) == set(CHATML_TOKENS)
    assert chat.response_ids("Tiny  assistant", False) == tokenizer.convert_tokens_to_ids(["Tiny", "  ", "assistant"])


PARTS = "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"


@pytest.mark.parametrize(
    ("content", "roles"),
    [
        (PARTS, {"user", "system", "assistant"}),
        ("{{ message['content'][0]['text'] }}", {"user", "system", "assistant"}),
        ("{{ message['content'][0].text | trim }}", {"user", "system", "assistant"}),
        (f"{{% if message['content'] is string %}}{{{{ message['content'] }}}}{{% else %}}{PARTS}{{% endif %}}", set()),
        (f"{{% if message['role'] != 'user' %}}{{{{ message['content'] }}}}{{% else %}}{PARTS}{{% endif %}}", {"user"}),
        (f"{{% if message['role'] == 'user' %}}{{{{ message['content'] }}}}{{% else %}}{PARTS}{{% endif %}}",
         {"system", "assistant"}),
    ],
)  # fmt: skip
def test_content_is_handed_over_as_the_template_wants_it(content: str, roles: set[str]) -> None:
    plain = with_template("{{ bos_token }}" + LOOP + SAID)
    tokenizer = with_template("{{ bos_token }}" + LOOP + SAID.replace("{{ message['content'] }}", content))
    chat = [turn("system", "Be brief."), turn("user", "a"), turn("assistant", "b <|end|>"), turn("user", "c")]
    assert tokenizer.template.in_parts == roles
    assert tokenizer.chat_ids(chat) == plain.chat_ids(chat)
    assert tokenizer.end_of_turn == plain.end_of_turn


@pytest.mark.parametrize(
    "content",
    ["", "{{ message['content'][:3] }}", "{{ message['content'] | upper }}", "{{ message['text'] }}", "x",
     "{% if message['content'] is string %}{% else %}{{ message['content'] }}{% endif %}"],
)  # fmt: skip
def test_a_template_that_does_not_show_the_instruction_is_refused(content: str) -> None:
    with pytest.raises(ModelError, match="tiny"):
        with_template(LOOP + SAID.replace("{{ message['content'] }}", content))


@pytest.mark.parametrize(
    "template",
    ["{% for %}", "{{ nothing.at.all }}", "{{ messages[0].content + 1 }}", "{{ ''.__class__.__mro__ }}",
     "{{ raise_exception('never') }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ 1 / 0 }}",
     "{{ 'x' * 10 ** 15 }}"],
)  # fmt: skip
def test_a_template_that_fails_is_a_model_error(template: str) -> None:
    with pytest.raises(ModelError, match="tiny"):
        with_template(template)


def test_a_conversation_that_the_template_refuses_is_a_data_error() -> None:
    tokenizer = with_template(GEMMA.replace("start_of_turn", "|user|").replace("end_of_turn", "|end|"))
    assert tokenizer.prompt_ids("a")
    with pytest.raises(DataError, match="System role not supported"):
        tokenizer.chat_ids([turn("system", "Be brief."), turn("user", "a")])
    with pytest.raises(DataError, match="Roles must alternate"):
        tokenizer.chat_ids([turn("user", "a"), turn("user", "b")])


@pytest.mark.parametrize("lost", ["system", "assistant"])
def test_a_message_that_the_template_leaves_out_is_a_data_error(lost: str) -> None:
    tokenizer = with_template(
        LOOP + f"{{% if message['role'] != '{lost}' %}}" + SAID.replace("{% endfor", "{% endif %}{% endfor")
    )
    with pytest.raises(DataError, match=lost):
        tokenizer.chat_ids([turn("system", "Hi."), turn("user", "a"), turn("assistant", "Hm."), turn("user", "b")])


@pytest.mark.parametrize("thought", ["<think>\nhm\n</think>\n\n", "hm</think>", "<think></think>"])
def test_thinking_of_earlier_answers_is_left_to_the_template_where_its_marks_are_tokens(thought: str) -> None:
    make, template, _ = SHAPES["qwen 3"]
    tokenizer = make()
    tokenizer.chat_template = template
    chat = ChatTokenizer(tokenizer, AS_IT_IS, "tiny")
    assert {"<think>", "</think>"} & set(chat.controls)

    def ids(answer: str) -> list[int]:
        return chat.chat_ids([turn("user", "a"), turn("assistant", answer), turn("user", "c")])

    assert ids(f"{thought}b") == ids("b")
    assert ids(f"{thought}b <|im_end|>") == ids("b <|im_end|>")
    tokenizer.chat_template = CHATML  # which leaves thinking in
    shown = ChatTokenizer(tokenizer, AS_IT_IS, "tiny").chat_ids([turn("assistant", thought), turn("user", "c")])
    marks = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    assert [token for token in shown if token in marks] == [marks[0]] * ("<think>" in thought) + [marks[1]]


def test_switches_in_a_system_message_may_be_shown_in_another_place() -> None:
    turns = "{% for message in messages if message['role'] != 'system' %}" + SAID
    system = (
        "{% if messages[0]['role'] == 'system' %}{{ '/no_think' if '/no_think' in messages[0]['content'] else '' }}"
        "{{ messages[0]['content'].replace('/no_think', '') }}{% endif %}"
    )
    chat = [turn("system", "Be brief. /no_think"), turn("user", "a")]
    assert with_template(system + turns).chat_ids(chat)
    with pytest.raises(DataError, match="leaves out or changes"):
        with_template(turns).chat_ids(chat)


DATED = "{{ bos_token }}{{ strftime_now('%d %b %Y, %-d %H:%M %y') }}\n" + LOOP + SAID


def test_the_date_is_the_same_on_every_day(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [with_template(DATED).prompt_ids("a")]
    monkeypatch.setattr(chat_template_utils, "datetime", None)  # whatever the clock says
    shown.append(with_template(DATED).prompt_ids("a"))
    assert shown[0] == shown[1]
    tokenizer = with_template(DATED, date="2024-03-05")
    assert tokenizer.template.render([turn("user", "a")]).startswith("<|bos|>05 Mar 2024, 5 00:00 24\n<|user|>a")
    assert not with_template("{{ bos_token }}" + LOOP + SAID).template.tells_date


@pytest.mark.parametrize(
    ("head", "told"),
    [
        ("{% if strftime_now is defined %}{{ strftime_now('%Y-%m-%d') }}{% endif %}", "2025-01-01"),
        ("{%- macro system() -%}{{ strftime_now('%d %b %Y') }}{%- endmacro -%}{{ system() }}", "01 Jan 2025"),
        ("{% set form = '%A' %}{{ strftime_now(form) | upper }}", "WEDNESDAY"),
        ("\n  {% set day = strftime_now('%j') -%}{{ day }}", "\n001"),
    ],
)
def test_however_a_template_asks_for_the_date(head: str, told: str) -> None:
    assert with_template(head + LOOP + SAID).template.render([turn("user", "a")]).startswith(f"{told}<|user|>a")


def test_switches_are_the_recipes() -> None:
    template, thought = QWEN_3.replace("im_", ""), "<think>\n\n</think>\n\n"
    assert with_template(template).template.render([turn("user", "a")]).endswith("assistant\n")
    off = with_template(template, chat_template_kwargs={"enable_thinking": False})
    assert off.template.render([turn("user", "a")]).endswith(f"assistant\n{thought}")


def test_what_is_at_its_default_is_in_no_fingerprint() -> None:
    assert asking_of(AskingSettings()) == {}
    assert asking_of(AskingSettings(trust_remote_code=True, thinking="cut")) == {"models.thinking": "cut"}
    both = AskingSettings(date="2024-03-05", chat_template_kwargs={"effort": "low"})
    assert asking_of(both) == {"models.date": "2024-03-05", "models.chat_template_kwargs": {"effort": "low"}}


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt", "bos_token", "tools", "strftime_now"])
def test_names_that_are_no_switches_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        AskingSettings(chat_template_kwargs={name: 1})


def test_a_date_is_one_of_the_calendar() -> None:
    assert AskingSettings(date=date(2024, 3, 5)).date == "2024-03-05"  # as YAML reads it
    for wrong in ("2024-13-05", "yesterday", 2024):
        with pytest.raises(ValidationError, match="date"):
            AskingSettings(date=wrong)


@pytest.mark.parametrize(
    ("template", "text"),
    [(CHATML, "You are Tiny."), (LLAMA_3, "Today: 01 Jan 2025"), (GEMMA, ""), (MISTRAL, ""), (PHI_3, ""), (QWEN_3, "")],
)
def test_the_system_prompt_that_a_template_adds(template: str, text: str) -> None:
    names = [*CHATML_TOKENS, *PHI_TOKENS, *HEADERS, *TURNS, "<|bos|>", "<|eos|>"]
    assert with_template(template).template.default_system(names) == text


def test_what_a_template_does_of_itself_is_told() -> None:
    plain, dated = with_template("{{ bos_token }}" + LOOP + SAID), with_template(DATED, date="2024-03-05")
    assert not list(describe_template(plain))
    notes = list(describe_template(dated))
    assert any("2024-03-05" in note and "models.date" in note for note in notes)
    chatml = finished(byte_level(), CHATML_TOKENS)
    chatml.chat_template = CHATML
    assert any("'You are Tiny.'" in note for note in describe_template(ChatTokenizer(chatml, AS_IT_IS, "tiny")))


def test_a_template_that_can_think_is_told_unless_the_recipe_sees_to_it() -> None:
    def told(template: str, **asking: Any) -> bool:
        return any("models.thinking" in note for note in describe_template(with_template(template, **asking)))

    assert told(QWEN_3)
    assert not told(QWEN_3, thinking="cut")
    assert not told(QWEN_3, chat_template_kwargs={"enable_thinking": False})
    assert not told(PHI_3)
    assert told(PHI_3, thinking="cut")  # nothing would be cut


def test_a_switch_that_the_template_does_not_know_is_said() -> None:
    for name, is_known in (("enable_thinking", True), ("enable_thinkin", False)):
        tokenizer = with_template(QWEN_3.replace("im_", ""), chat_template_kwargs={name: False})
        assert any(f"knows no switch {name}," in note for note in describe_template(tokenizer)) != is_known
        assert any("can think aloud" in note for note in describe_template(tokenizer)) != is_known


def test_prompts_that_name_control_tokens_are_counted_by_language() -> None:
    tokenizer = with_template("{{ bos_token }}" + LOOP + SAID)
    prompts = [
        Prompt("a", "en", "What is <|end|>?"),
        Prompt("b", "en", "What is <|endoftext|>?"),
        Prompt("a", "es", [turn("system", "<|bos|>"), turn("user", "Hola")]),
        Prompt("b", "es", "<|end|>"),
    ]
    english, spanish = describe_texts(tokenizer, prompts, served_as_text=False)
    assert "1 prompts in 'en'" in english
    assert "2 prompts in 'es'" in spanish
    assert "server" in next(describe_texts(tokenizer, prompts, served_as_text=True))


def test_conversations_that_the_template_refuses_are_named_with_their_file() -> None:
    tokenizer = with_template(GEMMA.replace("start_of_turn", "|user|").replace("end_of_turn", "|end|"))
    asked = [turn("user", "a")]
    pairs = [
        Pair(name, "en", prompt, [turn("assistant", "x")], [turn("assistant", "y")])
        for name, prompt in (("p", asked), ("q", [turn("system", "Be brief."), *asked]), ("r", asked + asked))
    ]
    require_askable(tokenizer, "pairs.jsonl", pairs[:1])
    with pytest.raises(DataError, match=r"pairs\.jsonl") as caught:
        require_askable(tokenizer, "pairs.jsonl", pairs)
    assert all(part in str(caught.value) for part in ("'q'", "System role", "'r'", "alternate"))
    assert "'p'" not in str(caught.value)


def test_a_recipes_prompts_and_preferences_are_examined(tmp_path: Path) -> None:
    prompts, pairs = tmp_path / "prompts.jsonl", tmp_path / "pairs.jsonl"
    prompts.write_text('{"prompt_id": "a", "en": "What is <|end|>?", "es": "¿Sí?"}\n', encoding="utf-8")
    system = [turn("system", "Be brief."), turn("user", "Hi.")]
    pairs.write_text(json.dumps({"id": "x", "prompt": system, "chosen": "Hello!", "rejected": "No."}) + "\n")
    recipe = make_recipe(
        {
            "models": {"initial": "m"},
            "languages": ["en", "es"],
            "prompts": {"source": str(prompts)},
            "align_english": {"preferences": str(pairs)},
        }
    )
    notes = list(examine_asking(recipe, with_template("{{ bos_token }}" + LOOP + SAID)))
    assert len(notes) == 1
    assert "'en'" in notes[0]
    strict = with_template(GEMMA.replace("start_of_turn", "|user|").replace("end_of_turn", "|end|"))
    with pytest.raises(DataError, match=r"pairs\.jsonl") as caught:
        list(examine_asking(recipe, strict))
    assert "'x'" in str(caught.value)
