"""What every environment is built on: GoalEnv, its spec, the physics behind it, and the errors."""
