"""Who may call what: bearer tokens with roles and rates, and how refused calls are logged and counted."""
