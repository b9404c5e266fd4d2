"""The first screen: did it learn, at what cost, what is wrong."""

from __future__ import annotations

import fnmatch
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mmreason.evaluate import LETTERS, ablation_lines
from mmreason.evaluate.ablate import BLANKED
from mmreason.report.curves import CUT_OFF, NO_SIGNAL, values
from mmreason.report.load import BEFORE, Run
from mmreason.report.words import (
    ablation_label,
    count,
    duration,
    interval,
    listed,
    percent,
    plural,
    points,
    size,
)

Level = Literal["good", "unsure", "bad"]
ARROW = " \u2192 "


@dataclass(frozen=True)
class Bar:
    """One evaluated stage on the ladder: accuracy, its own 95% interval, and its gain over where it came from."""

    stage: str
    label: str
    colour: str
    accuracy: float
    low: float
    high: float
    gain: str  # "+8.3 (+4.9 to +11.8) over sft"; empty for the first
    level: Level


@dataclass(frozen=True)
class Sense:
    """One modality at the end of the main line, against chance. `level` bad: not above it."""

    name: str
    accuracy: float
    chance: float
    level: Level


@dataclass(frozen=True)
class Headline:
    """`level` colours the words; `sentences` hold what the gains are, one each."""

    level: Level
    title: str
    under: str
    sentences: list[tuple[Level, str]]
    bars: list[Bar]
    chance: float | None
    senses: list[Sense]  # empty where there is one modality


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or (level `unsure`) that a reader should know."""

    level: Level
    title: str
    detail: str


def stage_colours(run: Run) -> dict[str, str]:
    """Evaluated stage -> class of the style sheet: s0 is `before`, s1.. the main line, b0.. the branches."""
    line = [name for name in run.line if name != BEFORE]
    colours = {BEFORE: "s0"} | {name: f"s{1 + i % 4}" for i, name in enumerate(line)}
    return colours | {name: f"b{i % 2}" for i, name in enumerate(run.rivals)}


def stage_label(run: Run, name: str) -> str:
    """`grpo`, `before training`, `sft-more (the rival of grpo)`."""
    stage = run.stage(name)
    rival = stage.get("time_of")
    return "before training" if name == BEFORE else f"{name} (rival of {rival})" if rival else name


def headline(run: Run) -> Headline:
    """What the evaluation says about the main line, in one title and a few sentences."""
    line = run.line
    known = [n for n in run.evaluation if run.evaluation[n]["overall"].get("accuracy") is not None]
    if not line or not known:
        return Headline("unsure", *_not_evaluated(run), [], [], None, [])
    overall = {name: run.evaluation[name]["overall"] for name in run.evaluation}
    last = line[-1]
    chance = overall[last].get("chance")
    path = ARROW.join(percent(overall[n]["accuracy"], 0) for n in line)
    under = (
        f"Exact answers on {plural(overall[last]['n'], 'held-out question')}, {ARROW.join(line)}. "
        f"Guessing without looking gives {percent(chance)}."
    )
    level, title = _title(run, line, overall, path)
    bars = [_bar(run, name) for name in known]
    return Headline(level, title, under, _sentences(run, line, overall), bars, chance, senses(run))


def senses(run: Run) -> list[Sense]:
    """Each modality after the last stage of the main line; empty where there is only one, or nothing evaluated."""
    blocks = run.evaluation[run.line[-1]]["by_modality"] if run.line else {}
    if len(blocks) < 2:
        return []
    out = []
    for name, block in blocks.items():
        accuracy, chance = block["accuracy"], block["chance"]
        if accuracy is None or chance is None:
            continue
        low, high = _wilson(accuracy, block["n"])
        level: Level = "good" if low > chance else "bad" if high < chance or accuracy <= chance else "unsure"
        out.append(Sense(name, accuracy, chance, level))
    return out


def _not_evaluated(run: Run) -> tuple[str, str]:
    if not (run.recipe.get("eval") or {}).get("data"):
        return (
            "Not evaluated",
            "The recipe names no held-out rows; add eval.data to learn whether it learned.",
        )
    return "Not evaluated yet", "No stage has been evaluated so far; the curves below show the training."


def _title(run: Run, line: list[str], overall: Mapping[str, Any], path: str) -> tuple[Level, str]:
    last, chance = line[-1], overall[line[-1]].get("chance") or 0.0
    if len(line) == 1:
        return "unsure", f"{stage_label(run, last).capitalize()}: {path}"
    delta = run.difference(line[0], last).get("overall")
    step = run.difference(line[-2], last).get("overall")
    if delta and delta["low"] > 0:
        if _wilson(overall[last]["accuracy"], overall[last]["n"])[0] <= chance:
            said = "up to chance" if overall[last]["accuracy"] >= chance else "but is below chance"
            return "unsure", f"It improved, {said}: {path}"
        if step and step["low"] <= 0:
            but = "lost in" if step["high"] < 0 else "gained nothing certain from"
            return "unsure", f"It learned, but {but} {last}: {path}"
        return "good", f"It learned: {path}"
    if delta and delta["high"] < 0:
        return "bad", f"It got worse: {path}"
    return "unsure", f"No measurable change: {path}"


def _sentences(run: Run, line: list[str], overall: Mapping[str, Any]) -> list[tuple[Level, str]]:
    out: list[tuple[Level, str]] = []
    for name in [*line[1:], *run.rivals]:
        parent = run.parent(name)
        delta = run.difference(parent, name).get("overall") if parent else None
        if parent and delta:
            verb = "gains" if delta["low"] > 0 else "loses" if delta["high"] < 0 else "has no certain effect:"
            out.append(
                (_level(delta), f"{stage_label(run, name)} {verb} {interval(delta)} points against {parent}")
            )
    last = line[-1]
    for rival in run.rivals:
        earlier, later = sorted((rival, last), key=list(run.evaluation).index)
        delta = run.difference(earlier, later).get("overall")
        if delta:
            delta = (
                delta
                if later == last
                else {"mean": -delta["mean"], "low": -delta["high"], "high": -delta["low"]}
            )
            word = "ahead of" if delta["low"] > 0 else "behind" if delta["high"] < 0 else "level with"
            out.append((_level(delta), f"{last} ends {word} its rival {rival}: {interval(delta)} points"))
    out += _groups(run, line)
    chance = overall[last].get("chance")
    if chance is not None:
        ahead = overall[last]["accuracy"] - chance
        where = f"{points(abs(ahead))[1:]} points {'above' if ahead >= 0 else 'below'} chance"
        out.append(("good" if ahead > 0.05 else "bad", f"{last} ends {where}"))
    return out


def _groups(run: Run, line: list[str]) -> list[tuple[Level, str]]:
    """Where the questions are of several groups (primitive, compositional), a sentence on each."""
    last, parent = run.evaluation[line[-1]].get("by_group") or {}, run.parent(line[-1])
    deltas = run.difference(parent, line[-1]).get("by_group", {}) if parent else {}
    out: list[tuple[Level, str]] = []
    for name, block in last.items() if len(last) > 1 else ():
        stages = [run.evaluation[stage].get("by_group", {}).get(name, {}) for stage in line]
        path = ARROW.join(percent(stage.get("accuracy"), 0) for stage in stages)
        level: Level = _level(deltas[name]) if name in deltas else "unsure"
        out.append(
            (level, f"{name}: {path} of {plural(block['n'], 'question')}, chance {percent(block['chance'])}")
        )
    return out


def _level(delta: Mapping[str, float]) -> Level:
    return "good" if delta["low"] > 0 else "bad" if delta["high"] < 0 else "unsure"


def _bar(run: Run, name: str) -> Bar:
    overall = run.evaluation[name]["overall"]
    low, high = _wilson(overall["accuracy"], overall["n"])
    parent = run.parent(name)
    delta = run.difference(parent, name).get("overall") if parent else None
    gain = f"{interval(delta)} over {parent}" if delta else ""
    level: Level = _level(delta) if delta else "unsure"
    colour = stage_colours(run)[name]
    return Bar(name, stage_label(run, name), colour, overall["accuracy"], low, high, gain, level)


def _wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share of n questions (1927)."""
    z = 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


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
    logged = (
        ""
        if len(run.metrics) == last
        else f", in the {len(run.metrics):,} of {last:,} steps that were logged"
    )
    device = machine.get("cuda") or f"{machine.get('cpu_count', '?')} CPU cores"
    versions = machine.get("packages") or {}
    stack = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers") if name in versions)
    return [
        ("Wall time", duration(total), parts or "the run has not finished"),
        ("Peak memory", size(peak), "PSS of the whole process tree"),
        ("Tokens learned", count(learned), f"{count(read)} read in {plural(last, 'step')}{logged}"),
        (
            "Machine",
            device,
            f"{machine.get('torch_threads', '?')} torch threads; {stack}" if machine else "unknown",
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
    weak = [sense for sense in senses(run) if sense.level != "good"]
    if weak:
        said = (f"{s.name} {percent(s.accuracy)} (chance {percent(s.chance)})" for s in weak)
        title = f"{run.line[-1]}: not certainly above chance in {listed([s.name for s in weak])}"
        level: Level = "bad" if any(sense.level == "bad" for sense in weak) else "unsure"
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
    for part in ("by_group", "by_problem_type", "by_modality"):
        for kind, delta in deltas.get(part, {}).items():
            if delta["high"] < 0:
                out.append(
                    Finding("bad", f"{name}: {kind} got worse", f"{interval(delta)} points against {parent}")
                )
    return out
