//! Which layers are mounted.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::digest::Digest;
use super::index::layer_name;

/// The layers of every overlay that is mounted, in whatever mount namespace.
///
/// Containers live in namespaces of their own, and a command like `umiak image rm` shares nothing with the daemon that
/// started them: the kernel's own tables are the one record that cannot be wrong. Reading them takes milliseconds, and
/// only removal does it.
///
/// The tables repeat the paths as mount(2) got them, so their last components are the layers' names. An overlay of bare
/// descriptors (`/proc/self/fd/N`) hides what it consists of: while there is one, every layer counts as used.
#[derive(Default)]
pub(super) struct Mounted {
    overlays: Vec<Vec<String>>,
    has_unknown: bool,
}

impl Mounted {
    /// As the processes of `proc` see it, a directory like `/proc`.
    pub(super) fn now(proc: &Path) -> Mounted {
        let mut seen = HashSet::new();
        let mut mounted = Mounted::default();
        for process in fs::read_dir(proc).into_iter().flatten().flatten() {
            let path = process.path();
            // Processes come and go while this runs: one that is gone has nothing mounted.
            let Some(namespace) = namespace(&path) else { continue };
            if seen.insert(namespace) {
                let table = fs::read_to_string(path.join("mountinfo")).unwrap_or_default();
                mounted.add(&table);
            }
        }
        mounted
    }

    fn add(&mut self, table: &str) {
        for lower in table.lines().filter_map(lower_directories) {
            self.has_unknown |= lower.iter().any(|path| is_descriptor(path));
            self.overlays.push(lower.iter().filter_map(|path| path.rsplit('/').next()).map(str::to_owned).collect());
        }
    }

    /// Whether a layer, by its directory's name, is in an overlay.
    pub(super) fn uses(&self, layer: &str) -> bool {
        self.has_unknown || self.overlays.iter().flatten().any(|l| l == layer)
    }

    /// Whether an overlay consists of just these layers, lowest first.
    pub(super) fn runs(&self, image: &[Digest]) -> bool {
        self.has_unknown || self.overlays.iter().any(|layers| layers.iter().eq(image.iter().rev().map(layer_name)))
    }
}

fn is_descriptor(path: &str) -> bool {
    path.rsplit_once('/').is_some_and(|(directory, _)| directory.starts_with("/proc/") && directory.ends_with("/fd"))
}

fn namespace(process: &Path) -> Option<u64> {
    process.file_name()?.to_str()?.parse::<u32>().ok()?;
    fs::metadata(process.join("ns/mnt")).ok().map(|m| m.ino())
}

/// An overlay's lower layers, topmost first, as the options `lowerdir=A:B` or `lowerdir+=A` give them.
fn lower_directories(mount: &str) -> Option<Vec<&str>> {
    let (_, options) = mount.rsplit_once(" - overlay ")?;
    let lower = options
        .split([' ', ','])
        .filter_map(|option| option.strip_prefix("lowerdir=").or_else(|| option.strip_prefix("lowerdir+=")));
    Some(lower.flat_map(|paths| paths.split(':')).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "36 35 0:30 / /merged rw - overlay overlay rw,";

    fn mounted(options: &str) -> Mounted {
        let mut mounted = Mounted::default();
        mounted.add(&format!("22 1 8:1 / / rw - ext4 /dev/sda rw\n{HEAD}{options}\n"));
        mounted
    }

    #[test]
    fn reads_every_way_of_naming_layers() {
        let image = [Digest::of(b"a"), Digest::of(b"b")];
        let [a, b] = [layer_name(&image[0]), layer_name(&image[1])];
        for (options, runs) in [
            (format!("lowerdir=/s/layers/{b}:/s/layers/{a},upperdir=/u,workdir=/w"), true),
            (format!("lowerdir={b}:{a},upperdir=/proc/self/fd/7,workdir=/w"), true),
            (format!("lowerdir=/proc/self/fd/5/{b}:/proc/self/fd/6/{a},upperdir=/proc/self/fd/7"), true),
            (format!("lowerdir+={b},lowerdir+={a},upperdir=u"), true),
            (format!("lowerdir={a}:{b}"), false),
            (format!("lowerdir=x:{b}:{a}"), false),
        ] {
            let mounted = mounted(&options);
            assert_eq!((mounted.runs(&image), mounted.uses(a), mounted.uses("c")), (runs, true, false), "{options}");
        }
    }

    #[test]
    fn an_overlay_that_hides_its_layers_may_use_any() {
        let mounted = mounted("lowerdir=/proc/self/fd/5:/proc/self/fd/6,upperdir=/proc/self/fd/7");
        assert!(mounted.uses("anything") && mounted.runs(&[Digest::of(b"a")]));
    }
}
