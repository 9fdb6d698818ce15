"""What a wheel carries besides the package: the shipped files, as ``tunalab/shipped/``.

The repository holds them once, in its top-level folders. setup.cfg names this class; an editable
installation copies nothing, as settings/layers.py then finds the folders of the checkout.
"""

from pathlib import Path

from setuptools.command.build_py import build_py

SHIPPED = ("experiments/*.yaml", "variants/*.yaml", "sweeps/*.yaml", "sweeps/launch/*.yaml", "results/published.csv")


def shipped_files() -> list[str]:
    """Relative to the folder of setup.cfg, where a build runs. Raises FileNotFoundError: it holds none of a kind."""
    found = []
    for pattern in SHIPPED:
        files = sorted(path.as_posix() for path in Path().glob(pattern) if not path.name.startswith("."))
        if not files:
            raise FileNotFoundError(f"nothing to ship: {Path(pattern).absolute()}")
        found += files
    return found


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        for source, target in self._copies().items():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target)

    def get_source_files(self) -> list[str]:
        """Of a source distribution too, from which a wheel may be built."""
        return [*super().get_source_files(), *shipped_files()]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *self._copies().values()]

    def _copies(self) -> dict[str, str]:
        if self.editable_mode:
            return {}
        return {file: str(Path(self.build_lib, "tunalab", "shipped", file)) for file in shipped_files()}
