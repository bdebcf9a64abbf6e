"""Who may connect, and what a connection may do."""
