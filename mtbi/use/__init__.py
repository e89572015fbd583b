"""A trained run in use: opened, asked from Python or the terminal, exported, served."""
