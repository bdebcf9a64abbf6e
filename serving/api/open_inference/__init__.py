"""The Open Inference Protocol: policies as models, for clients and tools that were written for Triton or KServe."""
