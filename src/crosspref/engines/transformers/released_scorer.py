"""Scoring as the paper's released scripts do, to compare with their numbers.

The scripts differ from Eq. 9 in which log-probabilities they sum. A row is the prompt, the stripped response tokenised
again, and the end-of-turn token, which a response that was cut gets too. Three rows of neighbouring prompts are padded
to the longest of them. Position j of the log-probabilities predicts token j + 1, but their mask marks the tokens of
response and end-of-turn themselves. So the first response token is not counted, the end-of-turn token is, and behind
it the first padding token is counted as well, wherever the row is padded.

Padding to the right changes no real position, so no such batch is computed here: the padding token is appended where
it would be counted, and the row is scored like any other. Only for models whose positions depend on the length of the
row (``even_length``) can the padded row of the scripts differ from that.
"""

from collections.abc import Sequence

from crosspref.data.records import Response
from crosspref.engines import EngineSettings
from crosspref.engines.transformers.scorer import TransformersScorer
from crosspref.models.locate import ModelFiles
from crosspref.protocols import LogProbs

BATCH = 3
"""How many prompts stand side by side in the released scripts."""


class ReleasedScorer:
    """Sums the log-probabilities that the paper's released scripts sum, under a policy and a reference."""

    def __init__(self, settings: EngineSettings, policy: ModelFiles, reference: ModelFiles | None) -> None:
        self.scorer = TransformersScorer(settings, policy, reference)

    def score_all(self, requests: Sequence[tuple[str, Sequence[Response]]]) -> list[list[LogProbs]]:
        """Score the responses to each (instruction, responses) in batches of 3 in the order given."""
        tokenizer = self.scorer.tokenizer
        prompts = [tokenizer.prompt_ids(instruction) for instruction, _ in requests]
        rows = [
            [tokenizer.response_ids(response.text.strip(), ended=True) for response in responses]
            for _, responses in requests
        ]
        lengths = [
            [(response.sample, len(prompt) + len(ids)) for response, ids in zip(responses, texts, strict=True)]
            for (_, responses), prompt, texts in zip(requests, prompts, rows, strict=True)
        ]
        counted = [
            [[*ids, tokenizer.pad] if is_padded else ids for ids, is_padded in zip(texts, padded, strict=True)]
            for texts, padded in zip(rows, padded_rows(lengths), strict=True)
        ]
        return [self.scorer.logprobs(prompt, ids, skip=1) for prompt, ids in zip(prompts, counted, strict=True)]

    def close(self) -> None:
        """Give the memory back."""
        self.scorer.close()


def padded_rows(lengths: Sequence[Sequence[tuple[int, int]]]) -> list[list[bool]]:
    """Tell of every row whether the released scripts would pad it.

    Args:
        lengths: for each prompt the (sample, tokens of prompt, response and end-of-turn) of its responses. Prompts
            without responses are in no batch. Batch k of pass n holds the responses with sample n to the k-th three
            prompts, as many of them as have one.

    Returns:
        For each prompt and response, in the same order: is it shorter than the longest row of its batch?
    """
    answered = [index for index, rows in enumerate(lengths) if rows]
    batch = {index: place // BATCH for place, index in enumerate(answered)}
    longest: dict[tuple[int, int], int] = {}
    for index in answered:
        for sample, length in lengths[index]:
            key = (batch[index], sample)
            longest[key] = max(length, longest.get(key, 0))
    return [[length < longest[batch[index], sample] for sample, length in rows] for index, rows in enumerate(lengths)]
