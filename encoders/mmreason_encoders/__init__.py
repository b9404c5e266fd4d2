"""Architectures of our own, registered with transformers' Auto classes when this package is imported.

A folder here is flat and imports only its own siblings, relatively: `save_pretrained` then copies its files beside
the weights and the checkpoint loads with plain transformers and `trust_remote_code=True`.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.modeling_auto import AutoModelForMultimodalLM

from mmreason_encoders.assembled.configuration_assembled import AssembledConfig
from mmreason_encoders.assembled.modeling_assembled import AssembledForConditionalGeneration
from mmreason_encoders.assembled.processing_assembled import AssembledProcessor

__all__ = ["AssembledConfig", "AssembledForConditionalGeneration", "AssembledProcessor"]

AutoConfig.register(AssembledConfig.model_type, AssembledConfig)
AutoProcessor.register(AssembledConfig, AssembledProcessor)
for auto_model in (AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoModelForCausalLM):
    auto_model.register(AssembledConfig, AssembledForConditionalGeneration)

AssembledConfig.register_for_auto_class()
AssembledProcessor.register_for_auto_class()
AssembledForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
