"""Taking a sense away changes exactly what it says: the medium, its time, or one encoder's input; never the words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from mmreason.cli import app
from mmreason.data.media import decode, limits_of
from mmreason.data.worlds import make_world
from mmreason.evaluate import ablated_media, ablated_prompt, ablation_block, judge, parse_ablation, touched
from mmreason.model import Loaded, load_model, save_model
from mmreason.render import Renderer
from mmreason.train import evaluation
from mmreason.train.run import train
from mmreason.types import DecodedMedium, MediumRef, Message, Part, Rendered, Sample
from mmreason.validate import settings_problems
from tests.data.clips import mp4, tone, wav
from tests.tiny import AST, TEXTS, WHISPER, tiny_model_config
from tests.train import small

RATE = 16_000
HEARING = [
    {**WHISPER, "max_source_positions": 200, "audio_merge": 10},
    {**AST, "max_length": 400, "audio_merge": 5},
]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load_model(tiny_model_config(audio=HEARING), texts=lambda: TEXTS, seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    (root / "a.mp4").write_bytes(mp4(sound=beep()))
    (root / "a.wav").write_bytes(wav(beep()))
    Image.new("RGB", (40, 30), "orange").save(root / "a.png")
    return root


def beep() -> np.ndarray:
    """Four seconds, a tone in the first."""
    wave = tone(4.0)
    wave[RATE:] = 0
    return wave


def sample(folder: Path, *names: str, id: str = "r:1") -> Sample:
    """A question on files; `a.mp4!` is the sound track of a.mp4."""
    kinds: dict[str, Any] = {"png": "image", "mp4": "video", "wav": "audio", "mp4!": "audio"}
    refs = tuple(MediumRef(kinds[n.rpartition(".")[2]], n.removesuffix("!"), root=str(folder)) for n in names)
    parts = (*(Part(r.kind, medium=i) for i, r in enumerate(refs)), Part("text", text="How many red?"))
    return Sample(id, "r", (Message("user", parts),), refs, solution="2", problem_type="numeric")


def media_of(loaded: Loaded, row: Sample) -> list[DecodedMedium]:
    limits = limits_of(processor=loaded.processor)
    return [decode(ref, limits) for ref in row.media]


def rendered(loaded: Loaded, row: Sample, ablation: str | None = None) -> Rendered:
    prompt, media = Renderer(loaded.processor).prompt, media_of(loaded, row)
    return ablated_prompt(parse_ablation(ablation), row, media, prompt) if ablation else prompt(row, media)


def changed(loaded: Loaded, row: Sample, ablation: str) -> set[str]:
    """Names of the model's inputs that differ."""
    before, after = rendered(loaded, row), rendered(loaded, row, ablation)
    assert torch.equal(before.ids, after.ids) and before.media.keys() == after.media.keys()
    return {name for name in before.media if not torch.equal(before.media[name], after.media[name])}


FILM = ("a.mp4", "a.mp4!")


@pytest.mark.parametrize(
    ("names", "ablation", "inputs"),
    [
        (("a.png",), "image", {"pixel_values"}),
        (("a.png", "a.wav"), "image", {"pixel_values"}),
        (FILM, "video", {"pixel_values_videos"}),
        (FILM, "audio", {"input_features_0", "input_features_1"}),
        (FILM, "sound_shift=1.0", {"input_features_0", "input_features_1"}),
        (FILM, "audio_encoder=0", {"input_features_0"}),
        (("a.png", "a.wav"), "audio_encoder=1", {"input_features_1"}),
    ],
)
def test_exactly_that_input_changes_and_no_word(
    loaded: Loaded, folder: Path, names: tuple[str, ...], ablation: str, inputs: set[str]
) -> None:
    assert changed(loaded, sample(folder, *names), ablation) == inputs


def test_blank_is_black_and_silent_and_the_original_stays(loaded: Loaded, folder: Path) -> None:
    media = media_of(loaded, sample(folder, "a.png", *FILM))
    for kind in ("image", "video", "audio"):
        out = ablated_media(parse_ablation(kind), media)
        for before, after in zip(media, out, strict=True):
            assert (after is before) == (before.kind != kind)
    picture, film, sound = (
        ablated_media(parse_ablation(m.kind), [m])[0] for m in media
    )  # each blanked by its own kind
    assert (
        picture.image is not None and picture.image.size == (40, 30) and not np.asarray(picture.image).any()
    )
    assert film.frames is not None and film.frames.shape == media[1].frames.shape and not film.frames.any()  # type: ignore[union-attr]
    assert film.timestamps is media[1].timestamps
    assert sound.waveform is not None and len(sound.waveform) == 4 * RATE and not sound.waveform.any()
    assert np.asarray(media[0].image).any() and media[1].frames.any() and media[2].waveform.any()  # type: ignore[union-attr]


def test_a_shift_moves_the_sound_on_its_clock_and_loses_nothing(loaded: Loaded, folder: Path) -> None:
    medium = media_of(loaded, sample(folder, "a.wav"))[0]
    later = ablated_media(parse_ablation("sound_shift=1.0"), [medium])[0].waveform
    earlier = ablated_media(parse_ablation("sound_shift=-0.5"), [medium])[0].waveform
    assert medium.waveform is not None and later is not None and earlier is not None
    assert np.abs(medium.waveform[:RATE]).max() > 0.2 and not medium.waveform[RATE:].any()
    assert not later[:RATE].any() and np.array_equal(later[RATE : 2 * RATE], medium.waveform[:RATE])
    assert np.array_equal(
        earlier[-RATE // 2 :], medium.waveform[: RATE // 2]
    )  # it comes back at the other end
    with pytest.raises(ValueError, match=r"its sound of 4 s is the same when it is shifted by 4 s"):
        ablated_media(parse_ablation("sound_shift=4"), [medium])


def test_a_deaf_encoder_gets_what_it_makes_of_silence(loaded: Loaded, folder: Path) -> None:
    row = sample(folder, *FILM)
    deaf, silent = rendered(loaded, row, "audio_encoder=0"), rendered(loaded, row, "audio")
    assert torch.equal(deaf.media["input_features_0"], silent.media["input_features_0"])
    with pytest.raises(ValueError, match="no such audio encoder; it has 2 of them"):
        rendered(loaded, row, "audio_encoder=2")


@pytest.mark.parametrize("text", ["colour", "image=1", "sound_shift", "sound_shift=0", "sound_shift=nan",
                                  "audio_encoder", "audio_encoder=-1", "audio_encoder=1.5", ""])  # fmt: skip
def test_an_unknown_ablation_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="allowed are image, video, audio, sound_shift=SECONDS"):
        parse_ablation(text)


def test_only_rows_that_have_it_are_asked_again(folder: Path) -> None:
    rows = [sample(folder, *names) for names in (("a.png",), ("a.mp4",), ("a.wav",), FILM, ())]
    asked = {
        name: [rows.index(s) for s in touched(parse_ablation(name), rows)]
        for name in ("image", "video", "audio", "sound_shift=1", "audio_encoder=1")
    }
    assert asked == {
        "image": [0],
        "video": [1, 3],
        "audio": [2, 3],
        "sound_shift=1": [3],
        "audio_encoder=1": [2, 3],
    }
    with pytest.raises(
        ValueError, match=r"ablate audio: no row has that to lose; the rows are of image, text"
    ):
        touched(parse_ablation("audio"), [rows[0], rows[4]])


def test_a_block_holds_both_answers_to_the_same_questions(folder: Path) -> None:
    pictures = [sample(folder, "a.png", id=f"p{i}") for i in range(4)]
    films = [sample(folder, *FILM, id=f"f{i}") for i in range(4)]
    plain = [judge(s, "<think>x</think><answer>2</answer>", 5) for s in [*pictures, *films]]
    right = iter((True, False, False, False))
    rows = [judge(s, f"<think>x</think><answer>{2 if next(right) else 3}</answer>", 5) for s in films]
    block = ablation_block(plain, rows)
    assert set(block["by_modality"]) == set(block["plain"]["by_modality"]) == {"av"}
    assert (block["overall"]["n"], block["overall"]["accuracy"]) == (4, 0.25)
    assert (block["plain"]["overall"]["n"], block["plain"]["overall"]["accuracy"]) == (4, 1.0)
    assert block["delta"]["overall"]["mean"] == -0.75 and block["delta"]["by_modality"]["av"]["n"] == 4


def test_chance_is_that_of_all_rows_however_few_are_asked_again(folder: Path) -> None:
    """Eight counts, 1 to 8: a constant scores 1/8. Of the two asked again it would score 1/2, after the fact."""
    rows = [replace(sample(folder, "a.png", id=f"p{i}"), solution=str(i + 1)) for i in range(8)]
    plain = [judge(s, "<think>x</think><answer>1</answer>", 5) for s in rows]
    block = ablation_block(plain, plain[6:])
    assert block["plain"]["overall"]["chance"] == block["overall"]["chance"] == 0.0  # the constant is 1
    assert ablation_block(plain, plain[:2])["plain"]["by_modality"]["image"]["chance"] == 0.5
    assert ablation_block(plain, plain)["overall"]["chance"] == 1 / 8
    lettered = [replace(row, solution=letter) for row, letter in zip(plain[:4], "AAAB", strict=True)]
    assert ablation_block(plain, lettered)["overall"]["chance"] == 3 / 4  # of the constant letter


def test_the_command_asks_the_model_again_without_a_sense(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_model(loaded.model, loaded.processor, tmp_path / "model")
    films = make_world("av", tmp_path / "av", count=6, seed=1, split="test")
    pictures = make_world("image", tmp_path / "image", count=4, seed=1, split="test")
    shown: list[list[Rendered]] = []
    real = evaluation.engine

    def spying(*which: Any) -> Any:
        complete = real(*which)

        def spy(model: Any, family: Any, renderer: Any, prompts: list[Rendered], *rest: Any) -> Any:
            shown.append(prompts)
            return complete(model, family, renderer, prompts, *rest)

        return spy

    monkeypatch.setattr(evaluation, "engine", spying)
    out = tmp_path / "eval.json"
    wanted = ["--ablate", "sound_shift=1.0", "--ablate", "image", "--ablate", "audio_encoder=1"]
    arguments = ["eval", str(model), "--data", str(films), "--data", str(pictures), "--json", str(out)]
    done = CliRunner().invoke(app, [*arguments, "--max-completion-length", "2", *wanted])
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert list(result["ablations"]) == ["sound_shift=1.0", "image", "audio_encoder=1"]
    assert result["ablations"]["image"]["plain"]["by_modality"]["image"] == result["by_modality"]["image"]
    assert [len(prompts) for prompts in shown] == [10, 6, 4, 6]
    plain, shift, blank, deaf = ({p.sample_id: p for p in prompts} for prompts in shown)
    for prompts, inputs in ((shift, {0, 1}), (deaf, {1})):
        for name, prompt in prompts.items():
            different = {
                i
                for i in (0, 1)
                if not torch.equal(
                    prompt.media[f"input_features_{i}"], plain[name].media[f"input_features_{i}"]
                )
            }
            assert different == inputs
            assert torch.equal(prompt.media["pixel_values_videos"], plain[name].media["pixel_values_videos"])
    assert all(p.media["pixel_values"].unique().numel() == 1 for p in blank.values())
    for words in ("Without a sense", "taken away", "sound_shift=1.0", "95% interval"):
        assert words in done.stdout


def test_a_run_asks_again_without_a_sense_for_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.without_probe(monkeypatch)
    held_out = {"data": ["held_out"], "max_completion_length": 4, "before": False, "ablate": ["image"]}
    stage = {**small.SFT, "max_steps": 1}
    recipe = small.recipe(tmp_path / "run", stages=[stage], eval=held_out)
    assert settings_problems(recipe) == []
    train(recipe)
    stored = json.loads((tmp_path / "run" / "ablations.json").read_text())
    block = stored["ablations"]["image"]
    plain = json.loads((tmp_path / "run" / "eval.json").read_text())["sft"]
    assert stored["stage"] == "sft" and block["plain"]["overall"] == plain["overall"]
    assert block["overall"]["n"] == 6 and set(block["delta"]["overall"]) == {"mean", "low", "high", "n"}
    wrong = small.recipe(tmp_path / "other", stages=[stage], eval={**held_out, "ablate": ["smell"]})
    assert [p for p in settings_problems(wrong) if "eval.ablate: got 'smell'; allowed are image" in p]
    apart = small.recipe(tmp_path / "other", stages=[{**stage, "evaluate": False}], eval=held_out)
    assert settings_problems(apart) == ["eval.ablate: needs eval.data, and stages.sft with evaluate: true"]


def test_fewer_rows_are_asked_again_than_are_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.without_probe(monkeypatch)
    held_out = {"data": ["held_out"], "max_completion_length": 4, "before": False, "ablate": ["image"]}
    stage = {**small.SFT, "max_steps": 1}
    train(small.recipe(tmp_path, stages=[stage], eval={**held_out, "ablate_limit": 4}))
    block = json.loads((tmp_path / "ablations.json").read_text())["ablations"]["image"]
    assert block["overall"]["n"] == block["plain"]["overall"]["n"] == 4
    assert json.loads((tmp_path / "eval.json").read_text())["sft"]["overall"]["n"] == 6
