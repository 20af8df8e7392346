"""All is in pyproject.toml; but setuptools forgets its data-files where an install is editable.

It asks a distribution whether it `has_data`, and the method is called `has_data_files`.
"""

from setuptools import Distribution, setup


class WithData(Distribution):
    """A distribution that answers."""

    def has_data(self) -> bool:
        """Whether pyproject.toml names data-files."""
        return self.has_data_files()


setup(distclass=WithData)
