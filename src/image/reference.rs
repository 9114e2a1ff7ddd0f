//! Image references, normalised as Docker and Kubernetes do.
//!
//! Source of the rules: the grammar and normalisation of github.com/distribution/reference, which the kubelet applies.

use std::fmt;
use std::str::FromStr;

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DOMAIN: &str = "index.docker.io";
const DEFAULT_TAG: &str = "latest";
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A complete image reference: `registry/repository`, and a tag or a digest or both.
///
/// # Guarantees
/// Its text form parses back to itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// Why a text is no image reference. Kubernetes' reason for it is `InvalidImageName`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid image name {text:?}: {problem}")]
pub struct InvalidReference {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl Reference {
    /// `docker.io`, `localhost:5000`, …
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Absent only beside a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// `sha256:…`. Where present it decides, and the tag is only a comment.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// `docker.io/library/nginx`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// Whether Kubernetes' default `imagePullPolicy` for it is `Always`: its tag is `latest` and it has no digest.
    pub fn is_latest(&self) -> bool {
        self.digest.is_none() && self.tag.as_deref() == Some(DEFAULT_TAG)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        parse(text).map_err(|problem| InvalidReference { text: text.to_owned(), problem })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.trim() != text {
        return Err("it begins or ends with white space");
    }
    if is_hex(text, 64) {
        return Err("64 hexadecimal digits are an image id, not a name");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(check_digest(digest)?)),
        None => (text, None),
    };
    // A colon after the last slash begins a tag; one before it belongs to the registry's port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(check_tag(tag)?)),
        _ => (rest, None),
    };
    let (registry, repository) = split_registry(name);
    check_registry(&registry)?;
    check_repository(&repository)?;
    if registry.len() + 1 + repository.len() > MAX_NAME {
        return Err("the name is longer than 255 characters");
    }
    let tag = match (tag, &digest) {
        (None, None) => Some(DEFAULT_TAG.to_owned()),
        (tag, _) => tag,
    };
    Ok(Reference { registry, repository, tag, digest })
}

/// The first component is a registry only if it looks like a host: a dot, a port, `localhost`, or upper case.
fn split_registry(name: &str) -> (String, String) {
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':']) || first == "localhost" || first.chars().any(|c| c.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    };
    let registry = if registry == LEGACY_DOMAIN { DEFAULT_DOMAIN } else { registry };
    if registry == DEFAULT_DOMAIN && !repository.contains('/') {
        return (registry.to_owned(), format!("library/{repository}"));
    }
    (registry.to_owned(), repository.to_owned())
}

fn check_registry(registry: &str) -> Result<(), &'static str> {
    const BAD: &str = "the registry is not a host name or address with an optional port";
    let (host, port) = match registry.strip_prefix('[') {
        Some(v6) => {
            let (host, port) = v6.split_once(']').ok_or(BAD)?;
            if host.is_empty() || !host.chars().all(|c| c.is_ascii_hexdigit() || c == ':') {
                return Err(BAD);
            }
            (None, (!port.is_empty()).then_some(port.strip_prefix(':').ok_or(BAD)).transpose()?)
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        },
    };
    if port.is_some_and(|p| p.is_empty() || !p.bytes().all(|b| b.is_ascii_digit())) {
        return Err(BAD);
    }
    let label = |l: &str| {
        !l.is_empty()
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    if host.is_some_and(|h| !h.split('.').all(label)) {
        return Err(BAD);
    }
    Ok(())
}

/// Components of lower-case letters and digits, separated inside by one dot, one or two underscores, or dashes.
fn check_repository(repository: &str) -> Result<(), &'static str> {
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("the repository must be lower case");
    }
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    for component in repository.split('/') {
        if component.is_empty() {
            return Err("the repository has an empty component");
        }
        let separators_fit = component
            .split(|c: char| c.is_ascii() && word(c as u8))
            .all(|s| s.is_empty() || s == "." || s == "_" || s == "__" || s.bytes().all(|b| b == b'-'));
        let edges_fit = component.bytes().next().is_some_and(word) && component.bytes().next_back().is_some_and(word);
        if !separators_fit || !edges_fit {
            return Err("a repository component is letters and digits separated by single '.', '_', '__' or dashes");
        }
    }
    Ok(())
}

fn check_tag(tag: &str) -> Result<String, &'static str> {
    let first = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let rest = |b: u8| first(b) || b == b'.' || b == b'-';
    if tag.is_empty() || tag.len() > MAX_TAG || !first(tag.as_bytes()[0]) || !tag.bytes().all(rest) {
        return Err("a tag is 1 to 128 letters, digits, '_', '.' and '-', not beginning with '.' or '-'");
    }
    Ok(tag.to_owned())
}

fn check_digest(digest: &str) -> Result<String, &'static str> {
    let fits = match digest.split_once(':') {
        Some(("sha256", hex)) => is_hex(hex, 64),
        Some(("sha512", hex)) => is_hex(hex, 128),
        _ => false,
    };
    if fits { Ok(digest.to_owned()) } else { Err("the digest is not sha256: with 64 lower-case hexadecimal digits") }
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn normalises() {
        let with_digest = format!("nginx@sha256:{HEX}");
        let both = format!("nginx:1.25@sha256:{HEX}");
        let expected_digest = format!("docker.io/library/nginx@sha256:{HEX}");
        let expected_both = format!("docker.io/library/nginx:1.25@sha256:{HEX}");
        for (text, expected) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.7.9", "docker.io/library/nginx:1.7.9"),
            ("library/nginx", "docker.io/library/nginx:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
            ("kubetm/app", "docker.io/kubetm/app:latest"),
            ("a/b/c", "docker.io/a/b/c:latest"),
            ("k8s.gcr.io/busybox", "k8s.gcr.io/busybox:latest"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x", "localhost:5000/x:latest"),
            ("localhost:5000/x:y", "localhost:5000/x:y"),
            ("host:5000/a/b", "host:5000/a/b:latest"),
            ("HOST/x", "HOST/x:latest"),
            ("192.168.1.10:5000/x:1", "192.168.1.10:5000/x:1"),
            ("[fd00::1]:5000/x", "[fd00::1]:5000/x:latest"),
            ("[fd00::1]/x", "[fd00::1]/x:latest"),
            ("a__b/c-d--e.f", "docker.io/a__b/c-d--e.f:latest"),
            ("localhost:5000", "docker.io/library/localhost:5000"),
            (&with_digest, &expected_digest),
            (&both, &expected_both),
        ] {
            let reference: Reference = text.parse().unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(reference.to_string(), expected, "{text}");
            assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference, "{text} again");
        }
    }

    #[test]
    fn refuses() {
        let long_tag = format!("nginx:{}", "t".repeat(129));
        let long_name = "a/".repeat(130) + "b";
        for text in [
            "",
            " nginx",
            "nginx ",
            "Nginx",
            "nginx:",
            "nginx:-x",
            "nginx:.x",
            "nginx:a b",
            "nginx@",
            "nginx@sha256:12",
            "nginx@md5:00",
            "/nginx",
            "nginx/",
            "a//b",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "_a",
            "k8s.gcr.io/",
            "ex_ample.com/x",
            "host:port/x",
            "-x.com/y",
            "[fd00::1/x",
            "[]:1/x",
            "[::1]5/x",
            "näme",
            "a/ü",
            "http://nginx",
            "nginx@sha256:X@y",
            HEX,
            &long_tag,
            &long_name,
        ] {
            let error = text.parse::<Reference>().map(|r| panic!("{text}: {r}")).unwrap_err().to_string();
            assert!(error.starts_with("invalid image name "), "{text}: {error}");
        }
    }

    #[test]
    fn latest_decides_the_pull_policy() {
        let digest = format!("nginx:latest@sha256:{HEX}");
        for (text, latest) in [("nginx", true), ("nginx:latest", true), ("nginx:1", false), (digest.as_str(), false)] {
            assert_eq!(text.parse::<Reference>().unwrap().is_latest(), latest, "{text}");
        }
    }
}
