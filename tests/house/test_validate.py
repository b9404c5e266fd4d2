"""`validate`: a sound recipe is ready; of a bad one every problem is listed at once, by row or key."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmreason.api import train
from mmreason.data.media import MediaLimits
from mmreason.recipe import build_recipe, load_recipe
from mmreason.validate import settings_problems, validate, validate_file
from mmreason.validate.rendering import _chosen
from mmreason.validate.report import Report
from mmreason.validate.rows import check_media, read_source
from tests.data import clips
from tests.data.bad_media import write_rows
from tests.tiny import WHISPER, tiny_native

ROOT = Path(__file__).resolve().parents[2]
MODEL = {
    "assemble": {
        "vision": {
            "model_type": "siglip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "patch_size": 16,
        },
        "llm": {
            "model_type": "qwen3",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "head_dim": 16,
        },
    }
}
HEARS = {
    "assemble": MODEL["assemble"] | {"audio": [WHISPER | {"max_source_positions": 200, "audio_merge": 10}]}
}
SFT = {"type": "sft", "name": "sft", "data": ["mine"], "rationale": "none"}
GRPO = {"type": "grpo", "name": "grpo", "data": ["mine"]}


def row(**changes: Any) -> dict[str, Any]:
    good = {"problem": "<image>Which colour?", "images": ["good.png"], "solution": "red"}
    return good | {"problem_type": "single_choice", "options": ["red", "blue"]} | changes


def recipe(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    Image.new("RGB", (32, 32), "red").save(folder / "good.png")
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    whole = {
        "output_dir": str(folder / "run"),
        "model": MODEL,
        "data": {"mine": {"path": str(folder / "rows.jsonl")}},
    }
    return whole | {"stages": [SFT, GRPO]} | changes


def check(folder: Path, rows: list[dict[str, Any]], *overrides: str, **changes: Any) -> list[str]:
    return validate(build_recipe(recipe(folder, rows, **changes), overrides)).problems


def test_a_sound_recipe_is_ready_and_writes_nothing(tmp_path: Path) -> None:
    report = validate(build_recipe(recipe(tmp_path, [row()] * 3)))
    assert report.problems == [] and report.as_dict()["ok"]
    assert report.sources["mine"]["rows"] == 3
    assert report.rewards["grpo"] == {"exact": 1.0, "format": 1.0}
    assert report.memory["grpo"].kv_cache > 0 and report.memory["sft"].kv_cache == 0
    assert not (tmp_path / "run").exists()


def test_every_bad_row_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    Image.new("1", (5000, 5000)).save(tmp_path / "huge.png")
    rows = [
        row(),
        row(images=["broken.png"]),
        row(images=["absent.png"]),
        row(images=["huge.png"]),
        row(images=["../outside.png"]),
    ]
    problems = "\n".join(check(tmp_path, rows))
    for name in ("broken.png", "absent.png", "huge.png", "../outside.png"):
        assert name in problems
    for line in (2, 3, 4, 5):
        assert f"mine:{line}" in problems
    assert "mine:1:" not in problems


def write_media(folder: Path) -> None:
    """A film with its sound and a wave, whole; and what is wrong with such files in life."""
    film = clips.mp4(16, sound=clips.tone(2.0))
    noise = clips.tone(2.0)
    noise[5] = float("nan")
    files = {
        "film.mp4": film,
        "wave.wav": clips.wav(clips.tone(2.0)),
        "torn.mp4": clips.mp4(16, sound=clips.tone(2.0), movflags="faststart")[: len(film) // 2],
        "mute.mp4": clips.mp4(16),
        "nan.wav": clips.wav(noise),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)


def test_films_and_sounds_are_ready_or_named(tmp_path: Path) -> None:
    write_media(tmp_path)
    typed = [
        {"type": "video", "video": "film.mp4"},
        {"type": "audio", "audio": "film.mp4"},
        {"type": "text", "text": "?"},
    ]
    good = [
        row(problem="<video>Which colour?", images=[], videos=["film.mp4"]),
        row(problem="<audio>Which note?", images=[], audios=["wave.wav"]),
        row(problem="<video><audio>Which?", images=[], videos=["film.mp4"], audios=["film.mp4"]),
        row(messages=[{"role": "user", "content": typed}], images=[]),
    ]
    assert check(tmp_path, good, model=HEARS) == []
    bad = [
        row(problem="<video>Which colour?", images=[], videos=["torn.mp4"]),
        row(problem="<video><audio>Which?", images=[], videos=["mute.mp4"], audios=["mute.mp4"]),
        row(problem="<audio>Which note?", images=[], audios=["nan.wav"]),
        row(problem="<video>Which colour?", images=[], videos=["good.png.mp4"]),
        row(problem="<video>Which colour?", images=[], videos=["film.mp4", "film.mp4"]),
        row(problem="<audio><audio>Which?", images=[], audios=["wave.wav"]),
    ]
    problems = check(tmp_path, [*good, *bad], model=HEARS)
    for said in (
        "row mine:5: torn.mp4: the video is torn",
        "row mine:6: mute.mp4: got no sound track, only video",
        "row mine:7: nan.wav: got 1 samples that are NaN",
        "row mine:8: good.png.mp4: no such file",
        "row mine:9: 1 <video> markers for 2 videos",
        "row mine:10: messages.0.content.0: the audio number",
    ):
        assert any(said in p for p in problems), (said, problems)
    assert len(problems) == len(bad)


def test_every_film_and_sound_that_training_would_refuse_is_named(tmp_path: Path) -> None:
    """The very rows that tests/train/test_bad_media.py trains on."""
    path, why = write_rows(tmp_path / "films")
    whole = recipe(tmp_path, [row()], model=HEARS, data={"mine": {"path": str(path)}})
    problems = validate(build_recipe(whole)).problems
    assert len(problems) == len(why)
    for name, reason in why.items():
        assert any(f"data.mine, row {name}: {reason}" in p for p in problems), (name, problems)


@pytest.mark.parametrize("decoded", [1000, 1])
def test_a_sound_longer_than_the_window_is_named_in_any_row(
    tmp_path: Path, decoded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 102 of 200 is not among those that are rendered; beyond DECODED_MEDIA its header alone is read."""
    monkeypatch.setattr("mmreason.validate.rows.DECODED_MEDIA", decoded)
    for name, seconds in (("wave.wav", 4.0), ("long.wav", 5.0)):
        (tmp_path / name).write_bytes(clips.wav(clips.tone(seconds)))
    rows = [row(problem="<audio>?", images=[], audios=["wave.wav"]) for _ in range(200)]
    rows[101]["audios"] = ["long.wav"]
    (problem,) = check(tmp_path, rows, model=HEARS)
    assert problem == (
        "data.mine, row mine:102: long.wav: got 5.00 s of sound; this model hears at most 4.00 s: cut it"
    )


def test_a_torn_picture_is_named_also_beside_wrong_rows(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "whole.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])  # its header is whole
    wrong = [row(), row(images=["torn.png"]), row(solution="")]
    for rows in (wrong, wrong[:2]):
        assert any("row mine:2: torn.png" in p for p in check(tmp_path, rows))


def test_every_row_has_its_target_and_the_longest_is_rendered(tmp_path: Path) -> None:
    rows = [row(rationale="short")] * 200
    rows[101] = row()
    rows[103] = row(rationale="short", problem="<image>" + 50 * "which colour is it? ")
    problems = check(tmp_path, rows, "stages.sft.rationale=free", "stages.grpo.max_prompt_length=60")
    assert any("row mine:102: no rationale in style 'free'" in p for p in problems)
    assert any("row mine:104 has a prompt" in p for p in problems)


def test_the_row_with_the_largest_picture_is_rendered_wherever_it_stands(tmp_path: Path) -> None:
    rows = [row()] * 200
    rows[101] = row(images=["large.png"], problem="<image>x")
    Image.new("RGB", (400, 300)).save(tmp_path / "large.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "whole.png")
    settings = build_recipe(recipe(tmp_path, rows))
    report = Report("recipe")
    samples = read_source("mine", settings.data["mine"], tmp_path, report)
    looked = check_media("mine", samples, MediaLimits(), report)
    assert looked.pixels["mine:102"] == 400 * 300
    assert "mine:102" in [sample.id for sample in _chosen(samples, looked.pixels)]
    assert "mine:102" not in [sample.id for sample in _chosen(samples, {})]  # by its text it would not be


def test_rows_that_contradict_themselves_are_named_at_once(tmp_path: Path) -> None:
    rows = [
        row(),
        row(problem="<image><image>Which colour?"),
        row(solution=""),
        row(solution="green"),
        row(problem_type="essay"),
    ]
    problems = check(tmp_path, rows)
    for line in (2, 3, 4, 5):
        assert any(f"data.mine, row mine:{line}:" in p for p in problems), (line, problems)


def test_limits_rewards_template_and_rationale(tmp_path: Path) -> None:
    problems = check(tmp_path, [row()], "stages.grpo.max_prompt_length=3", "stages.sft.max_length=4")
    assert any("stages.grpo" in p and "allowed are 3 (max_prompt_length)" in p for p in problems)
    assert any("stages.sft" in p and "allowed are 4 (max_length)" in p for p in problems)
    assert any("exakt" in p for p in check(tmp_path, [row()], "stages.grpo.reward_funcs=[exakt]"))
    assert any("structured" in p for p in check(tmp_path, [row()], "stages.sft.rationale=structured"))
    assert any(
        "no_such.py" in p for p in check(tmp_path, [row()], "stages.grpo.reward_funcs=['no_such.py:f']")
    )
    gate = "stages.grpo.gate={name: balanced, low: 0.4, high: 0.45}"
    assert any("stages.grpo.gate" in p for p in check(tmp_path, [row()], gate))
    assert any("none.jinja" in p for p in check(tmp_path, [row()], "model.chat_template=none.jinja"))


def test_everything_wrong_is_named_at_once(tmp_path: Path) -> None:
    """Keys of the recipe, a group that does not divide, rows, a medium, and a prompt over the limit."""
    rows = [row(), row(solution=""), row(images=["absent.png"]), row(problem="<image>" + 80 * "colour? ")]
    whole = recipe(tmp_path, rows) | {"sed": 1}
    stages = [SFT | {"learning_rat": 1}, GRPO | {"num_generations": 3, "max_prompt_length": 60, "beta": "x"}]
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(whole | {"stages": stages}))
    problems = validate_file(path).problems
    for said in (
        "sed: unknown key; did you mean 'seed'?",
        "stages.sft.learning_rat: unknown key; did you mean 'learning_rate'?",
        "num_generations=3 does not divide",
        "stages.grpo.beta: ",
        "data.mine, row mine:2: solution",
        "row mine:3: absent.png",
        "stages.grpo: row mine:4 has a prompt of",
    ):
        assert sum(said in p for p in problems) == 1, (said, problems)
    assert len(problems) == 7


def test_groups_fill_a_step_of_all_processes_together(tmp_path: Path) -> None:
    keys = ["stages.grpo.num_generations=6", "stages.grpo.per_device_train_batch_size=4"]
    recipe_ = build_recipe(recipe(tmp_path, [row()]), keys)
    for processes, allowed in ((1, "[2, 4]"), (2, "[2, 4, 8]"), (3, None)):
        found = [p for p in settings_problems(recipe_, processes) if "does not divide" in p]
        assert len(found) == (allowed is not None)
        for said in [f"= 4 x {processes};", str(allowed), "a multiple of 3"] if allowed else []:
            assert said in found[0]


def test_a_stage_that_the_model_cannot_take_is_named(tmp_path: Path) -> None:
    everything = ["vision", "audio", "projector", "llm"]
    pretask = {"type": "pretask", "name": "see", "data": ["mine"], "freeze": everything}
    problems = check(tmp_path, [row()], stages=[pretask, SFT | {"questions_per_row": 2}])
    assert any("stages.see: every part of the model is frozen" in p for p in problems)
    assert any("stages.see: the sources ['mine'] hold no row with `targets`" in p for p in problems)
    assert check(tmp_path, [row()], stages=[SFT | {"questions_per_row": 2}]) == []
    native = {"model_name_or_path": str(tiny_native("qwen2_vl", tmp_path / "native"))}
    together = SFT | {"questions_per_row": 2}
    assert check(tmp_path, [row()], model=native, stages=[together]) == []
    problems = check(tmp_path, [row()], model=native, stages=[pretask, together], shared_prefix="off")
    assert any("stages.sft: questions_per_row above 1 needs rows that are packed" in p for p in problems)
    stage = pretask | {"freeze": []}
    problems = check(tmp_path, [row()], model=native, stages=[stage])
    assert any("stage see: pretask reads the features of an assembled model" in p for p in problems)


def test_prompts_that_must_be_shared_and_cannot_are_named_before_the_first_step(tmp_path: Path) -> None:
    llm = MODEL["assemble"]["llm"] | {"attention_dropout": 0.1}
    changes = {"model": {"assemble": MODEL["assemble"] | {"llm": llm}}, "shared_prefix": "require"}
    why = "shared_prefix: require cannot be met in training: .*attention_dropout is 0.1"
    problems = check(tmp_path, [row()], **changes)
    assert len(problems) == 2
    assert all(re.match(f"stages.{n}: {why}", p) for n, p in zip(("sft", "grpo"), problems, strict=True))
    with pytest.raises(ValueError, match=why):
        train(build_recipe(recipe(tmp_path, [row()], **changes)))
    assert not (tmp_path / "run" / "stages").exists() and not (tmp_path / "run" / "eval.json").exists()
    assert check(tmp_path, [row()], **changes | {"shared_prefix": "auto"}) == []


def test_a_model_without_a_chat_template_is_named(tmp_path: Path) -> None:
    folder = tiny_native("qwen2_vl", tmp_path / "native")
    (folder / "chat_template.jinja").unlink()
    problems = check(tmp_path, [row(), row(solution="")], model={"model_name_or_path": str(folder)})
    assert any("has no chat template" in p and "model.chat_template" in p for p in problems)
    assert any("row mine:2: solution" in p for p in problems)


def test_training_refuses_what_would_fail_when_its_stage_begins(tmp_path: Path) -> None:
    overrides = ["stages.grpo.reward_funcs=[exakt]", "stages.grpo.gate={name: balanced, low: 0.3, high: 0.3}"]
    with pytest.raises(ValueError, match=r"(?s)did you mean 'exact'.*stages.grpo.gate: gate \[0.3, 0.3\]"):
        train(build_recipe(recipe(tmp_path, [row()]), overrides))
    assert not (tmp_path / "run").exists()


def test_a_missing_file_a_missing_model_and_a_missing_plugin_together(tmp_path: Path) -> None:
    overrides = ["data.mine.path=nowhere.jsonl", "model.assemble=null", "model.model_name_or_path=./no/model"]
    problems = "\n".join(check(tmp_path, [row()], *overrides, "plugins=[mmreason_nothing]"))
    for name in ("nowhere.jsonl", "./no/model", "mmreason_nothing"):
        assert name in problems


def test_a_model_of_the_hub_that_is_not_here_is_named(tmp_path: Path) -> None:
    """Offline (as all tests are) a hub's name is only as good as the cache; a run says so before it begins."""
    absent = recipe(tmp_path, [row()], model={"model_name_or_path": "Qwen/Qwen2.5-VL-7B-Absent"})
    (problem,) = validate(build_recipe(absent)).problems
    assert problem.startswith(
        "model_name_or_path 'Qwen/Qwen2.5-VL-7B-Absent' is neither a folder with a model"
    )
    assert "couldn't find them in the cached files" in problem
    with pytest.raises(ValueError, match="Qwen/Qwen2.5-VL-7B-Absent"):
        train(build_recipe(absent))


def test_grpo_rows_need_a_solution(tmp_path: Path) -> None:
    told = {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]}
    assert any("solution" in p for p in check(tmp_path, [told], stages=[GRPO]))
    assert check(tmp_path, [told], stages=[SFT]) == []


def test_a_wrong_recipe_still_has_its_rows_checked(tmp_path: Path) -> None:
    whole = recipe(tmp_path, [row(), row(images=["absent.png"])]) | {"sed": 1}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(whole))  # JSON is YAML
    report = validate_file(path)
    assert any("did you mean 'seed'?" in p for p in report.problems)
    assert any("absent.png" in p for p in report.problems)


def test_the_command_exits_1_with_the_list_and_json(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe(tmp_path, [row(), row(images=["absent.png"])])))
    command = [sys.executable, "-m", "mmreason.cli", "validate", str(path), "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    result = json.loads(done.stdout)
    assert not result["ok"] and any("absent.png" in p for p in result["problems"])
    assert "absent.png" in done.stderr and "Traceback" not in done.stderr
    sound = [*command[:-2], "data.mine.limit=1"]
    assert subprocess.run(sound, capture_output=True, text=True).returncode == 0


@pytest.mark.parametrize("name", ["debug", "quickstart"])
def test_the_shipped_recipes_are_ready(name: str) -> None:
    path = ROOT / "recipes" / f"{name}.yaml"
    fewer = [f"data.{source}.count=24" for source in load_recipe(path).data]
    assert validate_file(path, fewer).problems == []
