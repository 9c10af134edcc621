"""Builds the Rust library with cargo and puts it into the wheel, which fits every Python 3 of the platform: the library knows
nothing of Python's own interface. What else there is to say is in pyproject.toml."""

import pathlib
import shutil
import sys

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER))
from cargo_build import cargo_build  # noqa: E402


class BuildWithLibrary(build_py):
    """Copies the library beside the modules; for an editable installation that is into the source folder."""

    def run(self):
        super().run()
        library = cargo_build("cuda")
        folder = FOLDER if self.editable_mode else pathlib.Path(self.build_lib)
        shutil.copy2(library, folder / "inducer_attention" / library.name)


class PlatformWheel(bdist_wheel):
    """py3-none-<platform>."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


class Binary(Distribution):
    def has_ext_modules(self):
        return True


setup(cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": PlatformWheel}, distclass=Binary)
