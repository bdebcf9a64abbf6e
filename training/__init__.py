"""How a policy is learned."""
