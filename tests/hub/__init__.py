"""A Hub of our own on loopback, and repositories with the true layout for it."""
