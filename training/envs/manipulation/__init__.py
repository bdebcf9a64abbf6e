"""Environments whose robot stands still and moves something: arm, reacher and pusher."""
