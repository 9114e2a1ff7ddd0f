#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::super::digest::Hashing;
use super::*;

/// Makes small layers.
struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    fn new() -> Layer {
        Layer(tar::Builder::new(Vec::new()))
    }

    fn entry(mut self, kind: tar::EntryType, path: &str, link: &str, data: &str, mode: u32) -> Layer {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(12);
        header.set_gid(34);
        header.set_mtime(1_000_000);
        header.set_size(data.len() as u64);
        let name = &mut header.as_old_mut().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        header.set_cksum();
        self.0.append(&header, data.as_bytes()).unwrap();
        self
    }

    fn file(self, path: &str, data: &str) -> Layer {
        self.entry(tar::EntryType::Regular, path, "", data, 0o644)
    }

    fn directory(self, path: &str) -> Layer {
        self.entry(tar::EntryType::Directory, path, "", "", 0o750)
    }

    fn symlink(self, path: &str, target: &str) -> Layer {
        self.entry(tar::EntryType::Symlink, path, target, "", 0o777)
    }

    fn hard_link(self, path: &str, target: &str) -> Layer {
        self.entry(tar::EntryType::Link, path, target, "", 0o644)
    }

    /// Unpacks into `T/layer`, so that what escapes lands in `T`.
    fn unpack(self) -> (tempfile::TempDir, io::Result<u64>) {
        let room = tempfile::tempdir().unwrap();
        fs::create_dir(room.path().join("layer")).unwrap();
        let bytes = self.0.into_inner().unwrap();
        let result = unpack(&mut Tar::new(Hashing::new(&bytes[..])), &room.path().join("layer"));
        let strangers = fs::read_dir(room.path()).unwrap().count();
        assert_eq!(strangers, 1, "nothing may appear beside the layer");
        (room, result)
    }

    fn unpacked(self) -> tempfile::TempDir {
        let (room, result) = self.unpack();
        result.unwrap();
        room
    }
}

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
}

fn is_opaque(path: &Path) -> bool {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let name = CString::new(OPAQUE_XATTR).unwrap();
    // SAFETY: both strings are NUL-terminated; size 0 asks for the length only.
    unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) == 1 }
}

#[test]
fn keeps_owners_modes_times_and_kinds() {
    let room = Layer::new()
        .directory("d/")
        .entry(tar::EntryType::Regular, "d/f", "", "abc", 0o4755)
        .symlink("d/l", "/etc/passwd")
        .hard_link("d/h", "d/f")
        .entry(tar::EntryType::Char, "null", "", "", 0o666)
        .entry(tar::EntryType::Fifo, "fifo", "", "", 0o622)
        .file("x/y/z", "made parents")
        .unpacked();
    let at = |name: &str| fs::symlink_metadata(room.path().join("layer").join(name)).unwrap();
    let file = at("d/f");
    assert_eq!((file.mode(), file.uid(), file.gid(), file.mtime(), file.nlink()), (0o104755, 12, 34, 1_000_000, 2));
    assert_eq!((at("d").mode(), at("d").mtime(), at("d").uid()), (0o40750, 1_000_000, 12));
    assert_eq!(fs::read_link(room.path().join("layer/d/l")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!((at("d/l").uid(), at("d/l").mtime()), (12, 1_000_000));
    assert_eq!(at("d/h").ino(), file.ino());
    assert_eq!((at("null").mode(), at("null").rdev()), (0o20666, libc::makedev(1, 3)));
    assert_eq!(at("fifo").mode(), 0o10622);
    assert_eq!((at("x/y").mode(), at("x/y").uid()), (0o40755, 0));
}

#[test]
fn writes_whiteouts_as_overlayfs_reads_them() {
    let room = Layer::new()
        .directory("a/")
        .file("a/.wh.gone", "")
        .file("a/own", "stays")
        .file("a/.wh.own", "")
        .directory("b/")
        .file("b/.wh..wh..opq", "")
        .file(".wh.replaced", "")
        .file("replaced/file", "")
        .directory("kept/")
        .file(".wh.kept", "")
        .file(".wh..wh.plnk", "")
        .unpacked();
    let layer = room.path().join("layer");
    assert!(is_whiteout(&layer.join("a/gone")));
    assert_eq!(fs::read_to_string(layer.join("a/own")).unwrap(), "stays");
    assert!(!is_opaque(&layer.join("a")) && is_opaque(&layer.join("b")));
    assert!(is_opaque(&layer.join("replaced")) && is_opaque(&layer.join("kept")));
    let names: Vec<_> = fs::read_dir(&layer).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!names.iter().any(|n| n.to_string_lossy().starts_with(".wh.")), "{names:?}");
}

#[test]
fn the_last_entry_of_a_name_wins() {
    let room = Layer::new()
        .file("a", "1")
        .file("a", "22")
        .directory("b/")
        .file("b/inside", "")
        .file("b", "now a file")
        .file("c", "")
        .directory("c/")
        .symlink("d", "a")
        .file("d", "not through the link")
        .unpacked();
    let layer = room.path().join("layer");
    assert_eq!(fs::read_to_string(layer.join("a")).unwrap(), "22");
    assert_eq!(fs::read_to_string(layer.join("b")).unwrap(), "now a file");
    assert!(layer.join("c").is_dir());
    assert!(fs::symlink_metadata(layer.join("d")).unwrap().is_file());
}

#[test]
fn links_lead_inside_the_layer_only() {
    let room = Layer::new()
        .directory("etc/")
        .symlink("absolute", "/etc")
        .symlink("up", "../../../../etc")
        .file("absolute/one", "1")
        .file("up/two", "2")
        .hard_link("three", "/absolute/one")
        .unpacked();
    let layer = room.path().join("layer");
    for (name, content) in [("etc/one", "1"), ("etc/two", "2"), ("three", "1")] {
        assert_eq!(fs::read_to_string(layer.join(name)).unwrap(), content, "{name}");
    }
}

#[test]
fn refuses_what_would_escape_or_make_no_sense() {
    let outside = tempfile::NamedTempFile::new().unwrap();
    let outside_path = outside.path().to_str().unwrap();
    let cases = [
        ("dots", Layer::new().file("../evil", "")),
        ("inner dots", Layer::new().file("a/../../evil", "")),
        ("whiteout of dots", Layer::new().file(".wh...", "")),
        ("whiteout of nothing", Layer::new().file(".wh.", "")),
        ("whiteout of dot", Layer::new().file(".wh..", "")),
        ("link to outside", Layer::new().hard_link("x", outside_path)),
        ("link with dots", Layer::new().hard_link("x", "../../x")),
        ("through a file", Layer::new().file("f", "").file("f/g", "")),
        ("through a link out of the layer", Layer::new().symlink("out", "/proc/self/root/tmp").file("out/evil", "")),
        ("loop", Layer::new().symlink("a", "b").symlink("b", "a").file("a/x", "")),
        ("owner", Layer::new().entry(tar::EntryType::GNUSparse, "s", "", "", 0)),
    ];
    for (name, layer) in cases {
        let (_room, result) = layer.unpack();
        assert!(result.is_err(), "{name}");
    }
    assert_eq!(fs::metadata(outside.path()).unwrap().nlink(), 1);
}

#[test]
fn sets_only_harmless_attributes() {
    for (name, kept) in [
        ("security.capability", true),
        ("user.mime", true),
        ("system.posix_acl_access", true),
        ("trusted.overlay.redirect", false),
        ("trusted.overlay.opaque", false),
        ("user.overlay.opaque", false),
        ("security.selinux", false),
    ] {
        assert_eq!(is_kept(name), kept, "{name}");
    }
}
