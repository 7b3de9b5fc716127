"""The options of each command, one frozen dataclass each. Imports nothing heavy."""
