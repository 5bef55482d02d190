"""Run a recipe with a sampler of your own, here transformers' pipeline: own_sampler.py RECIPE.yaml RUN

`crosspref.protocols` describes what a sampler, and every other engine, has to do.
"""

import sys

from transformers import pipeline, set_seed

import crosspref
from crosspref.data.records import as_messages
from crosspref.engines import EngineFactory, EngineSettings
from crosspref.protocols import Sampled
from crosspref.recipe.files import load_recipe


class OwnEngines(EngineFactory):
    def sampler(self, policy, *, greedy=False):
        return OwnSampler(pipeline("text-generation", str(policy.directory)))


class OwnSampler:
    def __init__(self, generate):
        self.generate = generate

    def sample(self, requests, advance, temperature=None):
        return [[self.answer(as_messages(chat), seed) for seed in seeds] for chat, seeds in requests]

    def answer(self, chat, seed):
        set_seed(seed % 2**32)
        [answer] = self.generate(chat, max_new_tokens=20, do_sample=True, return_full_text=False)
        return Sampled(answer["generated_text"], None, "stop")

    def close(self):
        self.generate = None


if __name__ == "__main__":
    recipe = load_recipe(sys.argv[1])
    crosspref.align(recipe, sys.argv[2], engines=OwnEngines(EngineSettings.of(recipe)))
