"""What is worth knowing of how a model will be asked, before a run: its template, and the texts that it will get."""

import re
from collections.abc import Iterable, Iterator, Sequence

from crosspref.data.preferences import load_preferences
from crosspref.data.prompts import load_prompts
from crosspref.data.records import Instruction, Pair, Prompt, as_messages
from crosspref.engines.transformers.chat import ChatTokenizer
from crosspref.errors import DataError
from crosspref.recipe.schema import Recipe

SHOWN = 3
"""How many refused conversations are shown."""


def examine_asking(recipe: Recipe, tokenizer: ChatTokenizer) -> Iterator[str]:
    """Yield notes on how a recipe's policy will be asked; ``tokenizer`` is the policy's.

    Raises:
        DataError: prompts or preferences cannot be read, or the chat template refuses some of them.
    """
    yield from describe_template(tokenizer)
    served_as_text = recipe.sample.engine == "server" and recipe.server.protocol == "chat"
    for settings in (recipe.prompts, recipe.held_out):
        if settings is not None:
            prompts = load_prompts(settings, recipe.languages).prompts
            yield from describe_texts(tokenizer, prompts, served_as_text=served_as_text)
            require_askable(tokenizer, str(settings.source), prompts)
    if recipe.align_english is not None:
        preferences = recipe.align_english.preferences
        require_askable(tokenizer, preferences, load_preferences(preferences))


def describe_template(tokenizer: ChatTokenizer) -> Iterator[str]:
    """Yield a note for what a model's chat template does of itself, and for what its settings do not do."""
    template, asking = tokenizer.template, tokenizer.asking
    system = template.default_system(tokenizer.controls)
    if system:
        yield f"note  the chat template of {template.name} adds a system prompt of its own: {system!r}"
    if template.tells_date:
        yield f"note  the chat template of {template.name} is told {asking.date} for today, on every day (models.date)"
    words = set(re.findall(r"\w+", template.source))
    unknown = [name for name in asking.chat_template_kwargs if name not in words]
    for name in unknown:
        yield f"note  the chat template of {template.name} knows no switch {name}, as in models.chat_template_kwargs"
    if asking.thinking == "cut" and template.thinking is None:
        yield f"note  models.thinking is cut, but {template.name} has no marks around its thinking: nothing will be cut"
    if asking.thinking == "keep" and template.thinking is not None and len(unknown) == len(asking.chat_template_kwargs):
        yield (
            f"note  {template.name} can think aloud, which would count as a part of its answers: switch that off with "
            "models.chat_template_kwargs, as {enable_thinking: false}, or set models.thinking: cut"
        )


def describe_texts(tokenizer: ChatTokenizer, prompts: Iterable[Prompt], *, served_as_text: bool) -> Iterator[str]:
    """Yield a note for each language in whose prompts the names of control tokens stand, with their number.

    ``served_as_text`` tells that a server gets messages, so that it encodes them.
    """
    found: dict[str, list[str]] = {}
    for prompt in prompts:
        if any(tokenizer.texts.names_control(message["content"]) for message in as_messages(prompt.instruction)):
            found.setdefault(prompt.language, []).append(prompt.prompt_id)
    done = "the server may take them for control tokens" if served_as_text else "they are encoded as text"
    for language, ids in found.items():
        yield (f"note  {len(ids)} prompts in {language!r} hold names of control tokens, as {ids[0]!r} does: {done}")


def require_askable(tokenizer: ChatTokenizer, source: str, rows: Sequence[Prompt] | Sequence[Pair]) -> None:
    """Raise DataError if the chat template refuses the prompts of any rows, with their ids and what it said.

    A prompt that is one text is taken by every template; only its content could be changed.
    """
    refused = []
    for row in rows:
        conversation: Instruction = row.prompt if isinstance(row, Pair) else row.instruction
        if isinstance(conversation, str):
            continue
        try:
            tokenizer.template.render(conversation)
        except DataError as error:
            refused.append(f"- {row.prompt_id!r} in {row.language!r}: {error}")
    if refused:
        more = f"\n- and {len(refused) - SHOWN} more" if len(refused) > SHOWN else ""
        raise DataError(
            f"{source}: {len(refused)} conversations cannot be given to the model.\n"
            + "\n".join(refused[:SHOWN])
            + more
        )
