"""Writes a software bill of materials in CycloneDX's JSON."""

from __future__ import annotations

from collections.abc import Sequence

from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from tools.audit.inventory import Package


def document(image: str, version: str, packages: Sequence[Package]) -> str:
    """The bill of materials of an image.

    Args:
        image: Name of the image.
        version: Version of the project.
        packages: Its packages.
    """
    licences = LicenseFactory()
    root = Component(name=f"triptych-{image}", version=version, type=ComponentType.CONTAINER, bom_ref=image)
    components = {
        package.name: Component(
            name=package.name,
            version=package.version,
            type=ComponentType.LIBRARY,
            bom_ref=package.name,
            purl=PackageURL("pypi", name=package.name, version=package.version),
            licenses=[] if package.licence == "unknown" else [licences.make_from_string(package.licence)],
        )
        for package in packages
    }
    bom = Bom(components=components.values())
    bom.metadata.component = root
    required = {name for package in packages for name in package.requires}
    bom.register_dependency(root, [components[name] for name in components if name not in required])
    for package in packages:
        bom.register_dependency(components[package.name], [components[name] for name in package.requires])
    return str(JsonV1Dot6(bom).output_as_string(indent=2))
