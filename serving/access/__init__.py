"""Who may connect, and who may call what: certificates, and bearer tokens with roles and rates."""
