"""Runs inside the vLLM server, which may have a Python of its own: imports nothing of ours.

vLLM makes `Weights` a base of its worker class (`--worker-extension-cls`), and its HTTP endpoint `/collective_rpc`
calls these methods by name on every worker. The stamp says which weights a worker holds; a worker that was started
anew has none.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

# numbers of the language model that must be those of the run's
NUMBERS = (
    *("hidden_size", "num_hidden_layers", "vocab_size"),
    *("num_attention_heads", "num_key_value_heads", "intermediate_size"),
)


class Weights:
    """Methods of a worker: load weights under a stamp, and tell what is loaded."""

    def mmreason_load(self: Any, folder: str, run: str, version: str) -> dict[str, Any]:
        """Put the `*.safetensors` of `folder` in place of the weights; nothing changes when they are not there.

        Requests must be paused and the caches empty: vLLM dies of a repeated picture otherwise.
        """
        if not sorted(Path(folder).glob("*.safetensors")):
            return {"error": f"the server sees no *.safetensors in {folder}"}
        self._mmreason_stamp = None  # a load that fails half-way leaves weights of no version
        self.reload_weights(weights_path=folder)
        self._mmreason_stamp = {"run": run, "version": int(version)}
        return self.mmreason_facts()

    def mmreason_facts(self: Any) -> dict[str, Any]:
        """What this worker is and which weights it holds (`run` and `version` are null before the first load)."""
        if not hasattr(self, "_mmreason_instance"):
            self._mmreason_instance = uuid.uuid4().hex
        model = self.vllm_config.model_config
        text = model.hf_text_config
        stamp = getattr(self, "_mmreason_stamp", None) or {"run": None, "version": None}
        return {
            **stamp,
            "instance": self._mmreason_instance,
            "model_type": model.hf_config.model_type,
            **{name: getattr(text, name, None) for name in NUMBERS},
            "dtype": str(model.dtype).removeprefix("torch."),
            "logprobs_mode": str(getattr(model.logprobs_mode, "value", model.logprobs_mode)),
            "max_model_len": model.max_model_len,
        }
