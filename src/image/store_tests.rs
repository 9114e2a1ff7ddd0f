#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use super::super::test_archives::*;
use super::super::{DEMO_REFERENCE, ImageConfig, ImportOptions, Source};
use super::*;

struct Fixture {
    room: tempfile::TempDir,
    store: ImageStore,
}

/// Sees the mounts of this process only: other tests on this machine run containers, too.
fn open(room: &Path) -> ImageStore {
    ImageStore::open_beside(&room.join("images"), &room.join("proc")).unwrap()
}

fn fixture() -> Fixture {
    let room = tempfile::tempdir().unwrap();
    let own = room.path().join("proc").join(std::process::id().to_string());
    fs::create_dir(room.path().join("proc")).unwrap();
    std::os::unix::fs::symlink("/proc/self", own).unwrap();
    Fixture { store: open(room.path()), room }
}

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

impl Fixture {
    fn import(&self, archive: &[u8]) -> Result<Vec<String>> {
        self.import_as(archive, None)
    }

    /// From a file and as a stream in turn: both must give the same.
    fn import_as(&self, archive: &[u8], name: Option<&str>) -> Result<Vec<String>> {
        let options = ImportOptions { name: name.map(reference), pin: false };
        let path = self.room.path().join("archive.tar");
        fs::write(&path, archive).unwrap();
        let file = self.store.import(Source::Path(&path), &options, &mut |_| {});
        let mut bytes = archive;
        let stream = self.store.import(Source::Stream(&mut bytes, "a stream"), &options, &mut |_| {});
        assert_eq!(file.is_ok(), stream.is_ok(), "{file:?} {stream:?}");
        assert_eq!(self.entries("tmp"), 0, "nothing is left behind");
        Ok(file?.iter().map(Reference::to_string).collect())
    }

    fn entries(&self, directory: &str) -> usize {
        fs::read_dir(self.store.directory.join(directory)).unwrap().count()
    }

    fn get(&self, name: &str) -> Result<Image> {
        self.store.get(&reference(name))
    }

    fn is_present(&self, name: &str) -> bool {
        !matches!(self.get(name), Err(Error::NotPresent(_)))
    }

    fn reopen(&mut self) {
        self.store = open(self.room.path());
    }

    /// What the next boot finds after a power cut.
    fn power_cut(&mut self) {
        self.store.session.suspect = Some(self.store.session.boot.clone());
        relock(&self.store.verified).clear();
    }
}

fn texts(image: &Image) -> Vec<String> {
    let read = |(n, layer): (usize, &PathBuf)| fs::read_to_string(layer.join(format!("file{n}"))).unwrap();
    image.layers.iter().enumerate().map(read).collect()
}

#[test]
fn reads_every_form_of_archive() {
    let image = TestImage::new(&["one", "two"]);
    let name = "docker.io/library/app:1";
    for (form, archive) in [
        ("docker", image.docker(&["app:1"])),
        ("docker with gzip layers", image.clone().packed(gzip).docker(&["app:1"])),
        ("docker, gzip around", gzip(&image.docker(&["app:1"]))),
        ("docker, zstd around", zstd(&image.docker(&["app:1"]))),
        ("docker 25", image.docker_layout(&["app:1"])),
        ("layout", image.layout("io.containerd.image.name", &[name]).tar()),
        ("layout, gzip layers", image.clone().packed(gzip).layout("io.containerd.image.name", &[name]).tar()),
        ("layout, zstd layers", image.clone().packed(zstd).layout("io.containerd.image.name", &[name]).tar()),
        ("layout, OCI name", image.layout("org.opencontainers.image.ref.name", &["app:1"]).tar()),
    ] {
        let fixture = fixture();
        let names = fixture.import(&archive).unwrap_or_else(|e| panic!("{form}: {e}"));
        assert_eq!(names, [name], "{form}");
        let got = fixture.get("app:1").unwrap();
        assert_eq!((got.id.as_str(), texts(&got)), (image.id().as_str(), vec!["one".into(), "two".into()]), "{form}");
        assert_eq!((got.size, got.repo_tags.as_slice()), (6, &[name.to_owned()][..]), "{form}");
        fixture.store.verify(&reference(name)).unwrap();
    }
}

#[test]
fn reads_a_layout_directory() {
    let fixture = fixture();
    let source = tempfile::tempdir().unwrap();
    TestImage::new(&["one"]).layout("io.containerd.image.name", &["app"]).directory(source.path());
    fixture.store.import(Source::Path(source.path()), &ImportOptions::default(), &mut |_| {}).unwrap();
    assert_eq!(texts(&fixture.get("app").unwrap()), ["one"]);
}

#[test]
fn keeps_what_the_configuration_says() {
    let fixture = fixture();
    fixture.import(&TestImage::new(&["one"]).docker(&["app"])).unwrap();
    let expected = ImageConfig {
        entrypoint: vec!["/entry".to_owned()],
        cmd: Vec::new(),
        env: vec!["A=1".to_owned()],
        working_dir: "/w".to_owned(),
        user: "7:8".to_owned(),
        exposed_ports: vec!["80/tcp".to_owned()],
        stop_signal: Some("SIGQUIT".to_owned()),
        volumes: vec!["/v".to_owned()],
        labels: BTreeMap::from([("l".to_owned(), "1".to_owned())]),
    };
    assert_eq!(fixture.get("app").unwrap().config, expected);
    assert_eq!(fixture.store.list().unwrap()[0].created, "2026-01-01T00:00:00Z");
}

#[test]
fn takes_every_name_and_a_given_one_for_the_nameless() {
    let image = TestImage::new(&["one"]);
    let fixture = fixture();
    let names = fixture.import(&image.docker(&["app:1", "quay.io/x/app:2"])).unwrap();
    assert_eq!(names, ["docker.io/library/app:1", "quay.io/x/app:2"]);
    let by_digest = fixture.import(&image.layout("io.containerd.image.name", &["app:3"]).tar()).map(|_| {
        let digests = fixture.get("app:3").unwrap().repo_digests;
        assert_eq!(digests.len(), 1);
        fixture.get(&digests[0]).unwrap().id
    });
    assert_eq!(by_digest.unwrap(), image.id());
    for archive in [
        image.docker(&[]),
        image.layout("x", &[]).tar(),
        image.layout("org.opencontainers.image.ref.name", &["latest"]).tar(),
    ] {
        let error = fixture.import(&archive).unwrap_err().to_string();
        assert!(error.ends_with("archive.tar: the image in it has no name: give one with --name"), "{error}");
        assert_eq!(fixture.import_as(&archive, Some("given:9")).unwrap(), ["docker.io/library/given:9"]);
    }
}

#[test]
fn chooses_this_machines_image() {
    let fixture = fixture();
    let own = TestImage::new(&["mine"]);
    let foreign = TestImage::new(&["theirs"]).architecture("s390x", "");
    let both = multi_arch(&[foreign.clone(), own.clone()], "app");
    fixture.import(&both.tar()).unwrap();
    let got = fixture.get("app").unwrap();
    assert_eq!((texts(&got), got.repo_digests.len()), (vec!["mine".to_owned()], 2), "of the index and the manifest");

    // The others' blobs may be left out of the archive.
    let foreign_layer = foreign.layers[0].clone();
    let sparse = Blobs(both.0.into_iter().filter(|(_, data)| *data != foreign_layer).collect());
    fixture.import(&sparse.tar()).unwrap();

    for archive in [multi_arch(std::slice::from_ref(&foreign), "x").tar(), foreign.docker(&["x"])] {
        let error = fixture.import(&archive).unwrap_err().to_string();
        assert!(error.contains("linux/s390x") && error.contains("linux/"), "{error}");
        assert!(!fixture.is_present("x"));
    }
}

#[test]
fn a_bad_archive_leaves_nothing_and_says_why() {
    let image = TestImage::new(&["one", "two"]);
    let docker = image.docker(&["app"]);
    let layout = image.layout("io.containerd.image.name", &["app"]);
    let without = |end: &str| {
        Blobs(
            image
                .layout("io.containerd.image.name", &["app"])
                .0
                .into_iter()
                .filter(|(n, _)| !n.ends_with(end))
                .collect(),
        )
        .tar()
    };
    let layer_hex = Digest::of(&image.layers[1]).hex().to_owned();
    let changed = |end: &str| {
        let mut blobs = image.layout("io.containerd.image.name", &["app"]);
        for (name, data) in &mut blobs.0 {
            if name.ends_with(end) {
                let middle = data.len() / 2;
                data[middle] ^= 1;
            }
        }
        blobs.tar()
    };
    let config_hex = Digest::of(&image.config()).hex().to_owned();
    let mut flipped = docker.clone();
    let at = flipped.windows(3).position(|w| w == b"two").unwrap();
    flipped[at] ^= 1;
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("truncated in a layer", docker[..1800].to_vec(), "it is truncated"),
        ("truncated in a header", docker[..docker.len() - 1300].to_vec(), "it is truncated"),
        ("truncated gzip", gzip(&docker)[..300].to_vec(), ""),
        ("truncated zstd", zstd(&docker)[..300].to_vec(), ""),
        ("no archive", b"hello world, this is no tar archive at all".repeat(30), "not a tar archive"),
        ("empty", Vec::new(), "neither an OCI image layout"),
        ("another tar", tar(&[("a", b"b")]), "neither an OCI image layout"),
        ("ancient", tar(&[("repositories", b"{}")]), "Docker older than 1.10"),
        ("layer missing", without(&layer_hex), "is missing"),
        ("config missing", without(&config_hex), "is missing"),
        ("layer changed", changed(&layer_hex), "damaged"),
        ("config changed", changed(&config_hex), "damaged"),
        ("layer changed, no digest of the blob", flipped, "is damaged: unpacked its digest is"),
        ("index is no JSON", tar(&[("index.json", b"{")]), "index.json: EOF"),
        (
            "digest is a path",
            tar(&[("index.json", br#"{"manifests":[{"digest":"sha256:../../x"}]}"#)]),
            "not a sha256 digest",
        ),
        ("bad name", image.docker(&["Not/Valid"]), "invalid image name"),
        ("no image", tar(&[("manifest.json", b"[]")]), "it holds no image"),
    ];
    drop(layout);
    for (name, archive, expected) in cases {
        let fixture = fixture();
        let error = fixture.import(&archive).unwrap_err().to_string();
        assert!(error.starts_with("import /") && error.contains("archive.tar: "), "{name}: {error}");
        assert!(error.contains(expected) && !error.contains('\n'), "{name}: {error}");
        assert_eq!((fixture.entries("layers"), fixture.entries("blobs/sha256")), (0, 0), "{name}");
        assert!(fixture.store.list().unwrap().is_empty(), "{name}");
    }
}

#[test]
fn layers_are_shared_and_counted() {
    let fixture = fixture();
    fixture.import(&TestImage::new(&["base", "a"]).docker(&["a:1", "a:2"])).unwrap();
    fixture.import(&TestImage::new(&["base", "b"]).docker(&["b"])).unwrap();
    assert_eq!(fixture.entries("layers"), 3);
    let remove = |name: &str| fixture.store.remove(&reference(name), false);
    remove("a:1").unwrap();
    assert!(fixture.is_present("a:2"));
    remove("a:2").unwrap();
    assert_eq!((fixture.entries("layers"), fixture.entries("blobs/sha256")), (2, 1));
    assert_eq!(texts(&fixture.get("b").unwrap()), ["base", "b"]);
    assert!(matches!(remove("a:2"), Err(Error::NotPresent(_))));
    remove("b").unwrap();
    assert_eq!(fixture.entries("layers"), 0);
}

#[test]
fn an_image_that_loses_its_name_is_collected_unless_pinned() {
    let fixture = fixture();
    fixture.import(&TestImage::new(&["old"]).docker_layout(&["a"])).unwrap();
    fixture.store.pin(&reference("a"), true).unwrap();
    fixture.import(&TestImage::new(&["new"]).docker_layout(&["a"])).unwrap();
    assert_eq!(fixture.entries("layers"), 2, "pinned");
    fixture.import(&TestImage::new(&["newer"]).docker_layout(&["a"])).unwrap();
    assert_eq!(fixture.entries("layers"), 2, "not pinned");
    assert_eq!(texts(&fixture.get("a").unwrap()), ["newer"]);
}

#[test]
fn pinned_images_stay() {
    let fixture = fixture();
    fixture.import(&TestImage::new(&["one"]).docker(&["a"])).unwrap();
    fixture.store.pin(&reference("a"), true).unwrap();
    assert!(fixture.get("a").unwrap().pinned && fixture.store.list().unwrap()[0].pinned);
    assert!(matches!(fixture.store.remove(&reference("a"), false), Err(Error::Pinned { .. })));
    fixture.store.pin(&reference("a"), false).unwrap();
    fixture.store.remove(&reference("a"), false).unwrap();
}

/// An overlay of an image's layers; unmounted when dropped.
struct Mount(tempfile::TempDir);

impl Mount {
    fn of(image: &Image) -> Mount {
        let room = tempfile::tempdir().unwrap();
        for part in ["merged", "upper", "work"] {
            fs::create_dir(room.path().join(part)).unwrap();
        }
        let lower: Vec<String> = image.layers.iter().rev().map(|l| l.display().to_string()).collect();
        let at = |part: &str| room.path().join(part).display().to_string();
        let options = format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), at("upper"), at("work"));
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("overlay"), &room.path().join("merged"), Some("overlay"), flags, Some(options.as_str()))
            .unwrap();
        Mount(room)
    }

    fn read(&self, name: &str) -> std::io::Result<String> {
        fs::read_to_string(self.0.path().join("merged").join(name))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        nix::mount::umount(&self.0.path().join("merged")).unwrap();
    }
}

#[test]
fn an_image_in_use_is_kept_for_its_container() {
    let mut fixture = fixture();
    fixture.import(&TestImage::new(&["base", "a"]).docker(&["a"])).unwrap();
    fixture.import(&TestImage::new(&["base"]).docker(&["base"])).unwrap();
    let mount = Mount::of(&fixture.get("a").unwrap());
    assert_eq!(mount.read("file0").unwrap(), "base");
    fixture.store.remove(&reference("base"), false).unwrap();
    assert!(matches!(fixture.store.remove(&reference("a"), false), Err(Error::InUse { .. })));
    fixture.store.remove(&reference("a"), true).unwrap();
    assert!(!fixture.is_present("a"));
    fixture.reopen();
    assert_eq!(mount.read("file1").unwrap(), "a", "the container goes on");
    fixture.import(&TestImage::new(&["base", "a"]).docker(&["a"])).unwrap();
    assert_eq!(mount.read("file1").unwrap(), "a", "also when the image comes back");
    fixture.store.remove(&reference("a"), true).unwrap();
    drop(mount);
    fixture.reopen();
    assert_eq!(fixture.entries("layers"), 0, "and afterwards nothing is left");
}

#[test]
fn whiteouts_hide_lower_layers_in_a_real_overlay() {
    let fixture = fixture();
    let lower = tar(&[("a", b"1"), ("d/b", b"2"), ("e/c", b"3")]);
    let upper = tar(&[(".wh.a", b""), ("d/.wh..wh..opq", b""), ("d/new", b"4"), ("e/.wh.c", b"")]);
    let image = TestImage { layers: vec![lower, upper], ..TestImage::new(&[]) };
    fixture.import(&image.docker(&["a"])).unwrap();
    let mount = Mount::of(&fixture.get("a").unwrap());
    let gone = ["a", "d/b", "e/c"].map(|name| mount.read(name).is_err());
    assert_eq!((gone, mount.read("d/new").unwrap()), ([true; 3], "4".to_owned()));
    assert_eq!(fs::read_dir(mount.0.path().join("merged/e")).unwrap().count(), 0);
}

#[test]
fn another_process_sees_changes_at_once() {
    let fixture = fixture();
    let daemon = open(fixture.room.path());
    assert!(daemon.get(&reference("a")).is_err());
    fixture.import(&TestImage::new(&["one"]).docker(&["a"])).unwrap();
    assert_eq!(texts(&daemon.get(&reference("a")).unwrap()), ["one"]);
    fixture.store.remove(&reference("a"), false).unwrap();
    assert!(matches!(daemon.get(&reference("a")), Err(Error::NotPresent(_))));
}

#[test]
fn what_was_half_made_is_removed_at_opening_but_not_what_is_being_made() {
    let mut fixture = fixture();
    let stale = fixture.store.directory.join("tmp/killed");
    fs::create_dir(&stale).unwrap();
    fs::create_dir(fixture.store.directory.join("layers/0123456789abcdef0123456789abcdef")).unwrap();
    fs::write(fixture.store.directory.join("blobs/sha256/00"), "").unwrap();
    let room = fixture.store.room().unwrap();
    fixture.reopen();
    assert!(room.path.exists() && !stale.exists());
    assert_eq!((fixture.entries("layers"), fixture.entries("blobs/sha256")), (0, 0));
}

#[test]
fn damage_is_noticed_after_a_power_cut_and_repaired_by_importing_again() {
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 3] = [
        ("shortened", |layer| fs::write(layer.join("file0"), "").unwrap()),
        ("missing", |layer| fs::remove_dir_all(layer).unwrap()),
        ("changed", |layer| fs::write(layer.join("file0"), "eno").unwrap()),
    ];
    for (name, harm) in harms {
        let mut fixture = fixture();
        let archive = TestImage::new(&["one"]).docker(&["a"]);
        fixture.import(&archive).unwrap();
        let image = fixture.get("a").unwrap();
        harm(&image.layers[0]);
        fixture.power_cut();
        let error = fixture.get("a").unwrap_err().to_string();
        assert!(error.starts_with("image docker.io/library/a:latest is damaged (sha256:"), "{name}: {error}");
        assert!(fixture.store.verify(&reference("a")).is_err(), "{name}");
        fixture.import(&archive).unwrap();
        assert_eq!(texts(&fixture.get("a").unwrap()), ["one"], "{name}");
    }
}

#[test]
fn old_layers_are_only_looked_over_after_a_power_cut() {
    let mut fixture = fixture();
    fixture.import(&TestImage::new(&["one"]).docker(&["a"])).unwrap();
    fixture.power_cut();
    fixture.store.session.suspect = Some("a later boot than the import's".to_owned());
    let layer = fixture.get("a").unwrap().layers[0].clone();
    relock(&fixture.store.verified).clear();
    fs::write(layer.join("file0"), "eno").unwrap();
    fixture.get("a").unwrap();
    assert!(fixture.store.verify(&reference("a")).is_err(), "but on request every byte is read");
}

#[test]
fn a_damaged_configuration_or_index_is_told() {
    let fixture = fixture();
    let archive = TestImage::new(&["one"]).docker(&["a"]);
    fixture.import(&archive).unwrap();
    let blob = fs::read_dir(fixture.store.directory.join("blobs/sha256")).unwrap().next().unwrap().unwrap().path();
    fs::write(blob, "{}").unwrap();
    assert!(matches!(fixture.get("a"), Err(Error::Damaged { .. })));
    fixture.import(&archive).unwrap();
    fixture.get("a").unwrap();
    fs::write(fixture.store.directory.join("index.json"), "{\"version\":1,").unwrap();
    assert!(matches!(fixture.get("a"), Err(Error::NotPresent(_))));
    fixture.import(&archive).unwrap();
    assert_eq!(texts(&fixture.get("a").unwrap()), ["one"]);
}

#[test]
fn a_directory_is_imported_once_and_bad_archives_do_not_stop_good_ones() {
    let fixture = fixture();
    let source = tempfile::tempdir().unwrap();
    let put = |name: &str, data: &[u8]| fs::write(source.path().join(name), data).unwrap();
    put("a.tar", &TestImage::new(&["a"]).docker(&["a"]));
    put("b.tar", b"rubbish");
    put("c.tar.gz", &gzip(&TestImage::new(&["c"]).docker(&["c"])));
    put("README", b"not looked at");
    let run = || -> Vec<(String, bool)> {
        let results = fixture.store.import_directory(source.path());
        results
            .into_iter()
            .map(|(path, result)| (path.file_name().unwrap().to_string_lossy().into_owned(), result.is_ok()))
            .collect()
    };
    let bad = ("b.tar".to_owned(), false);
    assert_eq!(run(), [("a.tar".to_owned(), true), bad.clone(), ("c.tar.gz".to_owned(), true)]);
    assert_eq!(run(), std::slice::from_ref(&bad));
    fixture.store.remove(&reference("a"), false).unwrap();
    assert_eq!(run(), std::slice::from_ref(&bad), "what the operator removed does not come back by itself");
    put("a.tar", &TestImage::new(&["changed"]).docker(&["a"]));
    assert_eq!(run(), [("a.tar".to_owned(), true), bad]);
    assert_eq!(texts(&fixture.get("a").unwrap()), ["changed"]);
    assert!(fixture.store.import_directory(Path::new("/nonexistent")).is_empty());
}

#[test]
fn a_damaged_image_is_repaired_from_the_import_directory() {
    let mut fixture = fixture();
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("a.tar"), TestImage::new(&["a"]).docker(&["a"])).unwrap();
    fs::write(source.path().join("b.tar"), TestImage::new(&["b"]).docker(&["b"])).unwrap();
    fixture.store.import_directory(source.path());
    fs::write(fixture.get("a").unwrap().layers[0].join("file0"), "").unwrap();
    fixture.power_cut();
    let results = fixture.store.import_directory(source.path());
    assert!(matches!(&results[..], [(path, Ok(_))] if path.ends_with("a.tar")), "{results:?}");
    assert_eq!(texts(&fixture.get("a").unwrap()), ["a"]);
}

#[test]
fn the_demonstration_image_is_made_once_and_runs() {
    let mut fixture = fixture();
    fixture.store.ensure_demo().unwrap();
    let image = fixture.get(DEMO_REFERENCE).unwrap();
    assert_eq!(image.config.cmd, ["/umiak", "demo-web"]);
    assert!(image.pinned && image.size > 0);
    let inode = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(&image.layers[0]).unwrap());
    let first = inode();
    fixture.store.ensure_demo().unwrap();
    assert_eq!(inode(), first, "made once");

    // The program here is the test binary: that it starts at all in the image shows that all it needs is there.
    let output =
        std::process::Command::new("chroot").arg(&image.layers[0]).args(["/umiak", "--list"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");

    fixture.store.session.suspect = Some("earlier boot".to_owned());
    fixture.store.session.boot = "this boot".to_owned();
    fixture.store.ensure_demo().unwrap();
    assert_ne!(inode(), first, "made anew after a power cut");
    assert_eq!(fixture.entries("layers"), 1);
    fixture.reopen();
    assert_eq!(fixture.entries("layers"), 1);
}

#[test]
fn a_full_disk_fails_the_import_and_nothing_else() {
    use nix::mount::{MsFlags, mount};
    let work = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let fixture = fixture();
        let disk = fixture.room.path().join("disk");
        fs::create_dir(&disk).unwrap();
        mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
        let small = ImageStore::open_beside(&disk.join("images"), &fixture.room.path().join("proc")).unwrap();
        let fixture = Fixture { store: small, ..fixture };
        let big = TestImage::new(&[&"x".repeat(2 << 20)]);
        for archive in [big.docker(&["big"]), gzip(&big.docker(&["big"]))] {
            let error = fixture.import(&archive).unwrap_err().to_string();
            assert!(error.contains("No space left on device"), "{error}");
            assert_eq!((fixture.entries("layers"), fixture.store.list().unwrap().len()), (0, 0));
        }
        fixture.import(&TestImage::new(&["small"]).docker(&["small"])).unwrap();
    };
    if let Err(panic) = std::thread::spawn(work).join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn many_threads_may_share_a_store() {
    fn shared<T: Send + Sync>(_: &T) {}
    let fixture = fixture();
    shared(&fixture.store);
    let archives: Vec<Vec<u8>> =
        (0..4).map(|n| TestImage::new(&["base", &n.to_string()]).docker(&[&format!("a:{n}")])).collect();
    std::thread::scope(|scope| {
        for archive in &archives {
            scope.spawn(|| {
                // A store of its own, as another process has.
                let store = open(fixture.room.path());
                let mut bytes = archive.as_slice();
                store.import(Source::Stream(&mut bytes, "x"), &ImportOptions::default(), &mut |_| {}).unwrap();
            });
        }
    });
    assert_eq!(fixture.store.list().unwrap().len(), 4);
    assert_eq!((fixture.entries("layers"), fixture.entries("tmp")), (5, 0));
}

#[test]
fn what_is_not_present_says_how_to_get_it() {
    let error = fixture().get("nginx").unwrap_err().to_string();
    assert_eq!(
        error,
        "image docker.io/library/nginx:latest is not present on this node, and pulling from a registry is not \
         available: import it with `umiak image import ARCHIVE.tar`"
    );
}
