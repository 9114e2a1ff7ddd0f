//! Which layers are mounted.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::digest::Digest;
use super::index::layer_name;

/// The mount tables of every mount namespace, as far as they speak of overlays.
///
/// Containers live in namespaces of their own, and a command like `umiak image rm` shares nothing with the daemon that
/// started them: the kernel's own tables are the one record that cannot be wrong. Reading them takes milliseconds, and
/// only removal does it.
pub(super) struct Mounted(Vec<Vec<String>>);

impl Mounted {
    pub(super) fn now() -> Mounted {
        let mut seen = HashSet::new();
        let mut overlays = Vec::new();
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let path = process.path();
            // Processes come and go while this runs: one that is gone has nothing mounted.
            let Some(namespace) = namespace(&path) else { continue };
            if seen.insert(namespace) {
                let table = fs::read_to_string(path.join("mountinfo")).unwrap_or_default();
                overlays.extend(table.lines().filter_map(layers));
            }
        }
        Mounted(overlays)
    }

    /// Whether a layer, by its directory's name, is in an overlay.
    pub(super) fn uses(&self, layer: &str) -> bool {
        self.0.iter().flatten().any(|l| l == layer)
    }

    /// Whether an overlay consists of just these layers, lowest first.
    pub(super) fn runs(&self, image: &[Digest]) -> bool {
        self.0.iter().any(|layers| layers.iter().eq(image.iter().rev().map(layer_name)))
    }
}

fn namespace(process: &Path) -> Option<u64> {
    process.file_name()?.to_str()?.parse::<u32>().ok()?;
    fs::metadata(process.join("ns/mnt")).ok().map(|m| m.ino())
}

/// Directory names of an overlay's lower layers, topmost first, as the options `lowerdir=A:B` or `lowerdir+=A` give them.
fn layers(mount: &str) -> Option<Vec<String>> {
    let (_, options) = mount.rsplit_once(" - overlay ")?;
    let lower = options
        .split([' ', ','])
        .filter_map(|option| option.strip_prefix("lowerdir=").or_else(|| option.strip_prefix("lowerdir+=")));
    let paths = lower.flat_map(|paths| paths.split(':'));
    Some(paths.filter_map(|path| path.rsplit('/').next()).map(str::to_owned).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_ways_of_naming_layers() {
        let head = "36 35 0:30 / /merged rw - overlay overlay rw,";
        for options in ["lowerdir=/s/layers/b:/s/layers/a,upperdir=/u,workdir=/w", "lowerdir+=b,lowerdir+=a,upperdir=u"]
        {
            let overlay = layers(&format!("{head}{options}")).unwrap();
            assert_eq!(overlay, ["b", "a"], "{options}");
        }
        assert_eq!(layers("22 1 8:1 / / rw - ext4 /dev/sda rw"), None);
    }
}
