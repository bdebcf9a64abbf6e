"""Contrastive RL: its losses, and one gradient step on them."""
