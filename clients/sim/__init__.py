"""Simulated robots that talk to the server exactly as a real one would."""
