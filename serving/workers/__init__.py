"""The processes of a server: one alone, or several on one port."""
