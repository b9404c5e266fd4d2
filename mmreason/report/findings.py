"""The first screen's other half: at what cost, and what is wrong."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmreason.evaluate import LETTERS, ablation_lines
from mmreason.evaluate.ablate import BLANKED
from mmreason.report.curves import CUT_OFF, NO_SIGNAL, values
from mmreason.report.headline import Level, senses
from mmreason.report.load import Run
from mmreason.report.words import (
    ablation_label,
    count,
    duration,
    interval,
    listed,
    percent,
    plural,
    size,
)


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or (level `unsure`) that a reader should know."""

    level: Level
    title: str
    detail: str


def cost(run: Run) -> list[tuple[str, str, str]]:
    """(name, value, detail): wall time, memory, tokens, machine."""
    timing, machine = run.timing, run.environment
    stages = timing.get("stages") or {}
    total = timing.get("total_s")
    rest = {"the rest": total - sum(stages.values())} if total and stages else {}
    parts = ", ".join(f"{name} {duration(s)}" for name, s in {**stages, **rest}.items())
    peak = timing.get("peak_memory_bytes") or max(
        (v for _, v in values(run.metrics, "memory/pss")), default=None
    )
    learned, read = (sum(v for _, v in values(run.metrics, f"tokens/{k}")) for k in ("learned", "input"))
    last = max((line["step"] for line in run.metrics), default=0)
    steps = plural(last, "step")
    if len(run.metrics) != last:
        steps = f"the {len(run.metrics):,} of {last:,} steps that were logged"
    device = machine.get("cuda") or f"{machine.get('cpu_count', '?')} CPU cores"
    versions = machine.get("packages") or {}
    stack = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers") if name in versions)
    return [
        ("Wall time", duration(total), parts or "the run has not finished"),
        ("Peak memory", size(peak), "PSS of the whole process tree"),
        ("Tokens learned", count(learned), f"{count(read)} read in {steps}"),
        (
            "Machine",
            device,
            f"{plural(machine.get('torch_threads') or 0, 'torch thread')}; {stack}" if machine else "unknown",
        ),
    ]


def findings(run: Run) -> list[Finding]:
    """All that is wrong; an empty list is good news."""
    out = [*_quarantine(run), *_unfinished(run), *_unused(run), *_letters(run)]
    for name in dict.fromkeys(str(line.get("stage")) for line in run.metrics):
        out += _training(run, name, run.steps(name))
    for name in run.line[1:]:
        out += _answers(run, name)
    return sorted(out, key=lambda f: f.level != "bad")


def _quarantine(run: Run) -> list[Finding]:
    if not run.quarantine:
        return []
    reasons = Counter(str(line.get("reason", "?")).splitlines()[0] for line in run.quarantine)
    first = "; ".join(f"{n}\u00d7 {reason[:160]}" for reason, n in reasons.most_common(3))
    rows = len({(line.get("source"), line.get("id")) for line in run.quarantine})
    return [Finding("bad", f"{plural(rows, 'row')} in quarantine", f"{first} (quarantine.jsonl names each)")]


def _unfinished(run: Run) -> list[Finding]:
    wanted = [s["name"] for s in run.stages if s.get("evaluate", True)]
    missing = [name for name in wanted if name not in run.evaluation]
    if not missing or not (run.recipe.get("eval") or {}).get("data"):
        return []
    return [
        Finding("unsure", f"Not evaluated: {', '.join(missing)}", "the run is still going, or it was stopped")
    ]


def _unused(run: Run) -> list[Finding]:
    """Modalities that are no better than a blind guess, and media that can be blanked without loss."""
    out = []
    parts = {
        f"{sense.name} ({part.group})" if part.group else sense.name: part
        for sense in senses(run)
        for part in sense.parts
    }
    weak = {name: part for name, part in parts.items() if part.level != "good"}
    if weak:
        said = (f"{name} {percent(p.accuracy)} (chance {percent(p.chance)})" for name, p in weak.items())
        title = f"{run.line[-1]}: not certainly above chance in {listed(list(weak))}"
        level: Level = "bad" if any(part.level == "bad" for part in weak.values()) else "unsure"
        out.append(Finding(level, title, ", ".join(said)))
    missed = [
        line
        for line in ablation_lines(run.ablations)
        if line["name"] in BLANKED and line["delta"] and line["delta"]["high"] >= 0
    ]
    if missed:
        said = (
            f"{line['modality']} with {ablation_label(line['name'])} {interval(line['delta'])} points"
            for line in missed
        )
        title = f"{run.line[-1] if run.line else 'the model'}: no certain loss when a medium is blanked"
        out.append(Finding("bad", title, "; ".join(said)))
    return out


def _letters(run: Run) -> list[Finding]:
    """What the answers lose when the same options get letters."""
    block = run.ablations.get(LETTERS)
    delta = (block or {}).get("delta", {}).get("overall")
    if not block or not delta or delta["high"] >= 0:
        return []
    plain, after = (part["overall"]["accuracy"] for part in (block["plain"], block))
    detail = (
        f"{interval(delta)} points on {plural(delta['n'], 'question')} with options: {percent(plain)} named, "
        f"{percent(after)} with letters"
    )
    return [Finding("unsure", f"{run.line[-1] if run.line else 'the model'}: drop with letters", detail)]


def _training(run: Run, name: str, lines: Sequence[Mapping[str, Any]]) -> list[Finding]:
    out: list[Finding] = []
    skipped = sum(v for _, v in values(lines, "skipped_steps"))
    if skipped:
        out.append(
            Finding("bad", f"{name}: {plural(int(skipped), 'step')} skipped", "their gradient was not finite")
        )
    failed = sum(v for _, v in values(lines, "rewards/bad_values"))
    if failed:
        detail = "they raised or gave no finite number, and counted as None; the log names each"
        out.append(Finding("bad", f"{name}: {plural(int(failed), 'value')} of user rewards lost", detail))
    empty = sum("loss" not in line for line in lines)
    if empty:
        detail = "no group passed the gate, so nothing was trained in them"
        out.append(Finding("unsure", f"{name}: {plural(empty, 'step')} without rows", detail))
    tail = max(10, len(lines) // 10)
    unseen = {}
    for key in dict.fromkeys(k for line in lines for k in line if fnmatch.fnmatch(k, "pretask/*_things")):
        last = [v for _, v in values(lines, key)[-tail:]]
        if last and sum(last) / len(last) < 0.5:
            unseen[key.removeprefix("pretask/").removesuffix("/accuracy_things")] = sum(last) / len(last)
    if unseen:
        detail = ", ".join(f"{what} {percent(share)}" for what, share in unseen.items())
        where = f"right on so much of what is there: {detail} (mean of the last {tail} steps)"
        out.append(Finding("unsure", f"{name}: hardly perceives {listed(list(unseen))}", where))
    for key, most, title, detail in (
        (CUT_OFF, 0.02, "completions cut off", "they reached max_completion_length"),
        (
            NO_SIGNAL,
            0.7,
            "groups without signal",
            "all their rollouts earned the same: nothing is learned from them",
        ),
    ):
        last = [v for _, v in values(lines, key)[-tail:]]
        share = sum(last) / len(last) if last else 0.0
        if share > most:
            where = f"{detail} (mean of the last {len(last)} steps)"
            out.append(Finding("unsure", f"{name}: {percent(share)} {title}", where))
    return out


def _answers(run: Run, name: str) -> list[Finding]:
    """What the held-out answers of one stage show: hedging, broken format, cut-offs, a slice that got worse."""
    out: list[Finding] = []
    block = run.evaluation[name]["overall"]
    parent = run.parent(name)
    before = run.evaluation[parent]["overall"].get("hedge_rate") if parent else None
    hedge = block.get("hedge_rate")
    if hedge is not None and hedge > max(0.1, (before or 0.0) + 0.02):
        was = "" if before is None else f", {percent(before)} after {parent}"
        detail = (
            f"questions with several right answers that got only some of them{was}; soft rewards invite it"
        )
        out.append(Finding("bad", f"{name}: hedging on {percent(hedge)}", detail))
    if block.get("format") is not None and block["format"] < 0.98:
        out.append(
            Finding("unsure", f"{name}: {percent(block['format'])} in the strict format", "98% is the aim")
        )
    most = (run.recipe.get("eval") or {}).get("max_completion_length")
    cut = sum(row.length >= most for row in run.rows[name]) if most else 0
    if cut:
        detail = f"they reached eval.max_completion_length = {most}"
        out.append(Finding("unsure", f"{name}: {plural(cut, 'held-out answer')} cut off", detail))
    deltas = run.difference(parent, name) if parent else {}
    for part, what in (
        ("by_group", "questions"),
        ("by_problem_type", "answers"),
        ("by_modality", "questions"),
    ):
        for kind, delta in deltas.get(part, {}).items():
            if delta["high"] < 0:
                title = f"{name}: {kind.replace('_', ' ')} {what} got worse"
                out.append(Finding("bad", title, f"{interval(delta)} points against {parent}"))
    return out
