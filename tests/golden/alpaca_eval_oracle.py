"""Ask alpaca-eval itself: python alpaca_eval_oracle.py FOLDER, in a process of its own.

It reads .env files, sets scikit-learn's global configuration, and would fetch its gamed table and write into its own
package. Here the table is FOLDER/gamed.csv, and nothing is written.
"""

import json
import logging
import sys
from pathlib import Path

import pandas as pd
from alpaca_eval.metrics import glm_winrate


def main(folder: Path) -> None:
    logging.disable()
    glm_winrate.hf_hub_download = lambda **_: str(folder / "gamed.csv")
    answers = {}
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        annotations = pd.DataFrame(case["annotations"]).assign(generator_1="baseline", generator_2="model")
        metrics = glm_winrate.get_length_controlled_winrate(
            annotations, glm_name=case["glm_name"], save_weights_dir=None, is_warn_extreme_changes=False
        )
        answers[name] = {key: float(value) for key, value in metrics.items()}
    (folder / "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
