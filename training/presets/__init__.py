"""Presets: named values for the settings of a run, and the published figures of the experiments that two repeat."""
