"""A user's own robot: an environment from an MJCF file, and the module that registers it."""
