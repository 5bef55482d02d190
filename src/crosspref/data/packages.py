"""Files inside installed packages, named ``package:NAME/path``, found without importing the package."""

import importlib.util
from pathlib import Path

PREFIX = "package:"


def inside_package(name: str) -> Path:
    """Return where a file or folder of an installed package lies.

    The package is not imported: that would run its code, and may need libraries that the file does not.

    Raises:
        LookupError: the name is not of that form, or the package or the file is not there; says what to do.
    """
    package, _, inside = name.removeprefix(PREFIX).partition("/")
    if not package.isidentifier() or not inside or inside.startswith("/") or ".." in inside.split("/"):
        raise LookupError(f"{name!r} must be {PREFIX}NAME/path/inside, with a path that stays inside the package.")
    spec = importlib.util.find_spec(package)
    named = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    folders = [folder for folder in named if folder.is_dir()]  # a package inside a zip has none
    if not folders:
        raise LookupError(
            f"{name!r} is in the package {package!r}, which is not installed. Install it (pip's name of it may differ, "
            f"for example {package.replace('_', '-')})."
        )
    for folder in folders:
        if (folder / inside).exists():
            return folder / inside
    there = sorted(entry.name for entry in folders[0].iterdir() if not entry.name.startswith(("_", ".")))
    raise LookupError(f"{name!r}: the package is installed, but has no {inside!r}. It has: {', '.join(there)}.")
