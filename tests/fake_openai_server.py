"""A fake model server: OpenAI's protocol, with vLLM's additions, over a real socket, and real tiny models behind it.

It stands in for vLLM where that is not installed; `tests/vllm` asks the real one. It computes naively: one row, one
full forward pass per token. It draws as the sampler of transformers does, so that both can be compared token by token.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from http_server import JsonHandler, LocalServer
from transformers import AutoModelForCausalLM, AutoTokenizer


class FakeOpenAIServer(LocalServer):
    """Serves models by name until it is closed; ``key`` is what it asks for, ``asked`` every body that it was sent.

    ``changes`` is laid over every choice of every completion, as a server that errs would have it, or over those whose
    request ``errs`` picks; ``around`` is laid over the answer that holds the choice.
    """

    def __init__(self, models: dict[str, Path], key: str | None = None, **changes: Any) -> None:
        self.models = {name: AutoModelForCausalLM.from_pretrained(path).eval() for name, path in models.items()}
        self.tokenizers = {name: AutoTokenizer.from_pretrained(path) for name, path in models.items()}
        self.key, self.changes, self.asked = key, changes, list[dict[str, Any]]()
        self.around: dict[str, Any] = {}
        self.errs: Callable[[dict[str, Any]], bool] = lambda body: True
        self.context = 1024
        super().__init__(_Handler)

    def add(self, name: str, path: Path) -> None:
        """Serve another model, as a person does between two iterations."""
        self.tokenizers[name] = AutoTokenizer.from_pretrained(path)
        self.models[name] = AutoModelForCausalLM.from_pretrained(path).eval()

    def list_models(self) -> dict[str, Any]:
        return {
            "object": "list",
            "data": [{"id": name, "object": "model", "max_model_len": self.context} for name in self.models],
        }

    @torch.inference_mode()
    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"]
        ids, reason = self._draw(body, prompt, set(body.get("stop_token_ids", [])))
        text = self.tokenizers[body["model"]].decode(ids, skip_special_tokens=True)
        choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": reason, "logprobs": None}
        if body.get("return_token_ids"):
            choice["token_ids"] = ids
        if body.get("prompt_logprobs") is not None:
            logits = self.models[body["model"]](input_ids=torch.tensor([prompt]), use_cache=False).logits[0]
            logprobs = torch.log_softmax(logits.float(), -1)
            values = [
                {str(token): {"logprob": float(logprobs[place, token]), "rank": 1, "decoded_token": "?"}}
                for place, token in enumerate(prompt[1:])
            ]
            choice["prompt_logprobs"] = [None, *values]
        return self._answer(body, choice, len(prompt), len(ids))

    @torch.inference_mode()
    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        tokenizer = self.tokenizers[body["model"]]
        prompt = tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=False)
        ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|end|>")}
        ids, reason = self._draw(body, prompt, ends)
        message = {"role": "assistant", "content": tokenizer.decode(ids, skip_special_tokens=True)}
        return self._answer(body, {"index": 0, "message": message, "finish_reason": reason}, len(prompt), len(ids))

    def _answer(self, body: dict[str, Any], choice: dict[str, Any], prompt: int, tokens: int) -> dict[str, Any]:
        usage = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
        answer = {
            "id": "fake",
            "object": "text_completion",
            "model": body["model"],
            "choices": [choice],
            "usage": usage,
        }
        if self.errs(body):
            answer |= {"choices": [{**choice, **self.changes}], **self.around}
        return answer

    def _draw(self, body: dict[str, Any], prompt: list[int], ends: set[int]) -> tuple[list[int], str]:
        """Invert the cumulative probabilities of one row, token by token."""
        model, temperature = self.models[body["model"]], body.get("temperature", 1.0)
        uniforms = np.random.Generator(np.random.Philox(body.get("seed", 0))).random(body["max_tokens"])
        ids: list[int] = []
        for uniform in uniforms:
            logits = model(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0, -1]
            if temperature == 0:
                ids.append(int(logits.argmax()))
            else:
                ends_at = (logits.double() / temperature).softmax(-1).cumsum(-1)
                ids.append(int(torch.searchsorted(ends_at, uniform * ends_at[-1], right=True)))
            if ids[-1] in ends:
                return ids, "stop"
        return ids, "length"


class _Handler(JsonHandler):
    owner: FakeOpenAIServer

    def get(self) -> None:
        if self._may_ask() and self.path == "/v1/models":
            self.send_json(200, self.owner.list_models())
        elif self._may_ask():
            self.refuse(404, f"Not Found: {self.path}")
        else:
            self._refuse()

    def post(self, content: bytes) -> None:
        state = self.owner
        body = json.loads(content)
        if not self._may_ask():
            self._refuse()
        elif body.get("model") not in state.models:
            self.refuse(404, f"The model `{body.get('model')}` does not exist.")
        elif len(body.get("prompt", ())) + body["max_tokens"] > state.context:
            self.refuse(400, f"This model's maximum context length is {state.context} tokens.")
        else:
            with state.lock:
                state.asked.append(body)
                answer = state.chat(body) if self.path == "/v1/chat/completions" else state.complete(body)
            self.send_json(200, answer)

    def _may_ask(self) -> bool:
        return self.owner.key is None or self.headers.get("Authorization") == f"Bearer {self.owner.key}"

    def _refuse(self) -> None:
        # Like some hosted servers, it repeats the key that it refuses.
        self.refuse(401, f"Incorrect API key provided: {self.headers.get('Authorization')}")
