"""mmreason: SFT and curriculum GRPO for models that reason over images, video and audio."""
