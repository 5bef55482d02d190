"""Score Spanish answers to an English instruction by the reward that an aligned model holds, best first.

    python examples/score_responses.py POLICY INITIAL

POLICY is the model that was aligned in English, INITIAL the one that it was aligned from: directories or hub ids.
"""

import sys

import crosspref

INSTRUCTION = "Why is the sky blue?"
ANSWERS = [
    "Porque el aire dispersa la luz azul más que la roja.",
    "No sé.",
    "El cielo es azul porque refleja el mar, que también es azul.",
]


def main(policy: str, initial: str) -> None:
    """Print each answer with its reward and its length."""
    reward = crosspref.ImplicitReward(policy, initial, beta=0.1)
    scores = reward.score(INSTRUCTION, ANSWERS, language="es")
    for answer, score in sorted(zip(ANSWERS, scores, strict=True), key=lambda row: -row[1].reward):
        print(f"{score.reward:+.3f}  {score.tokens:3} tokens  {answer}")


if __name__ == "__main__":
    main(*sys.argv[1:])
