"""A policy in the formats of others: ONNX graphs, JAX artefacts, plain arrays with a model card."""
