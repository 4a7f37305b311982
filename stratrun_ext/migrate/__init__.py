"""Ways in from other frameworks."""
