"""A light client for goal-reaching policies served by Kilolayer."""
