//! A container's environment and command line.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use k8s_openapi::api::core::v1::{Container, EnvVarSource};
use serde_json::Value;

use super::downward;
use super::error::{Error, Result};
use super::expand::expand;
use super::pod::{Desired, Facts};
use crate::kinds::Object;

/// Environment variables in the order they were written; a repeated name keeps its last value.
#[derive(Debug, Default)]
pub(super) struct Environment {
    names: Vec<String>,
    values: BTreeMap<String, String>,
    /// What the node says of Services: counts where the container says nothing.
    services: BTreeMap<String, String>,
}

impl Environment {
    fn set(&mut self, name: &str, value: String) {
        if self.values.insert(name.to_owned(), value).is_none() {
            self.names.push(name.to_owned());
        }
    }

    /// The value of a variable.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        self.values.get(name).or_else(|| self.services.get(name)).cloned()
    }

    /// `NAME=value` lines.
    pub(super) fn lines(&self) -> Vec<String> {
        let own = self.names.iter().filter_map(|n| self.values.get_key_value(n));
        let of_services = self.services.iter().filter(|(name, _)| !self.values.contains_key(*name));
        own.chain(of_services).map(|(name, value)| format!("{name}={value}")).collect()
    }

    /// Replaces `$(NAME)` by the variables.
    pub(super) fn expand(&self, text: &str) -> String {
        expand(text, |name| self.get(name))
    }
}

/// The bytes under a key of a ConfigMap (`data`, `binaryData`) or Secret (`data`).
pub(super) fn entry(resource: &str, object: &Object, key: &str) -> Option<Vec<u8>> {
    let text = |field: &str| object.get(field)?.get(key)?.as_str();
    match resource {
        "secrets" => BASE64.decode(text("data")?).ok(),
        _ => match text("data") {
            Some(plain) => Some(plain.as_bytes().to_vec()),
            None => BASE64.decode(text("binaryData")?).ok(),
        },
    }
}

/// All keys of a ConfigMap or Secret, sorted.
pub(super) fn keys(object: &Object) -> Vec<&String> {
    let of = |field: &str| object.get(field).and_then(Value::as_object).into_iter().flat_map(|m| m.keys());
    let mut keys: Vec<_> = of("data").chain(of("binaryData")).collect();
    keys.sort();
    keys
}

/// The environment Kubernetes defines for a container; the image's own comes before it. `services`: what it says of
/// Services.
pub(super) fn build(
    pod: &Desired,
    facts: &Facts,
    services: &BTreeMap<String, String>,
    container: &Container,
) -> Result<Environment> {
    let mut environment = Environment { services: services.clone(), ..Environment::default() };
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            add_all(&mut environment, pod, "configmaps", &reference.name, reference.optional, prefix)?;
        }
        if let Some(reference) = &source.secret_ref {
            add_all(&mut environment, pod, "secrets", &reference.name, reference.optional, prefix)?;
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            Some(source) => referred(pod, facts, container, source)?,
            None => Some(environment.expand(variable.value.as_deref().unwrap_or_default())),
        };
        if let Some(value) = value {
            environment.set(&variable.name, value);
        }
    }
    Ok(environment)
}

fn add_all(
    environment: &mut Environment,
    pod: &Desired,
    resource: &str,
    name: &str,
    optional: Option<bool>,
    prefix: &str,
) -> Result<()> {
    let Some(object) = pod.object(resource, name) else {
        return if optional == Some(true) { Ok(()) } else { Err(not_found(resource, name)) };
    };
    for key in keys(object) {
        if let Some(value) = entry(resource, object, key) {
            environment.set(&format!("{prefix}{key}"), text(value, resource, name, key)?);
        }
    }
    Ok(())
}

fn referred(pod: &Desired, facts: &Facts, container: &Container, source: &EnvVarSource) -> Result<Option<String>> {
    if let Some(field) = &source.field_ref {
        return downward::field(pod, facts, &field.field_path).map(Some);
    }
    if let Some(selector) = &source.resource_field_ref {
        return downward::resource(pod, facts, Some(container), selector).map(Some);
    }
    if let Some(key) = &source.config_map_key_ref {
        return one(pod, "configmaps", &key.name, &key.key, key.optional);
    }
    if let Some(key) = &source.secret_key_ref {
        return one(pod, "secrets", &key.name, &key.key, key.optional);
    }
    Err(Error::config("env.valueFrom.fileKeyRef is not supported"))
}

fn one(pod: &Desired, resource: &str, name: &str, key: &str, optional: Option<bool>) -> Result<Option<String>> {
    let optional = optional == Some(true);
    let Some(object) = pod.object(resource, name) else {
        return if optional { Ok(None) } else { Err(not_found(resource, name)) };
    };
    match entry(resource, object, key) {
        Some(value) => text(value, resource, name, key).map(Some),
        None if optional => Ok(None),
        None => Err(Error::config(format!("couldn't find key {key} in {} {}/{name}", kind(resource), pod.namespace()))),
    }
}

fn text(value: Vec<u8>, resource: &str, name: &str, key: &str) -> Result<String> {
    match String::from_utf8(value) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => {
            Err(Error::config(format!("key {key} of {} {name} is no text for an environment variable", kind(resource))))
        }
    }
}

fn kind(resource: &str) -> &'static str {
    if resource == "secrets" { "Secret" } else { "ConfigMap" }
}

/// kubelet's words for a missing object.
pub(super) fn not_found(resource: &str, name: &str) -> Error {
    Error::config(format!("{} {name:?} not found", kind(resource).to_lowercase()))
}

/// The command line: `command` replaces the image's entry point and drops its default arguments, `args` replaces only
/// the arguments.
pub(super) fn command(
    container: &Container,
    image: &crate::image::ImageConfig,
    environment: &Environment,
) -> Result<Vec<String>> {
    let expanded = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|text| environment.expand(text)).collect()
    };
    let (command, args) = (expanded(&container.command), expanded(&container.args));
    let line = match (command.is_empty(), args.is_empty()) {
        (true, true) => [image.entrypoint.clone(), image.cmd.clone()].concat(),
        (true, false) => [image.entrypoint.clone(), args].concat(),
        (false, _) => [command, args].concat(),
    };
    if line.is_empty() {
        return Err(Error::config("no command specified"));
    }
    Ok(line)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::super::pod::tests::desired;
    use super::*;
    use crate::image::ImageConfig;

    fn objects() -> Vec<(&'static str, Value)> {
        vec![
            ("configmaps/c", json!({"data": {"a": "1", "b": "two"}, "binaryData": {"bin": "/w=="}})),
            ("secrets/s", json!({"data": {"k": "c2VjcmV0"}})),
        ]
    }

    #[test]
    fn variables_come_in_order_and_expand() {
        let spec = json!({"containers": [{
            "name": "x",
            "envFrom": [
                {"prefix": "P_", "secretRef": {"name": "s"}},
                {"configMapRef": {"name": "none", "optional": true}},
            ],
            "env": [
                {"name": "A", "value": "one"},
                {"name": "B", "value": "$(A)-$(P_k)-$(LATER)-$(S)"},
                {"name": "LATER", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "b"}}},
                {"name": "GONE", "valueFrom": {"secretKeyRef": {"name": "s", "key": "zz", "optional": true}}},
                {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "A", "value": "again"},
            ],
        }]});
        let pod = desired(spec, &objects());
        let services = [("A", "service"), ("S", "10.43.0.1")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let environment = build(&pod, &Facts::default(), &services, &pod.containers[0].spec).unwrap();
        let expected =
            ["P_k=secret", "A=again", "B=one-secret-$(LATER)-10.43.0.1", "LATER=two", "N=pod", "S=10.43.0.1"];
        assert_eq!(environment.lines(), expected);
    }

    #[test]
    fn what_is_missing_is_named() {
        for (container, text) in [
            (json!({"envFrom": [{"configMapRef": {"name": "no"}}]}), "configmap \"no\" not found"),
            (
                json!({"envFrom": [{"configMapRef": {"name": "c"}}]}),
                "key bin of ConfigMap c is no text for an environment variable",
            ),
            (
                json!({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "q"}}}]}),
                "couldn't find key q in Secret ns/s",
            ),
            (
                json!({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "t", "key": "q"}}}]}),
                "secret \"t\" not found",
            ),
            (
                json!({"env": [{"name": "A", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "p", "key": "q"}}}]}),
                "env.valueFrom.fileKeyRef is not supported",
            ),
        ] {
            let mut container = container;
            container["name"] = json!("x");
            let pod = desired(json!({"containers": [container]}), &objects());
            let error = build(&pod, &Facts::default(), &BTreeMap::new(), &pod.containers[0].spec).unwrap_err();
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn command_lines() {
        let image =
            ImageConfig { entrypoint: vec!["/entry".into()], cmd: vec!["default".into()], ..ImageConfig::default() };
        let none = ImageConfig::default();
        for (container, image, expected) in [
            (json!({}), &image, Some(vec!["/entry", "default"])),
            (json!({"args": ["$(A)"]}), &image, Some(vec!["/entry", "1"])),
            (json!({"command": ["/c"]}), &image, Some(vec!["/c"])),
            (json!({"command": ["/c"], "args": ["x"]}), &image, Some(vec!["/c", "x"])),
            (json!({}), &none, None),
        ] {
            let mut container = container;
            container["name"] = json!("x");
            let pod = desired(json!({"containers": [container]}), &[]);
            let mut environment = Environment::default();
            environment.set("A", "1".into());
            let line = command(&pod.containers[0].spec, image, &environment).ok();
            assert_eq!(line, expected.map(|l| l.iter().map(ToString::to_string).collect::<Vec<_>>()));
        }
    }
}
