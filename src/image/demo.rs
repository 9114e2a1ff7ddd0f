//! The demonstration image: the running program as a container image, so that the first command works with no registry.
//!
//! Its one layer holds the program as `/umiak`: a hard link where the store shares the program's file system (overlayfs
//! never writes to a lower layer), a copy elsewhere. A dynamically linked program, as development builds are, also gets
//! its loader and libraries: `/proc/self/maps` tells which ones are in use. The image is known by the program's size,
//! time and version, and made anew when those change or a power cut may have hurt it; so it needs no checking.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags};
use serde_json::json;

use super::DEMO_REFERENCE;
use super::digest::Digest;
use super::error::{At, Result};
use super::index::{self, ImageRecord, Index, LayerRecord};
use super::platform::Machine;
use super::store::ImageStore;
use crate::files;

const PROGRAM: &str = "/proc/self/exe";
const PORT: &str = "8080/tcp";

impl ImageStore {
    /// Makes the demonstration image [`DEMO_REFERENCE`] out of the running program, where it is missing or was made of
    /// another program. Its command is `["/umiak", "demo-web"]`.
    pub fn ensure_demo(&self) -> Result<()> {
        let program = Path::new(PROGRAM);
        let metadata = fs::metadata(program).at("read", program)?;
        let layer = Digest::of(
            format!("{} {} {}.{}", env!("CARGO_PKG_VERSION"), metadata.size(), metadata.mtime(), metadata.mtime_nsec())
                .as_bytes(),
        );
        let config = config(&layer);
        let id = Digest::of(&config);
        let is_suspect = |index: &Index| {
            self.session.suspect.is_some() && index.layers.get(&layer).is_none_or(|l| l.boot != self.session.boot)
        };
        let is_there = |index: &Index| {
            index.names.get(DEMO_REFERENCE) == Some(&id)
                && index::layer_path(&self.directory, &layer).is_dir()
                && index::blob_path(&self.directory, &id).is_file()
                && !is_suspect(index)
        };
        if is_there(&*self.index()?) {
            return Ok(());
        }
        let room = self.room()?;
        let lock = self.lock()?;
        let made = room.path.join("layer");
        let size = make_layer(&made)?;
        self.place_layer(&made, &layer)?;
        let blob = index::blob_path(&self.directory, &id);
        files::replace(&blob, &config).at("write", &blob)?;
        let mut index = Index::load(&self.directory)?;
        // The image of an earlier program loses its pin with its name.
        if let Some(former) = index.names.insert(DEMO_REFERENCE.to_owned(), id.clone()) {
            index.images.entry(former).and_modify(|image| image.pinned = false);
        }
        index.layers.insert(layer.clone(), LayerRecord { size, seal: None, boot: self.session.boot.clone() });
        let imported = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let record = ImageRecord {
            layers: vec![layer],
            repo_digests: BTreeSet::new(),
            created: String::new(),
            imported,
            pinned: true,
        };
        index.images.insert(id, record);
        index.save(&self.directory)?;
        self.tidy(&lock);
        Ok(())
    }
}

fn config(layer: &Digest) -> Vec<u8> {
    let machine = Machine::this().best();
    json!({
        "os": machine.os, "architecture": machine.architecture, "variant": machine.variant,
        "config": {
            "Cmd": ["/umiak", "demo-web"],
            "Env": ["PATH=/"],
            "WorkingDir": "/",
            "User": "65534:65534",
            "ExposedPorts": { PORT: {} },
            "StopSignal": "SIGTERM",
        },
        "rootfs": { "type": "layers", "diff_ids": [layer] },
    })
    .to_string()
    .into_bytes()
}

/// Fills a directory with the program and what it needs; returns its size in bytes.
fn make_layer(root: &Path) -> Result<u64> {
    fs::create_dir(root).at("create", root)?;
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).at("create", root)?;
    let mut size = place(Path::new(PROGRAM), &root.join("umiak"))?;
    for library in libraries()? {
        let target = root.join(library.strip_prefix("/").unwrap_or(&library));
        let parent = target.parent().unwrap_or(root);
        fs::create_dir_all(parent).at("create", parent)?;
        // The program runs as nobody, whatever umask the daemon has.
        for made in parent.ancestors().take_while(|path| *path != root) {
            fs::set_permissions(made, fs::Permissions::from_mode(0o755)).at("change the mode of", made)?;
        }
        size += place(&library, &target)?;
    }
    Ok(size)
}

fn place(from: &Path, to: &Path) -> Result<u64> {
    let linked = nix::unistd::linkat(AT_FDCWD, from, AT_FDCWD, to, AtFlags::AT_SYMLINK_FOLLOW);
    if linked.is_err() {
        fs::copy(from, to).at("copy", from)?;
        fs::set_permissions(to, fs::Permissions::from_mode(0o755)).at("copy", from)?;
    }
    Ok(fs::metadata(to).at("read", to)?.size())
}

/// Shared objects mapped into this process, under the names the loader looks for them. None in a static program.
fn libraries() -> Result<BTreeSet<PathBuf>> {
    let maps = Path::new("/proc/self/maps");
    let text = fs::read_to_string(maps).at("read", maps)?;
    let mut all = BTreeSet::new();
    for path in text.lines().filter_map(|line| line.split_ascii_whitespace().nth(5)).filter(|p| p.starts_with('/')) {
        let file = path.rsplit('/').next().unwrap_or(path);
        if file.starts_with("ld-") || file.starts_with("ld64") {
            // The kernel finds the loader by the path in the program, which maps do not tell.
            all.extend(loader_names(Path::new(path)).at("read", Path::new(path))?);
        }
        if file.contains(".so") {
            all.insert(PathBuf::from(path));
        }
    }
    Ok(all)
}

/// The paths under /lib and /lib64 that lead to the loader.
fn loader_names(loader: &Path) -> io::Result<Vec<PathBuf>> {
    let inode = fs::metadata(loader)?.ino();
    let mut names = Vec::new();
    for directory in ["/lib64", "/lib"] {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("ld-") && fs::metadata(entry.path()).is_ok_and(|m| m.ino() == inode) {
                names.push(entry.path());
            }
        }
    }
    Ok(names)
}
