"""Policies for other programs, as ONNX, safetensors and jax.export with a model card, and policies of other projects."""
