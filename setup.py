"""Copies what commands need of the top-level folders into the wheel; all else stands in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = (
    "agents/*/config.toml",
    "benchmarks/protocol*.toml",
    "benchmarks/experiments/*/*.toml",
    "benchmarks/oracle.json",
    "datasets/*/recipe.toml",
    "datasets/*/facts.json",
    "datasets/*/SHA256SUMS",
)


class Build(build_py):
    """Also copies `SHIPPED` to `l4s_gym/shipped/`, where `l4s_gym.shipped.folder` finds it."""

    def _shipped(self) -> dict[str, str]:
        files = sorted(path.as_posix() for pattern in SHIPPED for path in Path().glob(pattern))
        return {str(Path(self.build_lib, "l4s_gym", "shipped", name)): name for name in files}

    def run(self) -> None:
        """Build the package, and copy; an editable install uses the folders themselves."""
        super().run()
        if not self.editable_mode:
            for target, source in self._shipped().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Files of the wheel."""
        return [*super().get_outputs(include_bytecode), *({} if self.editable_mode else self._shipped())]

    def get_source_files(self) -> list[str]:
        """Files of the sdist."""
        return [*super().get_source_files(), *self._shipped().values()]


setup(cmdclass={"build_py": Build})
