//! Small images made from this machine's static busybox: no registry, no container engine.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

const APPLETS: &[&str] = &[
    "sh", "cat", "ls", "echo", "env", "sleep", "id", "hostname", "wget", "httpd", "nc", "ps", "kill", "touch", "date",
    "df", "mount", "true", "false", "seq", "stat", "mkdir", "rm", "yes", "head", "test", "nslookup", "ip", "free",
    "dd", "tar",
];

/// An image's names and command.
pub struct Recipe<'a> {
    pub names: &'a [&'a str],
    pub command: &'a [&'a str],
    pub env: &'a [&'a str],
    /// Files beside busybox.
    pub files: &'a [(&'a str, &'a str)],
}

/// A shell with the usual applets.
pub const BUSYBOX: Recipe<'static> = Recipe { names: &["busybox:latest"], command: &["sh"], env: &[], files: &[] };

/// A web server in nginx's place: answers `GET /` on port 80.
pub const WEB: Recipe<'static> = Recipe {
    names: &["nginx:latest", "nginx:1.7.9"],
    command: &["httpd", "-f", "-p", "80", "-h", "/www"],
    env: &[],
    files: &[("www/index.html", "<h1>Welcome</h1>\n")],
};

/// The same under the tag that an update goes to.
pub const WEB_NEW: Recipe<'static> = Recipe {
    names: &["nginx:1.9.1"],
    command: &["httpd", "-f", "-p", "80", "-h", "/www"],
    env: &["VERSION=1.9.1"],
    files: &[("www/index.html", "<h1>Welcome to 1.9.1</h1>\n")],
};

fn sha256(data: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, data);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a docker-archive of the recipe and gives its path.
pub fn archive(dir: &Path, file: &str, recipe: &Recipe<'_>) -> PathBuf {
    let layer = layer(recipe);
    let mut env = vec!["PATH=/bin".to_owned()];
    env.extend(recipe.env.iter().map(|e| (*e).to_owned()));
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "config": { "Cmd": recipe.command, "Env": env },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer))] },
    })
    .to_string()
    .into_bytes();
    let config_name = format!("{}.json", sha256(&config));
    let manifest =
        json!([{ "Config": config_name, "RepoTags": recipe.names, "Layers": ["layer.tar"] }]).to_string().into_bytes();
    let path = dir.join(file);
    let mut tar = tar::Builder::new(fs::File::create(&path).unwrap());
    for (name, data) in [(config_name.as_str(), &config), ("layer.tar", &layer), ("manifest.json", &manifest)] {
        append(&mut tar, name, 0o644, data);
    }
    tar.into_inner().unwrap();
    path
}

fn layer(recipe: &Recipe<'_>) -> Vec<u8> {
    let busybox = fs::read("/bin/busybox").expect("a static busybox is needed: see README.md");
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, "bin/busybox", 0o755, &busybox);
    for applet in APPLETS {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    append(&mut tar, "etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n");
    append(&mut tar, "etc/group", 0o644, b"root:x:0:\nuser:x:1000:\n");
    let mut tmp = tar::Header::new_gnu();
    tmp.set_entry_type(tar::EntryType::Directory);
    tmp.set_mode(0o1777);
    tmp.set_size(0);
    tar.append_data(&mut tmp, "tmp/", std::io::empty()).unwrap();
    for (name, text) in recipe.files {
        append(&mut tar, name, 0o644, text.as_bytes());
    }
    tar.into_inner().unwrap()
}

fn append<W: std::io::Write>(tar: &mut tar::Builder<W>, name: &str, mode: u32, data: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(data.len() as u64);
    tar.append_data(&mut header, name, data).unwrap();
}
