"""Make preference pairs from scores of your own, under the length penalty that is solved exactly (Eq. 10 and 15).

    python examples/select_pairs.py SCORED.jsonl PAIRS.jsonl

A line of SCORED.jsonl is one response in one language: {"prompt": ..., "response": ..., "score": ...}. PAIRS.jsonl is
in TRL's conversational preference format.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import crosspref


def main(scored: str, pairs: str) -> None:
    """Read the scores, pick the best and the worst response to each prompt, and write them."""
    responses: dict[str, list[dict[str, str | float]]] = defaultdict(list)
    for line in Path(scored).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        responses[row["prompt"]].append(row)
    rewards = [[row["score"] for row in rows] for rows in responses.values()]
    lengths = [[len(row["response"]) for row in rows] for rows in responses.values()]
    solved = crosspref.solve_length_penalty(rewards, lengths)
    with Path(pairs).open("w", encoding="utf-8") as file:
        for prompt, rows in responses.items():
            ranked = sorted(rows, key=lambda row: row["score"] - solved.alpha * len(row["response"]))
            texts = {"prompt": prompt, "chosen": ranked[-1]["response"], "rejected": ranked[0]["response"]}
            roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
            pair = {name: [{"role": roles[name], "content": text}] for name, text in texts.items()}
            file.write(json.dumps(pair, ensure_ascii=False) + "\n")
    print(f"alpha {solved.alpha:.4g}; mean length difference {solved.mean_length_difference:+.1f} characters")


if __name__ == "__main__":
    main(*sys.argv[1:])
