"""The license texts of bundled packages."""

from importlib.metadata import distributions
from pathlib import Path

from deploy.sbom import license_of

_NAMES = ("LICEN", "COPYING", "NOTICE", "AUTHORS")


def licenses_of(site: Path) -> str:
    """All license files of the packages in the folder `site`, by name of package."""
    parts = []
    for package in sorted(distributions(path=[str(site)]), key=lambda package: package.name.lower()):
        folder = next(path for path in site.glob("*.dist-info") if _is_of(path, package.name, package.version))
        texts = sorted(path for path in folder.rglob("*") if path.is_file() and path.name.upper().startswith(_NAMES))
        title = f"{package.name} {package.version}"
        head = [title, "=" * len(title), license_of(package) or "see below"]
        parts.append("\n".join([*head, *(f"\n{text.read_text(errors='replace').strip()}" for text in texts)]))
    return "\n\n\n".join(parts) + "\n"


def _is_of(folder: Path, name: str, version: str) -> bool:
    stem = folder.name.removesuffix(".dist-info").lower().replace("-", "_").replace(".", "_")
    return stem == f"{name}-{version}".lower().replace("-", "_").replace(".", "_")
