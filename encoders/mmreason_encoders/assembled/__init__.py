"""A vision tower, any number of audio encoders and a causal LLM, joined by projectors."""
