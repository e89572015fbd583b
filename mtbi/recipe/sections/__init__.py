"""The sections of a recipe. Each field states its default, its meaning and its limits in one place."""
