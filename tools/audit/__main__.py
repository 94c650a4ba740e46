"""`python -m tools.audit ENVIRONMENT`: audits the packages in a virtual environment, image by image.

Exit codes: 0 nothing was found; 1 a licence is not accepted, or a package has a known vulnerability; 2 the licences are
in order and the vulnerabilities could not be looked up; 3 the audit itself failed.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from tools.audit import sbom
from tools.audit.inventory import InventoryError, Package, closure, images, installed, requirements
from tools.audit.licences import Accepted, refused

ROOT = Path(__file__).parents[2]
OUT = ROOT / "build" / "sbom"

_OFFLINE = (
    "vulnerabilities: NOT CHECKED. pip-audit could not look all packages up (its output is above). On a machine that "
    "reaches pypi.org, run: pip-audit --no-deps --disable-pip --strict -r build/sbom/requirements.txt; or give "
    "build/sbom/*.cdx.json to a scanner with a database of its own (grype, trivy, osv-scanner)"
)


def main(arguments: Sequence[str]) -> int:
    """Audit. Returns the exit code."""
    if len(arguments) != 1:
        print("usage: python -m tools.audit ENVIRONMENT", file=sys.stderr)  # noqa: T201
        return 3
    try:
        problems, pinned = _audit(Path(arguments[0]))
    except InventoryError as error:
        print(f"audit: {error}", file=sys.stderr)  # noqa: T201
        return 3
    for problem in sorted(set(problems)):
        print(f"licences: {problem}", file=sys.stderr)  # noqa: T201
    if not problems:
        print("licences: all are accepted")  # noqa: T201
    command = ["--requirement", str(pinned), "--no-deps", "--disable-pip", "--strict", "--progress-spinner", "off"]
    # Standard output is a table of findings, and is empty if the audit was not completed.
    done = subprocess.run([sys.executable, "-m", "pip_audit", *command], check=False, stdout=subprocess.PIPE, text=True)  # noqa: S603
    print(done.stdout, end="")  # noqa: T201
    found, checked = bool(done.stdout.strip()), done.returncode == 0
    if not found and not checked:
        print(_OFFLINE, file=sys.stderr)  # noqa: T201
    elif checked:
        print("vulnerabilities: none known")  # noqa: T201
    return 1 if problems or found else 0 if checked else 2


def _audit(environment: Path) -> tuple[list[str], Path]:
    """Check the licences and write the bills of materials.

    Returns:
        What is wrong, and the file of all packages with their versions.
    """
    pyproject = ROOT / "pyproject.toml"
    version = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["version"]
    packages = installed(environment.glob("lib/python*/site-packages"))
    accepted = Accepted.read(pyproject)
    OUT.mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    together: set[Package] = set()
    for image, extra in images(ROOT / "deploy" / "docker").items():
        content = closure(requirements(pyproject, extra), packages)
        file = OUT / f"{image}.cdx.json"
        file.write_text(sbom.document(image, version, content), encoding="utf-8")
        print(f"{file.relative_to(ROOT)}: {len(content)} packages")  # noqa: T201
        problems += refused(content, accepted)
        together.update(content)
    pinned = OUT / "requirements.txt"
    # A local version such as 2.13.0+cpu is no version of PyPI's.
    lines = sorted({f"{package.name}=={package.version.partition('+')[0]}" for package in together})
    pinned.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return problems, pinned


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
