#!/usr/bin/env python3
"""Compares manifests with schemas: validate.py SCHEMAS FOLDER, where FOLDER has files VERSION~NAME.yaml.

An unknown field is an error, and so is an object that there is no schema for.
"""

import functools
import json
import pathlib
import sys

import jsonschema
import referencing
import yaml
from referencing.jsonschema import DRAFT4


@functools.cache
def definitions(folder):
    """What the schemas of one version refer to, by the name of its file."""
    contents = json.loads((folder / "_definitions.json").read_text(encoding="utf-8"))
    resource = DRAFT4.create_resource(contents)
    return referencing.Registry().with_resources([("_definitions.json", resource), ("/api/_definitions.json", resource)])


@functools.cache
def built_in(path):
    schema = json.loads(path.read_text(encoding="utf-8"))
    return jsonschema.Draft4Validator(schema, registry=definitions(path.parent))


def strict(schema):
    """A schema of a CustomResourceDefinition, which prunes unknown fields silently, as one that refuses them."""
    if not isinstance(schema, dict):
        return schema
    schema = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-validations")}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if "properties" in schema:
        schema["properties"] = {key: strict(value) for key, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
    if "items" in schema:
        schema["items"] = strict(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        schema["additionalProperties"] = strict(schema["additionalProperties"])
    return schema


def custom(folder):
    """The schemas of the kinds that are not Kubernetes' own."""
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        for definition in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if not definition:
                continue
            spec = definition["spec"]
            for version in spec["versions"]:
                schema = strict(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object"}
                found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = jsonschema.Draft7Validator(schema)
    return found


def validator(schemas, customs, version, document):
    api, kind = document["apiVersion"], document["kind"]
    if (api, kind) in customs:
        return customs[api, kind]
    group, _, number = api.rpartition("/")
    name = "-".join(part for part in (kind.lower(), group.split(".")[0], number) if part)
    path = schemas / version / f"{name}.json"
    return built_in(path) if path.exists() else None


def problems(schemas, folder):
    customs, count = custom(schemas / "crds"), 0
    for path in sorted(folder.glob("*.yaml")):
        version = path.name.split("~")[0]
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if not document:
                continue
            count += 1
            where = f"{path.stem}: {document['kind']} {document['metadata']['name']}"
            found = validator(schemas, customs, version, document)
            if found is None:
                yield f"{where}: Kubernetes {version} has no {document['apiVersion']}"
                continue
            for error in found.iter_errors(document):
                yield f"{where}: {'/'.join(map(str, error.absolute_path))}: {error.message[:300]}"
    versions = len({path.name.split("~")[0] for path in folder.glob("*.yaml")})
    print(f"{count} objects compared with the schemas of {versions} versions of Kubernetes")
    if not count:
        yield "there is nothing to compare"


def main():
    found = list(problems(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])))
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
