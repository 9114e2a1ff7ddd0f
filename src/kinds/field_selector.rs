//! Field selectors such as `spec.nodeName=pi3,status.phase!=Running` (`k8s.io/apimachinery/pkg/fields`).

use super::status::Status;
use super::{Hooks, Object, meta};

/// A field selector: all terms must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    field: String,
    equal: bool,
    value: String,
}

impl FieldSelector {
    /// Reads the text form. `,`, `=` and `\` in values are escaped by `\`.
    ///
    /// # Errors
    /// 400 in the words of the API server.
    pub fn parse(text: &str) -> Result<Self, Status> {
        let mut terms = Vec::new();
        for part in split_terms(text) {
            if part.is_empty() {
                continue;
            }
            let Some((field, equal, value)) = split_term(part) else {
                let message = format!("invalid selector: '{text}'; can't understand '{part}'");
                return Err(Status::bad_request(message));
            };
            terms.push(Term { field: field.to_owned(), equal, value: unescape(value)? });
        }
        Ok(Self { terms })
    }

    /// Refuses fields the kind cannot be selected by.
    ///
    /// # Errors
    /// 400 in the words of the API server.
    pub fn check(&self, hooks: &dyn Hooks) -> Result<(), Status> {
        let empty = Object::new();
        match self.terms.iter().find(|t| field_value(hooks, &empty, &t.field).is_none()) {
            Some(term) => Err(Status::bad_request(format!("field label not supported: {}", term.field))),
            None => Ok(()),
        }
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// Whether it matches an object of the kind with these hooks.
    pub fn matches(&self, hooks: &dyn Hooks, object: &Object) -> bool {
        self.terms.iter().all(|t| (field_value(hooks, object, &t.field).as_deref() == Some(&t.value)) == t.equal)
    }

    /// The value `field` must have, if exactly one is asked for; for index look-ups.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.equal && t.field == field).map(|t| t.value.as_str())
    }
}

/// The value of any field an object of a kind can be selected by.
fn field_value(hooks: &dyn Hooks, object: &Object, field: &str) -> Option<String> {
    match field {
        "metadata.name" => Some(meta::name(object).to_owned()),
        "metadata.namespace" => Some(meta::namespace(object).to_owned()),
        _ => hooks.selectable(object, field),
    }
}

/// The parts between commas that are not escaped.
fn split_terms(text: &str) -> Vec<&str> {
    let (mut terms, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

/// Field, whether it must be equal, and the still escaped value.
fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    for (i, _) in term.char_indices() {
        for (operator, equal) in [("!=", false), ("==", true), ("=", true)] {
            if let Some(value) = term[i..].strip_prefix(operator) {
                return Some((&term[..i], equal, value));
            }
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, Status> {
    let mut text = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(escaped @ ('\\' | ',' | '=')) => text.push(escaped),
                other => {
                    let sequence: String = ['\\'].into_iter().chain(other).collect();
                    let message = format!("invalid field selector: invalid escape sequence: {sequence}");
                    return Err(Status::bad_request(message));
                }
            },
            ',' | '=' => {
                let message = format!("invalid field selector: unescaped character in value: {}", u32::from(c));
                return Err(Status::bad_request(message));
            }
            other => text.push(other),
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::kinds::pod::Pod;
    use serde_json::json;

    #[test]
    fn selectors_match() {
        let pod = json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {"nodeName": "pi,3"}});
        let pod = pod.as_object().unwrap();
        let cases = [
            ("", true),
            ("metadata.name=a", true),
            ("metadata.name==a,metadata.namespace!=c", true),
            (r"spec.nodeName=pi\,3", true),
            ("spec.nodeName!=", true),
            ("status.phase=", true),
            ("status.phase=Running", false),
        ];
        for (text, expected) in cases {
            assert_eq!(FieldSelector::parse(text).unwrap().matches(&Pod, pod), expected, "{text}");
        }
        assert_eq!(FieldSelector::parse("spec.nodeName=x,a!=b").unwrap().exact("spec.nodeName"), Some("x"));
    }

    #[test]
    fn bad_selectors_are_refused() {
        let message = |text| FieldSelector::parse(text).unwrap_err().message;
        assert_eq!(message("a"), "invalid selector: 'a'; can't understand 'a'");
        assert_eq!(message("a=b=c"), "invalid field selector: unescaped character in value: 61");
        assert_eq!(message(r"a=\x"), r"invalid field selector: invalid escape sequence: \x");
        let unknown = FieldSelector::parse("spec.color=red").unwrap().check(&Pod).unwrap_err();
        assert_eq!(unknown.message, "field label not supported: spec.color");
    }
}
