"""Rating responses with a sequence-classification reward model, through ``transformers`` (R_n, section 4.2)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from crosspref.data.records import Instruction, as_messages
from crosspref.engines import EngineSettings
from crosspref.engines.self_check import not_finite
from crosspref.engines.transformers import models
from crosspref.engines.transformers.chat import load_tokenizer
from crosspref.models.locate import ModelFiles, require_one_output


class TransformersRewardModel:
    """A classifier with one output, which is the reward; it reads with its own tokenizer and chat template.

    Raises:
        ModelError: the model cannot be read, has another number of outputs or no chat template, or its files lack the
            weights of the output.
    """

    def __init__(self, settings: EngineSettings, model: ModelFiles) -> None:
        loading = models.Loading.of(settings)
        require_one_output(model)
        self.tokenizer = load_tokenizer(model.directory, settings.asking)
        self.model: Any = models.load_model(model.directory, loading, AutoModelForSequenceClassification)
        models.require_embeddings(self.tokenizer, self.model.config, model.name)
        self.longest = min(models.context_length(self.model.config), self.tokenizer.tokenizer.model_max_length)
        head = getattr(self.model, "score", None)
        if isinstance(head, torch.nn.Linear):
            # In bfloat16 rewards near 5 are 0.03 apart, and good responses would tie: the last product is in float32.
            head.float().register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))

    @torch.inference_mode()
    def rate(self, instruction: Instruction, responses: Sequence[str]) -> list[float]:
        """Return the model's output for the conversation of an instruction and each response, in the model's unit.

        It is nan where the conversation is longer than the model's context.

        Each conversation is a row of its own, without padding. These models read the output at the last token that is
        not ``pad_token_id``: in a padded batch a token that is both padding and end of turn would be passed over, or
        the padding would be taken for text, depending on the model's configuration.

        Raises:
            ModelError: an output is not a finite number.
        """
        rewards = []
        for response in responses:
            messages = [*as_messages(instruction), {"role": "assistant", "content": response}]
            ids = self.tokenizer.chat_ids(messages, finished=True)
            rewards.append(self._output(ids) if len(ids) <= self.longest else math.nan)
        return rewards

    def close(self) -> None:
        """Give the memory back."""
        self.model = None
        models.free_memory()

    def _output(self, ids: list[int]) -> float:
        row = torch.tensor([ids], device=self.model.device)
        reward = float(self.model(input_ids=row, attention_mask=torch.ones_like(row)).logits.float().item())
        if not math.isfinite(reward):
            raise not_finite("a reward model's output")
        return reward
