"""CustomResourceDefinitions of the operators that the manifests name, shortened.

`python -m tests.support.kubernetes.definitions FILE...` shortens the definitions in YAML files of the
operators; definitions/README.md has their sources.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.k8s.reading import CUSTOM, Manifest

DIRECTORY = Path(__file__).parent / "definitions"

ANYTHING = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
"""Schema of an object that may have any fields."""


def read_definitions() -> list[Manifest]:
    """Return the definition of each custom kind that the manifests contain."""
    return [json.loads((DIRECTORY / f"{kind}.json").read_text("utf-8")) for kind in CUSTOM]


def shorten(definition: Manifest) -> Manifest:
    """Return a definition with the version that the manifests use and without descriptions.

    Pod templates may have any fields: the API server checks the pods that come of them as pods.
    """
    spec = definition["spec"]
    version = CUSTOM[spec["names"]["kind"]].partition("/")[2]
    (schema,) = (one["schema"] for one in spec["versions"] if one["name"] == version)
    kept = {"name": version, "served": True, "storage": True, "schema": _shorten_schema(schema)}
    names = {key: spec["names"][key] for key in ("kind", "plural", "singular")}
    return {
        "apiVersion": definition["apiVersion"],
        "kind": definition["kind"],
        "metadata": {"name": definition["metadata"]["name"]},
        "spec": {"group": spec["group"], "scope": spec["scope"], "names": names, "versions": [kept]},
    }


def _shorten_schema(value: Any) -> Any:
    if isinstance(value, list):
        return [_shorten_schema(element) for element in value]
    if not isinstance(value, dict):
        return value
    return {
        key: ANYTHING if key == "podTemplate" else _shorten_schema(below)
        for key, below in value.items()
        if not (key == "description" and isinstance(below, str))
    }


def main(paths: list[str]) -> None:
    """Write the shortened definitions of these files to DIRECTORY."""
    for path in paths:
        definition = shorten(yaml.safe_load(Path(path).read_text("utf-8")))
        target = DIRECTORY / f"{definition['spec']['names']['kind']}.json"
        target.write_text(json.dumps(definition, indent=1) + "\n")
        print(target)


if __name__ == "__main__":
    main(sys.argv[1:])
