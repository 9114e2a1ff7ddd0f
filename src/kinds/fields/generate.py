#!/usr/bin/env python3
"""Writes table.rs from the Go types of Kubernetes and the OpenAPI description of the release we follow.

    generate.py --api GITDIR --apimachinery GITDIR --apiextensions GITDIR --openapi openapi-v2.json > table.rs

GITDIR are git directories of k8s.io/api, k8s.io/apimachinery and k8s.io/apiextensions-apiserver at that release or
newer: fields that the OpenAPI description does not know are left out. Only facts are taken (names, numbers, types,
keys), never descriptions.
"""
import argparse
import json
import re
import subprocess
import sys

# Go package directory, group, version; the kinds to take where not all of them
PACKAGES = [
    ("core/v1", "", "v1", None),
    ("apps/v1", "apps", "v1", None),
    ("batch/v1", "batch", "v1", None),
    ("networking/v1", "networking.k8s.io", "v1", None),
    ("rbac/v1", "rbac.authorization.k8s.io", "v1", None),
    ("policy/v1", "policy", "v1", None),
    ("storage/v1", "storage.k8s.io", "v1", None),
    ("coordination/v1", "coordination.k8s.io", "v1", None),
    ("discovery/v1", "discovery.k8s.io", "v1", None),
    ("events/v1", "events.k8s.io", "v1", None),
    ("autoscaling/v1", "autoscaling", "v1", None),
    ("autoscaling/v2", "autoscaling", "v2", None),
    ("scheduling/v1", "scheduling.k8s.io", "v1", None),
    ("authentication/v1", "authentication.k8s.io", "v1", None),
    ("authorization/v1", "authorization.k8s.io", "v1", None),
    ("admissionregistration/v1", "admissionregistration.k8s.io", "v1", None),
    ("certificates/v1", "certificates.k8s.io", "v1", None),
    ("node/v1", "node.k8s.io", "v1", None),
    ("resource/v1", "resource.k8s.io", "v1", None),
    ("flowcontrol/v1", "flowcontrol.apiserver.k8s.io", "v1", None),
    # Versions no longer served by 1.35, read for old manifests and old clients
    ("extensions/v1beta1", "extensions", "v1beta1", {"Ingress"}),
    ("networking/v1beta1", "networking.k8s.io", "v1beta1", {"Ingress", "IngressClass"}),
    ("batch/v1beta1", "batch", "v1beta1", {"CronJob"}),
    ("policy/v1beta1", "policy", "v1beta1", {"Eviction", "PodDisruptionBudget"}),
    ("authentication/v1alpha1", "authentication.k8s.io", "v1alpha1", {"SelfSubjectReview"}),
    ("authentication/v1beta1", "authentication.k8s.io", "v1beta1", {"SelfSubjectReview"}),
]
# Kinds of one group served as a subresource by another
ALIASES = [
    ("apps", "v1", "Scale", "autoscaling/v1.Scale"),
    ("", "v1", "Scale", "autoscaling/v1.Scale"),
    ("", "v1", "TokenRequest", "authentication/v1.TokenRequest"),
    ("", "v1", "Eviction", "policy/v1.Eviction"),
]
SCALARS = {
    "string": "String", "bool": "Bool", "int32": "Int32", "int64": "Int64", "int": "Int64", "float64": "Float64",
    "resource.Quantity": "Quantity", "intstr.IntOrString": "IntOrString", "runtime.RawExtension": "Raw",
    "Time": "Time", "MicroTime": "MicroTime", "FieldsV1": "FieldsV1",
    "JSON": "Json", "types.UID": "String", "types.NodeName": "String",
}
# Types whose JSON is a struct or something else
STRUCT_OR = {"JSONSchemaPropsOrArray", "JSONSchemaPropsOrBool", "JSONSchemaPropsOrStringArray"}
META = "pkg/apis/meta/v1"
CRD = "pkg/apis/apiextensions/v1"


class Struct:
    def __init__(self, package, name, atomic):
        self.package, self.name, self.atomic, self.fields, self.parents = package, name, atomic, [], []

    @property
    def id(self):
        if self.package == META:
            return f"io.k8s.apimachinery.pkg.apis.meta.v1.{self.name}"
        if self.package == CRD:
            return f"io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.{self.name}"
        return f"io.k8s.api.{self.package.replace('/', '.')}.{self.name}"

    @property
    def ident(self):
        prefix = {META: "", CRD: "CRD_"}.get(self.package, self.package.replace("/", "_") + "_")
        return (prefix + re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", self.name)).upper()


structs = {}  # "package.Name" to Struct
named = {}  # "package.Name" to the Go type the name stands for
imports = {}  # package to its import names and their packages


def parse(package, text):
    found = re.findall(r'^\s+(\w+) "k8s.io/(?:api/|apimachinery/)(\S+)"$', text, re.M)
    imports.setdefault(package, {}).update(found)
    notes, struct = [], None
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("//"):
            notes.append(line.lstrip("/ "))
            continue
        if m := re.match(r"type (\w+) struct ?\{", line):
            struct = Struct(package, m[1], "+structType=atomic" in notes)
            structs[f"{package}.{m[1]}"] = struct
            if line.endswith("}"):
                struct = None
        elif m := re.match(r"type (\w+) (?!interface|func)(\S+)", line):
            named[f"{package}.{m[1]}"] = m[2]
        elif line.startswith("}"):
            struct = None
        elif struct and (m := re.match(r"(\w+\s+)?([\w.\[\]*]+)\s+`([^`]*)`", line)):
            struct.fields.append((m[2], m[3], notes))
        notes = [] if line or not struct else notes


def resolve(package, go):
    """Key of a struct or named type as written in a package."""
    if "." in go:
        qualifier, name = go.split(".")
        home = imports[package].get(qualifier)
        return f"{home}.{name}"
    return f"{package}.{go}"


def kind_of(package, go):
    """(pointer, shape, Rust type, struct key, Go name) of a Go type."""
    pointer = go.startswith("*")
    go = go.lstrip("*")
    shape = "O"
    if go == "[]byte":
        return pointer, shape, "Bytes", None, ""
    if go.startswith("[]"):
        shape, go = "L", go[2:].lstrip("*")
    elif m := re.match(r"map\[[\w.]+\](.*)", go):
        shape, go = "M", m[1].lstrip("*")
        if go == "[]byte":
            return pointer, shape, "Bytes", None, ""
    bare = go.removeprefix("metav1.")
    if bare in SCALARS:
        return pointer, shape, SCALARS[bare], None, go if go.startswith("types.") else ""
    if bare in STRUCT_OR:
        return pointer, shape, "StructOr", f"{CRD}.JSONSchemaProps", ""
    key = resolve(package, go)
    if key in structs:
        return pointer, shape, "Struct", key, ""
    under = named.get(key)
    if under is None:
        sys.exit(f"{package}: unknown type {go}")
    if under.startswith(("[]", "map[")):
        if shape == "O":
            return (pointer,) + kind_of(key.rsplit(".", 1)[0], under)[1:]
        if under == "[]string":
            return pointer, shape, "StringList", None, ""
        sys.exit(f"{package}: {go} nests too deep")
    _, _, ty, _, _ = kind_of(package, under)
    return pointer, shape, ty, None, f"{key.rsplit('.', 1)[0].split('/')[-1]}.{go.split('.')[-1]}"


def properties(key, openapi):
    """OpenAPI properties and required names of a struct; an embedded one's are its parents'."""
    struct = structs[key]
    if struct.id in openapi:
        d = openapi[struct.id]
        return d.get("properties", {}), set(d.get("required", []))
    props, required = {}, set()
    for parent in struct.parents:
        p, r = properties(parent, openapi)
        props |= p
        required |= r
    return props, required


def field_of(key, go, tags, notes, openapi):
    """One Rust field, or None if the release does not have it."""
    package = key.rsplit(".", 1)[0]
    tag = dict(re.findall(r'(\w+):"([^"]*)"', tags))
    name, *options = tag.get("json", "").split(",")
    if name == "-":
        return None
    number = int(tag["protobuf"].split(",")[1]) if "protobuf" in tag else 0
    pointer, shape, ty, ref, goname = kind_of(package, go)
    props, required = properties(key, openapi)
    inline = not name
    if not inline and props and name not in props:
        return None
    if inline and props and not any(field_of(ref, *f, openapi) for f in structs[ref].fields):
        return None
    prop = props.get(name, {})
    marks = dict(n[1:].split("=", 1) for n in notes if n.startswith("+") and "=" in n)
    topology = {"set": "Set", "map": "Map", "atomic": "Atomic"}.get(
        prop.get("x-kubernetes-list-type") or prop.get("x-kubernetes-map-type")
        or marks.get("listType") or marks.get("mapType") or marks.get("structType"), "Default")
    if marks.get("structType") == "granular":
        topology = "Granular"
    keys = prop.get("x-kubernetes-list-map-keys", []) if topology == "Map" else []
    strategy = tag.get("patchStrategy", "").split(",")
    default = marks.get("default", "").strip('"') if marks.get("default", "").startswith('"') else ""
    rules = (tuple(keys), topology, "merge" in strategy, "retainKeys" in strategy, tag.get("patchMergeKey", ""),
             default, goname)
    flags = pointer + 2 * ("omitempty" in options) + 4 * (name in required)
    return name, ty, ref, shape, number, flags, rules


def main():
    args = argparse.ArgumentParser()
    for name in ("api", "apimachinery", "apiextensions", "openapi"):
        args.add_argument(f"--{name}", required=True)
    args = args.parse_args()

    def show(repo, path):
        return subprocess.run(["git", f"--git-dir={repo}", "show", f"HEAD:{path}"], check=True, text=True,
                              stdout=subprocess.PIPE).stdout

    parse(META, show(args.apimachinery, f"{META}/types.go"))
    parse(CRD, show(args.apiextensions, f"{CRD}/types.go"))
    parse(CRD, show(args.apiextensions, f"{CRD}/types_jsonschema.go"))
    for package, _, _, _ in PACKAGES:
        parse(package, show(args.api, f"{package}/types.go"))
    openapi = json.load(open(args.openapi))["definitions"]

    for key, struct in structs.items():
        for go, tags, _ in struct.fields:
            if re.search(r'json:"(,|")', tags):
                ref = resolve(struct.package, go)
                if ref in structs:
                    structs[ref].parents.append(key)

    kinds = {}
    for package, group, version, only in PACKAGES + [(CRD, "apiextensions.k8s.io", "v1", None)]:
        for key, struct in structs.items():
            embeds = [go for go, _, _ in struct.fields]
            if struct.package != package or "metav1.TypeMeta" not in embeds or "metav1.ListMeta" in embeds:
                continue
            if struct.name in only if only else struct.id in openapi:
                kinds[group, version, struct.name] = key
    for group, version, kind, key in ALIASES:
        kinds[group, version, kind] = key

    reached, todo = {}, sorted(set(kinds.values())) + [
        f"{META}.{n}" for n in ("DeleteOptions", "Status", "ObjectMeta", "ListMeta", "PartialObjectMetadata")]
    while todo:
        key = todo.pop()
        if key in reached:
            continue
        struct = structs[key]
        reached[key] = [f for f in (field_of(key, *f, openapi) for f in struct.fields) if f]
        todo += [f[2] for f in reached[key] if f[2]]

    rules = sorted({f[6] for fields in reached.values() for f in fields}, key=str)
    text = lambda s: json.dumps(s)
    truth = lambda b: "true" if b else "false"
    print("//! Generated by generate.py: do not edit.\n")
    print("use super::Shape::{List as L, Map as M, One as O};\nuse super::Ty::*;")
    print("use super::{Field, Rules, Shape, Topology, Ty, Type};\n")
    print("const fn f(json: &'static str, ty: Ty, shape: Shape, number: u16, flags: u8, rules: &'static Rules) -> Field {")
    print("    Field { json, ty, rules, number, shape, flags }\n}\n")
    for i, (keys, topology, merge, retain, merge_key, default, go) in enumerate(rules):
        print(f"static R{i}: Rules = Rules {{ keys: &[{', '.join(map(text, keys))}], topology: Topology::{topology}, "
              f"merge: {truth(merge)}, retain_keys: {truth(retain)}, merge_key: {text(merge_key)}, "
              f"default: {text(default)}, go: {text(go)} }};")
    order = sorted(reached, key=lambda k: structs[k].id)
    for key in order:
        struct = structs[key]
        print(f"\npub(super) static {struct.ident}: Type = Type {{ id: {text(struct.id)}, atomic: {truth(struct.atomic)}, "
              "fields: &[")
        for name, ty, ref, shape, number, flags, rule in reached[key]:
            ty = f"{ty}(&{structs[ref].ident})" if ref else ty
            print(f"    f({text(name)}, {ty}, {shape}, {number}, {flags}, &R{rules.index(rule)}),")
        print("] };")
    print("\npub(super) static PARTIAL_OBJECT: &Type = &PARTIAL_OBJECT_METADATA;")
    print("\npub(super) static TYPES: &[&Type] = &[")
    for key in order:
        print(f"    &{structs[key].ident},")
    print("];\n\n/// Group, version, kind and type, sorted for binary search.")
    print("pub(super) static KINDS: &[(&str, &str, &str, &Type)] = &[")
    for group, version, kind in sorted(kinds):
        print(f"    ({text(group)}, {text(version)}, {text(kind)}, &{structs[kinds[group, version, kind]].ident}),")
    print("];")


main()
