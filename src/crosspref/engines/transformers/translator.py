"""Translating greedily through ``transformers``: by a chat model that is asked to, or by a translation model."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, LogitsProcessorList

from crosspref.engines import EngineSettings
from crosspref.engines.packed.head import padded_rows
from crosspref.engines.transformers.chat import read_tokenizer
from crosspref.engines.transformers.models import Loading, free_memory, load_model
from crosspref.engines.transformers.sampler import FiniteOnly, TransformersSampler
from crosspref.engines.transformers.texts import TextEncoder
from crosspref.errors import ModelError
from crosspref.languages import translation_instruction
from crosspref.models.locate import ModelFiles, require_whole
from crosspref.protocols import Advance, Sampled
from crosspref.run.kept import Kept, check_answer

BATCH_ROWS = 32
"""Texts that a translation model translates side by side, at most."""

BATCH_TOKENS = 32768
"""Tokens of source and translation that stand side by side, at most; it bounds the memory."""

KEPT_SETTINGS = (
    *("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id"),
    *("forced_bos_token_id", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens"),
)
"""What of a translation model's own generation settings belongs to the model (Marian's ``bad_words_ids`` keep it from
padding). The rest is how its authors decoded: beams, penalties, and ``forced_eos_token_id``, by which a translation
that was cut would look like one that ended."""

_TAGS = "<sentence>", "</sentence>"
_TARGET_TOKEN = re.compile(r">>(.+)<<|<2(.+)>")
"""The tokens that name a target in front of the text: Marian's ``>>spa<<``, MADLAD's ``<2es>``."""


class ChatTranslator:
    """Asks a chat model with the prompt of the paper's section E.2, and takes the likeliest token each time (Eq. 14).

    ``is_policy`` says that the translator is the policy, so that the ids of its tokens are the policy's.
    """

    def __init__(self, settings: EngineSettings, model: ModelFiles, *, is_policy: bool) -> None:
        self.is_policy = is_policy
        sample = settings.sample.model_copy(update={"max_new_tokens": settings.translate.max_new_tokens})
        self.sampler = TransformersSampler(replace(settings, sample=sample), model, greedy=True)

    def translate(self, requests: Sequence[tuple[str, str, str]], advance: Advance) -> list[Sampled | None]:
        """Translate each (text, its language, the language wanted); None where the prompt is too long for the model.

        If the model repeats the tags around the text, they are removed, and the ids are left out, since they no longer
        match the text.
        """
        # A seed is asked for, but nothing is drawn.
        prompts = [(translation_instruction(text, target), [0]) for text, _, target in requests]
        return [self._unwrapped(answers[0]) if answers else None for answers in self.sampler.sample(prompts, advance)]

    def close(self) -> None:
        """Give the memory back."""
        self.sampler.close()

    def _unwrapped(self, answer: Sampled) -> Sampled:
        opens, closes = _TAGS
        text = answer.text.lstrip()
        is_opened, is_closed = text.startswith(opens), text.rstrip().endswith(closes)
        if is_opened:
            text = text.removeprefix(opens).lstrip()
        if is_closed:
            text = text.rstrip().removesuffix(closes).rstrip()
        if is_opened or is_closed:
            return Sampled(text, [], answer.finish_reason)
        return Sampled(answer.text, answer.token_ids if self.is_policy else [], answer.finish_reason)


class TranslationModel:
    """Translates with an encoder-decoder model, greedily; the token ids stay empty, since they are not the policy's.

    Raises:
        ModelError: the model cannot be read, or does not say how a translation begins.
        MissingLibraryError: its tokenizer needs a library that is not installed.
    """

    def __init__(self, settings: EngineSettings, model: ModelFiles) -> None:
        loading = Loading.of(settings)
        require_whole(model, "translation model")
        self.tokenizer = read_tokenizer(model.directory, settings.trust_remote_code)
        self.model: Any = load_model(model.directory, loading, AutoModelForSeq2SeqLM)
        self.languages = _Languages(model.name, self.tokenizer, settings.translate.codes)
        stored = self.model.generation_config
        self.kept = {name: value for name in KEPT_SETTINGS if (value := getattr(stored, name, None)) is not None}
        if self.kept.get("decoder_start_token_id", self.kept.get("bos_token_id")) is None:
            raise ModelError(
                f"The translation model {model.name!r} does not say with which token a translation begins: add "
                "decoder_start_token_id to its generation_config.json."
            )
        ends = self.kept.get("eos_token_id", self.tokenizer.eos_token_id)
        self.ends = set(ends if isinstance(ends, list) else [ends])
        # What is passed to generate is filled up with the model's own settings, so they go.
        self.model.generation_config = GenerationConfig()
        # There are no embeddings beyond these positions, and the tokenizer may know of a tighter limit.
        positions = getattr(self.model.config, "max_position_embeddings", None) or math.inf
        self.longest = min(positions, self.tokenizer.model_max_length)
        self.new_tokens = int(min(positions, settings.translate.max_new_tokens))

    def translate(self, requests: Sequence[tuple[str, str, str]], advance: Advance) -> list[Sampled | None]:
        """Translate each (text, its language, the language wanted), in batches of similar length.

        A text that is too long for the model is not cut: its translation is None.

        Raises:
            ModelError: the model has no token for a language, or cannot be told which of several targets is wanted.
        """
        sources = [self.languages.encode(*request) for request in requests]
        numbers = {str(number) for number in range(len(requests))}

        def check(name: str, answer: object) -> None:
            if name not in numbers:
                raise ValueError("there is no such request")
            check_answer(answer, vocabulary=0)  # the ids would be the policy's

        kept = Kept.of(advance, check)
        answers: list[Sampled | None] = [None] * len(requests)
        for name, answer in kept.items.items():
            answers[int(name)] = Sampled(*answer)
        fitting = [index for index, ids in enumerate(sources) if len(ids) <= self.longest and answers[index] is None]
        kept(len(requests) - len(fitting), 0)
        # A batch has one target, whose token is forced in all rows. Longest first: too little memory shows early.
        jobs = sorted(fitting, key=lambda index: (requests[index][2], -len(sources[index])))
        while jobs:
            target = requests[jobs[0]][2]
            width = len(sources[jobs[0]]) + self.new_tokens
            rows = max(1, min(BATCH_ROWS, BATCH_TOKENS // width))
            batch = [index for index in jobs[:rows] if requests[index][2] == target]
            jobs = jobs[len(batch) :]
            translations = self._generate([sources[index] for index in batch], target)
            for index, (answer, _) in zip(batch, translations, strict=True):
                answers[index] = answer
            kept.keep({str(index): astuple(answer) for index, (answer, _) in zip(batch, translations, strict=True)})
            kept(len(batch), sum(tokens for _, tokens in translations))
        return answers

    def close(self) -> None:
        """Give the memory back."""
        self.model = None
        free_memory()

    @torch.inference_mode()
    def _generate(self, sources: list[list[int]], target: str) -> list[tuple[Sampled, int]]:
        """Return each row's translation and how many tokens it has."""
        pad = self.kept.get("pad_token_id", self.tokenizer.pad_token_id)
        rows = padded_rows([(source, []) for source in sources], pad, self.model.device)
        settings = {**self.kept, "pad_token_id": pad, "eos_token_id": sorted(self.ends)}
        code = self.languages.target_id(target)
        # mBART's models of one pair begin with the language itself, where others put it behind their start.
        begins = code is not None and self.kept.get("decoder_start_token_id") in self.languages.ids.values()
        if code is not None:
            settings["decoder_start_token_id" if begins else "forced_bos_token_id"] = code
        output = self.model.generate(
            input_ids=rows["input_ids"],
            attention_mask=rows["attention_mask"],
            generation_config=GenerationConfig(
                **settings, do_sample=False, num_beams=1, max_new_tokens=self.new_tokens
            ),
            logits_processor=LogitsProcessorList([FiniteOnly()]),
        )
        # M2M100's tokenizer does not count language tokens as special, and would leave the target's in the text.
        start = 1 if code is None or begins else 2
        return [self._cut(row[start:]) for row in output.tolist()]

    def _cut(self, ids: list[int]) -> tuple[Sampled, int]:
        """Cut a row at its first end-of-sequence token; what follows is padding."""
        end = next((position for position, token in enumerate(ids) if token in self.ends), None)
        text = self.tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Sampled(str(text), [], "length" if end is None else "stop"), len(ids if end is None else ids[: end + 1])


class _Languages:
    """How a translation model is told the languages of a text and of its translation.

    NLLB, M2M100 and mBART have a token per language, in the source and at the start of the translation. Marian models
    of several targets and MADLAD have a token for the target, in front of the text. Others know one target only.
    """

    def __init__(self, model: str, tokenizer: Any, codes: Mapping[str, str]) -> None:
        self.model, self.tokenizer, self.codes = model, tokenizer, codes
        self.ids = _language_ids(tokenizer) if hasattr(tokenizer, "src_lang") else {}
        self.prefixes: dict[str, str] = {}
        if not self.ids:
            matches = [match for token in tokenizer.get_vocab() if (match := _TARGET_TOKEN.fullmatch(token))]
            self.prefixes = {match[1] or match[2]: match[0] for match in matches}
        self.only_target: str | None = None
        codes_of = tokenizer.convert_ids_to_tokens(list(self.ids.values()))
        self.texts = TextEncoder(tokenizer, [*tokenizer.all_special_tokens, *codes_of, *self.prefixes.values()])

    def encode(self, text: str, source: str, target: str) -> list[int]:
        """Return the ids of a whole text, never truncated; what it holds is text, such as the name of a language."""
        first, *more = self.texts.pieces(text)
        if self.ids:
            self._known(target)
            code = self._known(source)
            if code != self.tokenizer.src_lang:
                self.tokenizer.src_lang = code
        elif self.prefixes:
            first = f"{self.prefixes[self._known(target)]} {first}"
        elif (self.only_target or target) != target:
            raise ModelError(
                f"The translation model {self.model!r} cannot be told into which language to translate, but is asked "
                f"for {self.only_target} and for {target}. Set translate.model to a model of many languages, such as "
                "NLLB or M2M100, or to a chat model."
            )
        else:
            self.only_target = target
        whole = [int(token) for token in self.tokenizer(first, truncation=False)["input_ids"]]
        if not more:
            return whole
        plain = self.texts.encode(first)
        ends = next(end for end in range(len(plain), len(whole) + 1) if whole[end - len(plain) : end] == plain)
        return whole[: ends - len(plain)] + self.texts.joined([first, *more]) + whole[ends:]

    def target_id(self, target: str) -> int | None:
        """Return the token with which translations into a language begin; None for a model that has none."""
        return self.ids[self._known(target)] if self.ids else None

    def _known(self, language: str) -> str:
        code, known = self.codes.get(language, language), self.ids or self.prefixes
        if code not in known:
            near = [one for one in known if one[:2].lower() == code[:2].lower()]
            shown = ", ".join(dict.fromkeys([*sorted(near), *sorted(known)]))
            raise ModelError(
                f"The translation model {self.model!r} has no token for the language {code!r}. Name its own code in "
                f"translate.codes, such as {language}: CODE. It knows: {shown[:200]}{' ...' * (len(shown) > 200)}"
            )
        return code


def _language_ids(tokenizer: Any) -> dict[str, int]:
    """Return the ids of a tokenizer's language codes; NLLB's are the special tokens that have no other name."""
    ids = getattr(tokenizer, "lang_code_to_id", None)
    if ids is None:
        named = {str(token) for token in tokenizer.special_tokens_map.values()}
        codes = [str(token) for token in tokenizer.all_special_tokens if str(token) not in named]
        ids = dict(zip(codes, tokenizer.convert_tokens_to_ids(codes), strict=True))
    return {code: int(token) for code, token in ids.items() if token != tokenizer.unk_token_id}
