"""How a policy is offered: found, verified, compiled, batched and answered over gRPC."""
