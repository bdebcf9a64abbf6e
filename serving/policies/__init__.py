"""Policies on disk and in service."""
