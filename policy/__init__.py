"""What a policy is: everything that training writes and serving reads."""
