"""Sampling through vLLM in this process: all prompts of a shard at once, each with its n responses in one request."""

import os
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

from crosspref.paths import SAFE_PATH

# vLLM reads its environment when it is imported. Nothing may leave the machine; and its engine runs in this process,
# so that no child of its own can outlive the phase or keep memory. (Tensor parallel workers end with this process.)
os.environ |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", **SAFE_PATH}
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from pydantic import TypeAdapter
from vllm import LLM, SamplingParams, TokensPrompt
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind

from crosspref.engines import EngineSettings
from crosspref.engines.transformers import models
from crosspref.errors import ModelError, RecipeError
from crosspref.escape import one_line
from crosspref.models.files import ADAPTER_CONFIG, read_json, require_no_other_weights
from crosspref.models.locate import ModelFiles
from crosspref.protocols import Advance, Sampled, SampleRequest
from crosspref.run.kept import Answer, Kept, check_answer, checked

CPU_CACHE_BYTES = 4 << 30
"""How much memory the keys and values of all responses may take on a CPU; VLLM_CPU_KVCACHE_SPACE (GiB) changes it."""

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The highest ranks of adapters that vLLM can be told to make room for."""

FAULTS = (AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What vLLM raises where it cannot hold a model."""

_ANSWERS: TypeAdapter[list[Answer]] = TypeAdapter(list[Answer])

set_threads = torch.set_num_threads


class VllmSampler:
    """Samples from one policy that vLLM holds.

    The seed of a request is that of its first response, and vLLM gives the response at index i the stream of this
    seed + i. So a response depends on its prompt and its number alone, and neither on n nor on what is sampled beside
    it, beyond the rounding of other batch sizes.

    Raises:
        ModelError: vLLM does not know the model, finds too little memory for it, or was built for another device.
        RecipeError: the temperature is above what vLLM takes.
    """

    def __init__(self, settings: EngineSettings, policy: ModelFiles, *, greedy: bool = False) -> None:
        self.settings, vllm, loading = settings.sample, settings.vllm, models.Loading.of(settings)
        if self.settings.temperature > 2:
            raise RecipeError(f"sample.temperature is {self.settings.temperature}, but vLLM takes at most 2.")
        _require_device(loading.device)
        described = models.describe_model(policy, settings.asking)
        require_no_other_weights(described.directory, "vLLM")
        self.temperature = 0.0 if greedy else self.settings.temperature
        self.tokenizer, self.stops = described.tokenizer, described.stops
        # Ids that only the model has pad its embedding. A bias of -100 leaves them no probability.
        padding = range(self.tokenizer.size, described.config.get_text_config().vocab_size)
        self.bias = dict.fromkeys(padding, -100.0) or None
        self.longest_prompt = models.longest_prompt(self.settings, described.config)
        options: dict[str, Any] = {
            "model": str(described.directory),
            "skip_tokenizer_init": True,  # ids go in and ids come out
            "generation_config": "vllm",  # a model's own sampling defaults must not mix with the recipe's
            "max_model_len": int(self.longest_prompt) + self.settings.max_new_tokens,
            "dtype": str(loading.dtype).removeprefix("torch."),
            "enable_prefix_caching": True,
            "tensor_parallel_size": vllm.tensor_parallel,
            "gpu_memory_utilization": vllm.memory,
            "max_num_seqs": vllm.max_sequences,
            "trust_remote_code": loading.trust_remote_code,
            "load_format": "safetensors",
            "use_tqdm_on_load": False,
        }
        if loading.device.type == "cpu":  # where compiling the model takes longer than it saves in one phase
            options |= {"kv_cache_memory_bytes": CPU_CACHE_BYTES, "enforce_eager": True}
        self.adapter = None
        if (adapter := getattr(policy, "adapter", None)) is not None:
            rank = read_json(adapter / ADAPTER_CONFIG)["r"]
            options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _room_for(rank, policy.name)}
            self.adapter = LoRARequest("policy", 1, str(adapter))
        self.llm: Any = _load(policy.name, options)

    def sample(
        self, requests: Sequence[SampleRequest], advance: Advance, temperature: float | None = None
    ) -> list[list[Sampled]]:
        """Answer each request; see ``protocols.Sampler``."""
        chosen = self.temperature if temperature is None else temperature

        def check(name: str, answers: object) -> None:
            _, seeds = requests[int(name)]
            for answer in checked(_ANSWERS, answers, len(seeds)):
                check_answer(answer, self.tokenizer.size)

        kept = Kept.of(advance, check)
        answers = [[Sampled(*answer) for answer in kept.items.get(str(index), ())] for index in range(len(requests))]
        left_out = 0
        for index, (instruction, seeds) in enumerate(requests):
            prompt = self.tokenizer.prompt_ids(instruction)
            if not seeds or len(prompt) > self.longest_prompt or answers[index]:
                left_out += len(seeds)
                continue
            self.llm.llm_engine.add_request(
                str(index),
                TokensPrompt(prompt_token_ids=prompt),
                self._parameters(seeds, chosen),
                lora_request=self.adapter,
            )
        kept(left_out, 0)
        while self.llm.llm_engine.has_unfinished_requests():
            for output in self.llm.llm_engine.step():
                index, sampled = int(output.request_id), [self._answer(answer) for answer in output.outputs]
                seeds = requests[index][1]
                answers[index] = sampled * len(seeds) if chosen == 0 else sampled
                kept.keep({str(index): [astuple(answer) for answer in answers[index]]})
                kept(len(seeds), sum(len(answer.token_ids or ()) for answer in sampled))
        return answers

    def close(self) -> None:
        """Give the memory back, also where this process goes on."""
        if self.llm is not None:
            self.llm = None
            cleanup_dist_env_and_memory()
            torch.set_num_threads = set_threads  # which vLLM takes away on a CPU
        models.free_memory()

    def _parameters(self, seeds: Sequence[int], temperature: float) -> SamplingParams:
        """Return what one request asks for: one response per seed; a single one where all would be the same."""
        return SamplingParams(
            n=1 if temperature == 0 else len(seeds),
            seed=seeds[0] % 2**62,  # so that the seeds of the further responses fit into 63 bits, too
            temperature=temperature,
            top_p=self.settings.top_p,
            max_tokens=self.settings.max_new_tokens,
            stop_token_ids=self.stops,
            ignore_eos=True,  # only the ids above stop, as with the other engines
            detokenize=False,
            logit_bias=self.bias,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _answer(self, output: Any) -> Sampled:
        ids = [int(token) for token in output.token_ids]
        if output.finish_reason == "stop" and ids and ids[-1] in self.stops:
            return self.tokenizer.answer(ids, "stop")
        if output.finish_reason == "length":
            return self.tokenizer.answer(ids, "length")
        raise ModelError(
            f"vLLM ended a response of {len(ids)} tokens with {output.finish_reason!r}, which is neither a stop token "
            "nor the limit. Finished shards are kept; run the command again to go on."
        )


def _require_device(device: torch.device) -> None:
    """Raise ModelError if the installed vLLM was built for another one or cannot choose it."""
    if device.type != current_platform.device_type:
        raise ModelError(
            f"The installed vLLM runs on {current_platform.device_type or 'no device of this machine'}, but the run "
            f"is on {device.type}. Set resources.device to what vLLM runs on, or install a vLLM for {device.type}."
        )
    if device.index:
        raise ModelError(
            f"vLLM always begins at the first GPU that it sees, and cannot be told resources.device: {device}. Set "
            f"resources.device: cuda, and run with CUDA_VISIBLE_DEVICES={device.index}."
        )


def _room_for(rank: int, name: str) -> int:
    """Return the least rank that vLLM offers and that an adapter fits into."""
    room = next((offered for offered in LORA_RANKS if offered >= rank), None)
    if room is None:
        raise ModelError(
            f"The adapter {name!r} has rank {rank}, but vLLM takes at most {LORA_RANKS[-1]}. "
            "Set train.lora.save: merged, or sample.engine: transformers."
        )
    return room


def _load(name: str, options: dict[str, Any]) -> LLM:
    """Start vLLM; its errors are told with what to do about them."""
    try:
        return LLM(**options)
    except FAULTS as error:
        # The first line says it; pydantic goes on with links, and OutOfMemoryError with all settings of the allocator.
        reason = one_line(error) or type(error).__name__
        raise ModelError(
            f"vLLM cannot hold the model {name!r}: {reason}\n"
            "If it is memory: change vllm.memory (or VLLM_CPU_KVCACHE_SPACE, in GiB, on a CPU), lower "
            "sample.max_prompt_tokens, sample.max_new_tokens or vllm.max_sequences, or raise vllm.tensor_parallel. "
            "If vLLM does not know this kind of model: set sample.engine: transformers."
        ) from error
