"""Evaluation: judge answers on held-out rows, measure against chance, compare stages, keep and show it."""

from mmreason.evaluate.ablate import (
    LETTERS,
    Ablation,
    ablated_media,
    ablated_prompt,
    ablation_block,
    ablation_lines,
    parse_ablation,
    touched,
)
from mmreason.evaluate.bootstrap import crossed_bootstrap, paired_bootstrap
from mmreason.evaluate.letters import lettered
from mmreason.evaluate.measures import (
    blind_scores,
    chance_rate,
    evaluate_rows,
    measures,
    parts,
    summarise,
    thirds,
)
from mmreason.evaluate.rows import EvalRow, judge, question_text, read_rows, thinks, write_rows
from mmreason.evaluate.run import Generate, evaluate, limit_evenly
from mmreason.evaluate.score import score
from mmreason.evaluate.store import compare, read_eval, save_stage, stage_rows, write_json
from mmreason.evaluate.table import SLICES, ablation_table, gain_table, parent_of, table

__all__ = [
    "LETTERS",
    "SLICES",
    "Ablation",
    "EvalRow",
    "Generate",
    "ablated_media",
    "ablated_prompt",
    "ablation_block",
    "ablation_lines",
    "ablation_table",
    "blind_scores",
    "chance_rate",
    "compare",
    "crossed_bootstrap",
    "evaluate",
    "evaluate_rows",
    "gain_table",
    "judge",
    "lettered",
    "limit_evenly",
    "measures",
    "paired_bootstrap",
    "parent_of",
    "parse_ablation",
    "parts",
    "question_text",
    "read_eval",
    "read_rows",
    "save_stage",
    "score",
    "stage_rows",
    "summarise",
    "table",
    "thinks",
    "thirds",
    "touched",
    "write_json",
    "write_rows",
]
