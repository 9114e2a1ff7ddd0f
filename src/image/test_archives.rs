//! Small image archives of every form, for tests.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use super::digest::Digest;
use super::platform::Machine;

/// A tar of regular files.
pub(super) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(super) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub(super) fn zstd(data: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
}

/// An image: layers as tars, and how the archive packs them.
#[derive(Clone)]
pub(super) struct TestImage {
    pub(super) layers: Vec<Vec<u8>>,
    pub(super) pack: fn(&[u8]) -> Vec<u8>,
    pub(super) architecture: String,
    pub(super) variant: String,
}

impl TestImage {
    /// For this machine; one layer for each text, holding the file `/fileN`.
    pub(super) fn new(texts: &[&str]) -> TestImage {
        let layer = |(n, text): (usize, &&str)| tar(&[(&format!("file{n}"), text.as_bytes())]);
        let machine = Machine::this().best();
        TestImage {
            layers: texts.iter().enumerate().map(layer).collect(),
            pack: <[u8]>::to_vec,
            architecture: machine.architecture,
            variant: machine.variant,
        }
    }

    pub(super) fn packed(self, pack: fn(&[u8]) -> Vec<u8>) -> TestImage {
        TestImage { pack, ..self }
    }

    pub(super) fn architecture(self, architecture: &str, variant: &str) -> TestImage {
        TestImage { architecture: architecture.to_owned(), variant: variant.to_owned(), ..self }
    }

    pub(super) fn config(&self) -> Vec<u8> {
        json!({
            "os": "linux", "architecture": self.architecture, "variant": self.variant,
            "created": "2026-01-01T00:00:00Z",
            "config": {
                "Entrypoint": ["/entry"], "Cmd": null, "Env": ["A=1"], "WorkingDir": "/w", "User": "7:8",
                "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGQUIT", "Volumes": {"/v": {}}, "Labels": {"l": "1"},
            },
            "rootfs": {"type": "layers", "diff_ids": self.layers.iter().map(|l| Digest::of(l)).collect::<Vec<_>>()},
        })
        .to_string()
        .into_bytes()
    }

    pub(super) fn id(&self) -> String {
        Digest::of(&self.config()).to_string()
    }

    fn manifest(&self, blobs: &mut Blobs) -> Value {
        let layers: Vec<Value> = self.layers.iter().map(|l| blobs.put((self.pack)(l), "layer")).collect();
        let config = blobs.put(self.config(), "config");
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string();
        let mut descriptor = blobs.put(manifest.into_bytes(), "application/vnd.oci.image.manifest.v1+json");
        descriptor["platform"] = json!({"os": "linux", "architecture": self.architecture, "variant": self.variant});
        descriptor
    }

    /// `docker save` before version 25: `ID.json` and `DIR/layer.tar`, no digests of layers.
    pub(super) fn docker(&self, tags: &[&str]) -> Vec<u8> {
        let id = Digest::of(&self.config());
        let config_name = format!("{}.json", id.hex());
        let layer_names: Vec<String> = (0..self.layers.len()).map(|n| format!("dir{n}/layer.tar")).collect();
        let packed: Vec<Vec<u8>> = self.layers.iter().map(|l| (self.pack)(l)).collect();
        let manifest = json!([{"Config": config_name, "RepoTags": tags, "Layers": layer_names}]).to_string();
        let config = self.config();
        let mut files: Vec<(&str, &[u8])> =
            layer_names.iter().zip(&packed).map(|(n, l)| (n.as_str(), l.as_slice())).collect();
        files.push((&config_name, &config));
        files.push(("manifest.json", manifest.as_bytes()));
        tar(&files)
    }

    /// `docker save` since version 25: a layout whose names stand in `manifest.json`.
    pub(super) fn docker_layout(&self, tags: &[&str]) -> Vec<u8> {
        let mut blobs = Blobs::default();
        let descriptor = self.manifest(&mut blobs);
        blobs.index(vec![descriptor]);
        let layers: Vec<String> =
            self.layers.iter().map(|l| format!("blobs/sha256/{}", Digest::of(&(self.pack)(l)).hex())).collect();
        let config = format!("blobs/sha256/{}", Digest::of(&self.config()).hex());
        let manifest = json!([{"Config": config, "RepoTags": tags, "Layers": layers}]).to_string();
        blobs.0.push(("manifest.json".to_owned(), manifest.into_bytes()));
        blobs.tar()
    }

    /// An OCI image layout; each name is given as the annotation of this key.
    pub(super) fn layout(&self, key: &str, names: &[&str]) -> Blobs {
        let mut blobs = Blobs::default();
        let descriptor = self.manifest(&mut blobs);
        let named = |name: &&str| {
            let mut descriptor = descriptor.clone();
            descriptor["annotations"] = json!({ key: name });
            descriptor
        };
        let mut all: Vec<Value> = names.iter().map(named).collect();
        if all.is_empty() {
            all.push(descriptor);
        }
        blobs.index(all);
        blobs
    }
}

/// A layout with one index of images for several machines under one name.
pub(super) fn multi_arch(images: &[TestImage], name: &str) -> Blobs {
    let mut blobs = Blobs::default();
    let manifests: Vec<Value> = images.iter().map(|i| i.manifest(&mut blobs)).collect();
    let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
    let mut descriptor = blobs.put(index.into_bytes(), "application/vnd.oci.image.index.v1+json");
    descriptor["annotations"] = json!({"io.containerd.image.name": name});
    blobs.index(vec![descriptor]);
    blobs
}

/// The files of a layout.
#[derive(Default)]
pub(super) struct Blobs(pub(super) Vec<(String, Vec<u8>)>);

impl Blobs {
    fn put(&mut self, data: Vec<u8>, media_type: &str) -> Value {
        let digest = Digest::of(&data);
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": data.len()});
        self.0.push((format!("blobs/sha256/{}", digest.hex()), data));
        descriptor
    }

    fn index(&mut self, manifests: Vec<Value>) {
        let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
        self.0.push(("index.json".to_owned(), index.into_bytes()));
        self.0.push(("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
    }

    pub(super) fn tar(&self) -> Vec<u8> {
        tar(&self.0.iter().map(|(name, data)| (name.as_str(), data.as_slice())).collect::<Vec<_>>())
    }

    pub(super) fn directory(&self, root: &Path) {
        for (name, data) in &self.0 {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, data).unwrap();
        }
    }
}
