"""Damaged and hostile files for every parser: `parsers`, fed by hypothesis and by atheris."""
