//! The field table: what Kubernetes 1.35 knows of every field of its API types, as constants.
//!
//! One table drives protobuf decoding, strict validation, pruning, strategic merge patch, server-side apply and the
//! OpenAPI documents. It lives in read-only data: no heap, only the pages in use are resident.
//!
//! The data is `fields/table.rs`, written by `fields/generate.py`; this file says what it means.

#[rustfmt::skip]
mod table;

/// A struct of the Kubernetes API.
pub struct Type {
    /// Its OpenAPI definition name, such as `io.k8s.api.core.v1.PodSpec`.
    pub id: &'static str,
    /// Its fields in declaration order. Embedded structs appear as one inline field.
    pub fields: &'static [Field],
    /// Server-side apply owns the struct as one value (`+structType=atomic`).
    pub atomic: bool,
}

/// A field of a struct.
pub struct Field {
    /// JSON name; empty for an inline field, whose own fields appear in its parent's JSON object.
    pub json: &'static str,
    /// Type of the value, or of each element of a list or map.
    pub ty: Ty,
    /// Facts that few fields differ in, shared between fields.
    pub rules: &'static Rules,
    /// Protobuf field number; 0 if the field has no protobuf form.
    pub number: u16,
    /// One value, a list, or a map with string keys.
    pub shape: Shape,
    flags: u8,
}

/// Type of one value.
#[derive(Clone, Copy)]
pub enum Ty {
    /// A string, named string types included.
    String,
    /// A JSON boolean.
    Bool,
    /// A signed 32-bit integer.
    Int32,
    /// A signed 64-bit integer.
    Int64,
    /// A 64-bit float.
    Float64,
    /// Bytes, base64 in JSON.
    Bytes,
    /// A number or a string (`intstr.IntOrString`).
    IntOrString,
    /// `resource.Quantity`: a string in JSON, numbers are accepted.
    Quantity,
    /// RFC 3339 time of whole seconds (`metav1.Time`).
    Time,
    /// RFC 3339 time with microseconds (`metav1.MicroTime`).
    MicroTime,
    /// `runtime.RawExtension`: any object.
    Raw,
    /// Any JSON value (`apiextensions` `JSON`).
    Json,
    /// `metav1.FieldsV1`, a set of field paths as an object.
    FieldsV1,
    /// A list of strings as the element of a map (`ExtraValue`); a message with one repeated field in protobuf.
    StringList,
    /// A struct.
    Struct(&'static Type),
    /// The struct, or a boolean, a list of the struct or a list of strings (the `…Or…` types of `apiextensions`).
    StructOr(&'static Type),
}

/// How many values a field holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// One value.
    One,
    /// A JSON array.
    List,
    /// A JSON object with free string keys.
    Map,
}

/// How server-side apply treats a list or map field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Topology {
    /// What the shape implies: lists atomic, maps and structs by field.
    Default,
    /// One value as a whole.
    Atomic,
    /// Owned field by field, even if the struct is atomic elsewhere.
    Granular,
    /// A list of unique scalars.
    Set,
    /// A list of objects told apart by [`Rules::keys`].
    Map,
}

/// Rarely differing facts about a field.
pub struct Rules {
    /// Key fields of a list of topology [`Topology::Map`].
    pub keys: &'static [&'static str],
    /// Server-side apply's view of the field.
    pub topology: Topology,
    /// Strategic merge patch merges the list instead of replacing it.
    pub merge: bool,
    /// Strategic merge patch keeps only the keys a patch names in `$retainKeys`.
    pub retain_keys: bool,
    /// Key field of the elements for strategic merge patch; empty for lists of scalars.
    pub merge_key: &'static str,
    /// The schema's default for a list key, as a string; empty for none.
    pub default: &'static str,
    /// Go's name of a named scalar type, such as `v1.RestartPolicy`; empty for plain types. For error texts only.
    pub go: &'static str,
}

const POINTER: u8 = 1;
const OMITEMPTY: u8 = 2;
const REQUIRED: u8 = 4;

impl Field {
    /// The Go field is a pointer: a zero value is kept in JSON.
    pub fn pointer(&self) -> bool {
        self.flags & POINTER != 0
    }

    /// The Go field is left out of JSON when empty.
    pub fn omitempty(&self) -> bool {
        self.flags & OMITEMPTY != 0
    }

    /// The OpenAPI schema lists the field as required.
    pub fn required(&self) -> bool {
        self.flags & REQUIRED != 0
    }

    /// The field stands for the fields of an embedded struct.
    pub fn inline(&self) -> bool {
        self.json.is_empty()
    }

    /// The struct type of the value or of its elements.
    pub fn struct_type(&self) -> Option<&'static Type> {
        match self.ty {
            Ty::Struct(ty) => Some(ty),
            _ => None,
        }
    }

    /// Server-side apply owns the field as one value.
    pub fn atomic(&self) -> bool {
        match (self.rules.topology, self.shape) {
            (Topology::Atomic, _) => true,
            (Topology::Granular | Topology::Set | Topology::Map, _) => false,
            (Topology::Default, Shape::List) => true,
            (Topology::Default, Shape::Map) => false,
            (Topology::Default, Shape::One) => match self.ty {
                Ty::Struct(ty) => ty.atomic,
                _ => true,
            },
        }
    }
}

impl Type {
    /// Go's name of the struct, such as `PodSpec`.
    pub fn name(&self) -> &'static str {
        self.id.rsplit('.').next().unwrap_or(self.id)
    }

    /// The field with this JSON name, looked for in embedded structs too.
    pub fn field(&self, json: &str) -> Option<&'static Field> {
        self.fields.iter().find_map(|field| match (field.inline(), field.ty) {
            (true, Ty::Struct(embedded)) => embedded.field(json),
            _ if field.json == json => Some(field),
            _ => None,
        })
    }

    /// All fields of the JSON object, those of embedded structs in place.
    pub fn json_fields(&'static self) -> Box<dyn Iterator<Item = &'static Field>> {
        Box::new(self.fields.iter().flat_map(|field| match (field.inline(), field.ty) {
            (true, Ty::Struct(embedded)) => embedded.json_fields(),
            _ => Box::new(std::iter::once(field)),
        }))
    }
}

/// Where a walk through an object is: what the table says about the value at hand.
#[derive(Clone, Copy)]
pub enum Place {
    /// A whole object of this type.
    Root(&'static Type),
    /// The value of a field, lists and maps as a whole.
    Field(&'static Field),
    /// One element of a list or map field.
    Element(&'static Field),
    /// A value the table knows nothing of, such as the inside of a custom resource.
    Free,
}

impl Place {
    /// The place of a member of the JSON object at this place.
    pub fn child(self, key: &str) -> Place {
        match self {
            Place::Field(field) if field.shape == Shape::Map => Place::Element(field),
            _ => self.struct_type().and_then(|ty| ty.field(key)).map_or(Place::Free, Place::Field),
        }
    }

    /// The struct at this place.
    pub fn struct_type(self) -> Option<&'static Type> {
        match self {
            Place::Root(ty) => Some(ty),
            Place::Field(field) if field.shape != Shape::One => None,
            Place::Field(field) | Place::Element(field) => match field.ty {
                Ty::Struct(ty) | Ty::StructOr(ty) => Some(ty),
                _ => None,
            },
            Place::Free => None,
        }
    }

    /// The field, if a list is expected at this place.
    pub fn list(self) -> Option<&'static Field> {
        match self {
            Place::Field(field) if field.shape == Shape::List => Some(field),
            _ => None,
        }
    }

    /// The place of the elements of the list at this place.
    pub fn element(self) -> Place {
        self.list().map_or(Place::Free, Place::Element)
    }
}

/// The type of a kind, such as `of("apps", "v1", "Deployment")`; the core group is `""`.
///
/// Kinds served as subresources (`Scale`, `TokenRequest`, `Eviction`) are found under the group that serves them too;
/// `DeleteOptions` and `Status` under any group, as clients send them.
pub fn of(group: &str, version: &str, kind: &str) -> Option<&'static Type> {
    match (table::KINDS.binary_search_by(|(g, v, k, _)| (*g, *v, *k).cmp(&(group, version, kind))), kind) {
        (Ok(at), _) => Some(table::KINDS[at].3),
        (Err(_), "DeleteOptions") => Some(&table::DELETE_OPTIONS),
        (Err(_), "Status") => Some(&table::STATUS),
        _ => None,
    }
}

/// `metadata` of every object.
pub fn object_meta() -> &'static Type {
    &table::OBJECT_META
}

/// `metadata` of every list.
pub fn list_meta() -> &'static Type {
    &table::LIST_META
}

/// The part every object has (`apiVersion`, `kind`, `metadata`): the type of custom resources without a schema of ours.
pub fn partial_object() -> &'static Type {
    table::PARTIAL_OBJECT
}

/// Every type of the table in the order of its id.
pub fn all() -> &'static [&'static Type] {
    table::TYPES
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn kinds_are_sorted_and_unique() {
        assert!(table::KINDS.windows(2).all(|w| (w[0].0, w[0].1, w[0].2) < (w[1].0, w[1].1, w[1].2)));
        assert!(table::TYPES.windows(2).all(|w| w[0].id < w[1].id));
    }

    #[test]
    fn known_kinds_are_found() {
        for (group, version, kind, name) in [
            ("", "v1", "Pod", "Pod"),
            ("apps", "v1", "Deployment", "Deployment"),
            ("apps", "v1", "Scale", "Scale"),
            ("events.k8s.io", "v1", "Event", "Event"),
            ("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "CustomResourceDefinition"),
            ("extensions", "v1beta1", "Ingress", "Ingress"),
            ("authentication.k8s.io", "v1beta1", "SelfSubjectReview", "SelfSubjectReview"),
            ("", "v1", "DeleteOptions", "DeleteOptions"),
            ("policy", "v1", "DeleteOptions", "DeleteOptions"),
        ] {
            assert_eq!(of(group, version, kind).map(Type::name), Some(name), "{group}/{version} {kind}");
        }
        assert!(of("", "v1", "PodList").is_none());
        assert!(of("apps", "v2", "Deployment").is_none());
    }

    #[test]
    fn fields_of_embedded_structs_are_found() {
        let pod = of("", "v1", "Pod").unwrap();
        assert!(pod.field("apiVersion").is_some() && pod.field("kind").is_some());
        let spec = pod.field("spec").unwrap().struct_type().unwrap();
        let volumes = spec.field("volumes").unwrap();
        assert!(volumes.rules.merge && volumes.rules.retain_keys);
        assert_eq!((volumes.rules.merge_key, volumes.rules.keys), ("name", &["name"][..]));
        let config_map = volumes.struct_type().unwrap().field("configMap").unwrap().struct_type().unwrap();
        assert!(config_map.field("name").is_some() && config_map.field("nope").is_none());
        assert!(config_map.field("optional").unwrap().pointer());
        assert!(volumes.struct_type().unwrap().json_fields().any(|field| field.json == "hostPath"));
    }

    #[test]
    fn list_and_struct_topology() {
        let service = of("", "v1", "Service").unwrap().field("spec").unwrap().struct_type().unwrap();
        let ports = service.field("ports").unwrap();
        assert_eq!(ports.rules.keys, ["port", "protocol"]);
        assert_eq!(ports.struct_type().unwrap().field("protocol").unwrap().rules.default, "TCP");
        assert!(!ports.atomic());
        assert!(service.field("selector").unwrap().atomic());
        assert!(service.field("clusterIPs").unwrap().atomic());
        let volume = of("", "v1", "PersistentVolume").unwrap().field("spec").unwrap().struct_type().unwrap();
        assert!(!volume.field("claimRef").unwrap().atomic());
        let env = of("", "v1", "Event").unwrap().field("involvedObject").unwrap();
        assert!(env.atomic());
        assert_eq!(object_meta().field("finalizers").unwrap().rules.topology, Topology::Set);
    }

    #[test]
    fn fields_stay_small() {
        assert!(size_of::<Field>() <= 48);
    }
}
