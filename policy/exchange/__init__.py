"""Policies for other programs, and from them: exported files, and parameters of other projects."""
