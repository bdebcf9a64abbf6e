"""A policy that is computed on the robot itself, from an exported folder, without a server."""
