"""The same run from Python: change a recipe in memory, train, evaluate the model it left.

python recipes/from_python.py RECIPE [key.sub=value ...]
Hardware, time and what to expect are those of the recipe; `recipes/debug.yaml` is the one to try first.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mmreason import evaluate, load_recipe, train


def main(path: str, overrides: list[str]) -> float:
    """Train the recipe, evaluate its model on the recipe's own held-out rows, return the exact accuracy."""
    recipe = load_recipe(path, overrides)
    result = train(recipe)
    rows = [str(Path(recipe.output_dir) / "data" / name / "rows.jsonl") for name in recipe.eval.data]
    measures = evaluate(result["model"], rows, max_completion_length=recipe.eval.max_completion_length)
    accuracy = float(measures["overall"]["accuracy"])
    print(f"{result['model']}: {accuracy:.1%} exact on {measures['overall']['n']} held-out questions")
    return accuracy


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
