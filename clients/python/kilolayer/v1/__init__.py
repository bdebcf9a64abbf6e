"""Version 1 of the contract, as messages and stubs for programs that do not use the client."""
