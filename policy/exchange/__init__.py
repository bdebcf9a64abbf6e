"""Policies for other programs (ONNX, safetensors, jax.export, with a model card), and policies of other projects."""
