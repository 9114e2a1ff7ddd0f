//! The topics of a cluster, and who may use them.
//!
//! `umiak/v1/CLUSTER/system:node:NODE/u/…` is up, from a node; `umiak/v1/CLUSTER/system:node:NODE/d/…` is down, to it.
//! Nodes go by the whole common name of their certificates: that is what brokers compare topics with.

use super::tls::NODE_PREFIX;

/// Records of sessions, both ways.
pub(crate) const SESSION: &str = "s";
/// Down, in clear: the server knows nothing of a session.
pub(crate) const RESET: &str = "r";
/// Up: the last will of a node's connection, which is its number.
pub(crate) const PRESENCE: &str = "p";
/// What a joining client's identifier begins with.
pub(crate) const JOIN_PREFIX: &str = "join-";

/// Who is at the other end of a connection to the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A node with a certificate.
    Node(String),
    /// Nobody yet: a client identifier of its own choice.
    Joining(String),
}

/// The topics of one cluster.
#[derive(Clone, Debug)]
pub struct Topics {
    root: String,
}

/// Where a message came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Up<'a> {
    /// From a node, with the part of the topic after `u/`.
    Node(&'a str, &'a str),
    /// From a joining client.
    Join(&'a str),
}

impl Topics {
    /// `cluster` is the cluster's identifier.
    pub fn new(cluster: &str) -> Self {
        Self { root: format!("umiak/v1/{cluster}") }
    }

    /// From a node.
    pub(crate) fn up(&self, node: &str, what: &str) -> String {
        format!("{}/{NODE_PREFIX}{node}/u/{what}", self.root)
    }

    /// To a node.
    pub(crate) fn down(&self, node: &str, what: &str) -> String {
        format!("{}/{NODE_PREFIX}{node}/d/{what}", self.root)
    }

    /// From a joining client.
    pub(crate) fn join_up(&self, client: &str) -> String {
        format!("{}/join/{client}/u", self.root)
    }

    /// To a joining client.
    pub(crate) fn join_down(&self, client: &str) -> String {
        format!("{}/join/{client}/d", self.root)
    }

    /// To all nodes: whether the server is at the broker.
    pub(crate) fn server(&self) -> String {
        format!("{}/all/d/server", self.root)
    }

    /// What the server subscribes to at a broker of others.
    pub(crate) fn server_filters(&self) -> [String; 2] {
        [format!("{}/+/u/#", self.root), format!("{}/join/+/u", self.root)]
    }

    /// What a node subscribes to.
    pub(crate) fn node_filters(&self, node: &str) -> [String; 2] {
        [self.down(node, "#"), format!("{}/all/d/#", self.root)]
    }

    /// Who sent to this topic; `None`: it is none of those above.
    pub(crate) fn parse<'a>(&self, topic: &'a str) -> Option<Up<'a>> {
        let rest = topic.strip_prefix(&self.root)?.strip_prefix('/')?;
        if let Some(rest) = rest.strip_prefix("join/") {
            return rest.strip_suffix("/u").filter(|client| !client.contains('/')).map(Up::Join);
        }
        let (node, rest) = rest.strip_prefix(NODE_PREFIX)?.split_once('/')?;
        Some(Up::Node(node, rest.strip_prefix("u/")?))
    }

    /// Whether a client may publish to a topic.
    pub(crate) fn may_publish(&self, identity: &Identity, topic: &str) -> bool {
        if topic.contains(['+', '#', '\0']) {
            return false;
        }
        match (identity, self.parse(topic)) {
            (Identity::Node(name), Some(Up::Node(node, rest))) => name == node && !rest.is_empty(),
            (Identity::Joining(id), Some(Up::Join(client))) => id == client,
            _ => false,
        }
    }

    /// Whether a client may subscribe to a filter: only below what is meant for it.
    pub(crate) fn may_subscribe(&self, identity: &Identity, filter: &str) -> bool {
        if !valid_filter(filter) {
            return false;
        }
        let below = |part: String| filter.strip_prefix(&part).is_some_and(|rest| !rest.is_empty());
        match identity {
            Identity::Node(name) => below(self.down(name, "")) || below(format!("{}/all/d/", self.root)),
            Identity::Joining(id) => *filter == self.join_down(id),
        }
    }
}

/// Who a client is that calls itself `id`: the identifier of a node is its name, or begins with its name and `~`.
pub(crate) fn identify(id: &str, certificate: Option<&str>) -> Option<Identity> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '~');
    if !id.chars().all(plain) {
        return None;
    }
    match certificate {
        Some(name) => {
            let rest = id.strip_prefix(name)?;
            (rest.is_empty() || rest.starts_with('~')).then(|| Identity::Node(name.to_owned()))
        }
        None => {
            let random = id.strip_prefix(JOIN_PREFIX)?;
            let fits = (16..=64).contains(&random.len()) && random.chars().all(|c| c.is_ascii_hexdigit());
            fits.then(|| Identity::Joining(id.to_owned()))
        }
    }
}

fn valid_filter(filter: &str) -> bool {
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let last = levels.peek().is_none();
        let fits = match level {
            "#" => last,
            "+" => true,
            level => !level.contains(['+', '#', '\0']),
        };
        if !fits {
            return false;
        }
    }
    !filter.is_empty()
}

/// Whether a topic is one of those a valid filter means.
pub(crate) fn matches(filter: &str, topic: &str) -> bool {
    let mut levels = topic.split('/');
    for part in filter.split('/') {
        match (part, levels.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (part, Some(level)) if part == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_bound_to_certificates() {
        let node = || Some(Identity::Node("pi-1.lab".into()));
        let random = "join-0123456789abcdef";
        for (id, certificate, expected) in [
            ("pi-1.lab", Some("pi-1.lab"), node()),
            ("pi-1.lab~s", Some("pi-1.lab"), node()),
            ("pi-1.labx", Some("pi-1.lab"), None),
            ("pi-2.lab", Some("pi-1.lab"), None),
            ("", Some("pi-1.lab"), None),
            ("pi-1.lab~#", Some("pi-1.lab"), None),
            ("pi-1.lab~/", Some("pi-1.lab"), None),
            (random, Some("pi-1.lab"), None),
            (random, None, Some(Identity::Joining(random.into()))),
            ("join-0123", None, None),
            ("join-0123456789abcde+", None, None),
            ("pi-1.lab", None, None),
        ] {
            assert_eq!(identify(id, certificate), expected, "{id} {certificate:?}");
        }
    }

    #[test]
    fn everybody_keeps_to_his_own_topics() {
        let topics = Topics::new("c");
        let node = Identity::Node("a".into());
        let joining = Identity::Joining("join-1".into());
        for (identity, topic, may) in [
            (&node, "umiak/v1/c/system:node:a/u/s", true),
            (&node, "umiak/v1/c/system:node:a/u/x/y", true),
            (&node, "umiak/v1/c/system:node:a/u/", false),
            (&node, "umiak/v1/c/system:node:a/u", false),
            (&node, "umiak/v1/c/system:node:a/d/s", false),
            (&node, "umiak/v1/c/system:node:b/u/s", false),
            (&node, "umiak/v1/d/system:node:a/u/s", false),
            (&node, "umiak/v1/c/system:node:a/u/#", false),
            (&node, "umiak/v1/c/join/join-1/u", false),
            (&node, "umiak/v1/c/all/d/server", false),
            (&node, "$SYS/x", false),
            (&node, "é", false),
            (&joining, "umiak/v1/c/join/join-1/u", true),
            (&joining, "umiak/v1/c/join/join-2/u", false),
            (&joining, "umiak/v1/c/join/join-1/d", false),
            (&joining, "umiak/v1/c/system:node:a/u/s", false),
        ] {
            assert_eq!(topics.may_publish(identity, topic), may, "{identity:?} {topic}");
        }
        for (identity, filter, may) in [
            (&node, "umiak/v1/c/system:node:a/d/#", true),
            (&node, "umiak/v1/c/system:node:a/d/s", true),
            (&node, "umiak/v1/c/all/d/#", true),
            (&node, "#", false),
            (&node, "+/v1/c/system:node:a/d/#", false),
            (&node, "umiak/v1/c/+/d/#", false),
            (&node, "umiak/v1/c/system:node:b/d/#", false),
            (&node, "umiak/v1/c/system:node:a/#", false),
            (&node, "umiak/v1/c/system:node:a/d/x#", false),
            (&node, "umiak/v1/c/system:node:a/d/#/x", false),
            (&node, "$SYS/#", false),
            (&node, "", false),
            (&joining, "umiak/v1/c/join/join-1/d", true),
            (&joining, "umiak/v1/c/join/+/d", false),
            (&joining, "#", false),
        ] {
            assert_eq!(topics.may_subscribe(identity, filter), may, "{identity:?} {filter}");
        }
    }

    #[test]
    fn filters_match() {
        for (filter, topic, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a/b/c", false),
            ("a/#", "a/b/c", true),
            ("a/#", "a", true),
            ("a/+/c", "a/b/c", true),
            ("a/+", "a/b/c", false),
            ("a/+", "a", false),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        }
    }
}
