"""The Open Inference Protocol: policies as models, for clients and tools of Triton and KServe."""
