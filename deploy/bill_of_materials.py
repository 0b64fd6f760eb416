"""The bill of materials: how it is made, and how it gets into the wheel.

Knows the runtime closure as it is installed here, and CycloneDX. As a program it writes sbom.cdx.json; as hatchling's
hook it adds that file to the wheel (PEP 770). `make dist` does both; `pip install .` from a checkout does without.

An older Python than outboxd's own must be able to import it: pip runs the hook before it says which one is needed.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SBOM = "sbom.cdx.json"
Wanted = dict[str, tuple[Distribution, set[str]]]  # by name: what is installed, and the names it requires


class BillOfMaterials(BuildHookInterface[Any]):
    """hatchling finds it by its base."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Of a wheel; an editable install has no need of it."""
        if version == "standard" and Path(self.root, SBOM).exists():
            build_data["sbom_files"].append(SBOM)


def closure(requirements: Sequence[str]) -> tuple[set[str], Wanted]:
    """The names required, and all that they need here in their turn. Optional parts count where somebody asks for them."""
    found: Wanted = {}
    met: set[tuple[str, str]] = set()

    def names(lines: Sequence[str], extra: str = "") -> Iterator[str]:
        for requirement in map(Requirement, lines):
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            name = canonicalize_name(requirement.name)
            yield name
            installed, needs = found.setdefault(name, (distribution(name), set()))
            for wanted in ("", *sorted(requirement.extras)):
                if (name, wanted) not in met:
                    met.add((name, wanted))
                    needs.update(names(installed.requires or [], wanted))

    return set(names(requirements)), found


def licence(of: Distribution) -> str:
    """As the package declares it, in the most exact of the three places where it may."""
    classified = [
        one.rpartition(" :: ")[2] for one in of.metadata.get_all("Classifier", []) if one.startswith("License ::")
    ]
    (declared, *_) = [*of.metadata.get_all("License-Expression", []), *of.metadata.get_all("License", []), ""]
    return declared if declared and "\n" not in declared else " AND ".join(sorted(classified)) or "unknown"


def bill(project: ProjectMetadata[Any], made: datetime) -> str:
    """The document. The same closure, version and moment give the same bytes."""
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    def component(name: str, version: str, licence: str, kind: ComponentType) -> Component:
        purl = PackageURL("pypi", None, name, version)
        licences = [LicenseFactory().make_from_string(licence)]
        return Component(name=name, version=version, type=kind, purl=purl, bom_ref=purl.to_string(), licenses=licences)

    direct, found = closure(project.core.dependencies)
    parts = {
        name: component(name, one.version, licence(one), ComponentType.LIBRARY) for name, (one, _) in found.items()
    }
    root = component(project.name, project.version, project.core.license_expression or "", ComponentType.APPLICATION)
    bom = Bom(components=parts.values(), serial_number=uuid5(NAMESPACE_URL, f"{root.purl} {sorted(map(str, parts))}"))
    bom.metadata.component, bom.metadata.timestamp = root, made
    bom.register_dependency(root, [parts[name] for name in direct])
    for name, (_, needs) in found.items():
        bom.register_dependency(parts[name], [parts[need] for need in needs])
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def main(folder: Path) -> None:
    """Write it for the project in a folder."""
    made = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), timezone.utc)  # noqa: UP017  see above
    document = bill(ProjectMetadata(str(folder), PluginManager()), made)
    (folder / SBOM).write_text(document, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
