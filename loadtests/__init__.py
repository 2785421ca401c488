"""Load that looks like a real crowd: see README.md in this folder."""
