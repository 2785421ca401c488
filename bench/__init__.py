"""The figures of the README, measured in one run on one machine; see README.md in this folder."""
