//! Who a container runs as, looked up in its own files.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::AsFd,
};

use serde::{Deserialize, Serialize};

use super::super::{Error, Result, User, sys};

/// More of `/etc/passwd` or `/etc/group` is not read.
const MAX_FILE: u64 = 4 << 20;

/// Numbers, and the home directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

/// Looks a user up in the root file system `root`, as container runtimes do: names must be found, numbers need not; without
/// a group the user's own one, else 0.
pub(super) fn resolve(user: &User, root: impl AsFd) -> Result<Identity> {
    lookup(user, &read(&root, "etc/passwd")?, &read(&root, "etc/group")?)
}

/// Reads a file, links followed inside of the root only; a missing one is empty.
fn read(root: impl AsFd, path: &str) -> Result<String> {
    let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
    let fd = sys::openat2(root, path, flags, 0, sys::RESOLVE_IN_ROOT | sys::RESOLVE_NO_MAGICLINKS);
    let text = fd.and_then(|fd| {
        let file = File::from(fd);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let mut bytes = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    });
    match text {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(String::new()),
        other => {
            other.map_err(|source| Error::File { op: "read the image's", path: format!("/{path}").into(), source })
        }
    }
}

fn lookup(user: &User, passwd: &str, group: &str) -> Result<Identity> {
    let (name, group_name) = match user.image.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|g| !g.is_empty())),
        None => (&*user.image, None),
    };
    // A numeric user of the pod replaces user and group of the image.
    let (name, group_name) = match user.uid {
        Some(uid) => (uid.to_string(), None),
        None => (if name.is_empty() { "0" } else { name }.to_owned(), group_name),
    };
    let number = |row: &[&str], at: usize| row.get(at).and_then(|v| v.parse::<u32>().ok());
    // A number is never a name: an image could call its root user 1000.
    let is = |row: &[&str], wanted: &str| match wanted.parse() {
        Ok(wanted) => number(row, 2) == Some(wanted),
        Err(_) => row[0] == wanted,
    };
    let entry = rows(passwd).find(|r| is(r, &name));
    let uid = name.parse().ok().or_else(|| number(entry.as_ref()?, 2));
    let uid = uid.ok_or_else(|| unknown(&format!("no user {name:?} in the image's /etc/passwd")))?;
    let gid = match (user.gid, group_name) {
        (Some(gid), _) => gid,
        (None, None) => entry.as_ref().and_then(|r| number(r, 3)).unwrap_or_default(),
        (None, Some(wanted)) => {
            let gid = wanted.parse().ok().or_else(|| number(&rows(group).find(|r| is(r, wanted))?, 2));
            gid.ok_or_else(|| unknown(&format!("no group {wanted:?} in the image's /etc/group")))?
        }
    };
    let mut groups = vec![gid];
    if let (false, Some(entry)) = (user.strict_groups, &entry) {
        let member = |row: &Vec<&str>| row.get(3).is_some_and(|m| m.split(',').any(|m| m == entry[0]));
        groups.extend(rows(group).filter(member).filter_map(|r| number(&r, 2)));
    }
    groups.extend(&user.groups);
    let mut seen = std::collections::BTreeSet::new();
    groups.retain(|g| seen.insert(*g));
    let home = entry.and_then(|r| r.get(5).map(|h| h.to_string())).filter(|h| !h.is_empty());
    Ok(Identity { uid, gid, groups, home: home.unwrap_or_else(|| "/".into()) })
}

fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter(|l| !l.trim_start().starts_with('#')).map(|l| l.trim().split(':').collect())
}

fn unknown(reason: &str) -> Error {
    Error::Invalid { field: "user".into(), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\n# x\nnginx:x:101:102::/var/www:/bin/false\n7:x:500:500::/seven:\n8:x:0:0::/:\n";
    const GROUP: &str = "root:x:0:\nwww:x:102:\nadm:x:4:nginx,root\nlog:x:9:nginx\n102:x:0:\n";

    #[test]
    fn users() {
        let image = |user: &str| User { image: user.into(), ..User::default() };
        for (user, uid, gid, groups, home) in [
            (image(""), 0, 0, vec![0, 4], "/root"),
            (image("nginx"), 101, 102, vec![102, 4, 9], "/var/www"),
            (image("101"), 101, 102, vec![102, 4, 9], "/var/www"),
            (image("nginx:adm"), 101, 4, vec![4, 9], "/var/www"),
            (image("1000:77"), 1000, 77, vec![77], "/"),
            (image("1000"), 1000, 0, vec![0], "/"),
            // Names that are numbers are nobody's; the last row calls root 8.
            (image("7:102"), 7, 102, vec![102], "/"),
            (User { uid: Some(8), image: "nginx".into(), ..User::default() }, 8, 0, vec![0], "/"),
            (
                User { uid: Some(101), image: "root:root".into(), ..User::default() },
                101,
                102,
                vec![102, 4, 9],
                "/var/www",
            ),
            (User { uid: Some(9), gid: Some(8), groups: vec![5, 8], ..User::default() }, 9, 8, vec![8, 5], "/"),
            (
                User { image: "nginx".into(), strict_groups: true, groups: vec![6], ..User::default() },
                101,
                102,
                vec![102, 6],
                "/var/www",
            ),
        ] {
            let expected = Identity { uid, gid, groups, home: home.into() };
            assert_eq!(lookup(&user, PASSWD, GROUP).unwrap(), expected, "{user:?}");
        }
        for (user, message) in [("nobody", "user: no user \"nobody\""), ("root:nope", "user: no group \"nope\"")] {
            assert!(lookup(&image(user), PASSWD, GROUP).unwrap_err().to_string().starts_with(message));
        }
        assert_eq!(lookup(&image(""), "", "").unwrap(), Identity { uid: 0, gid: 0, groups: vec![0], home: "/".into() });
    }
}
