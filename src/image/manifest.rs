//! Finds the images of an archive: OCI image layouts and docker-archives of every age.
//!
//! Sources: OCI image layout and image index specifications; the `manifest.json` of `docker save`. An archive that is
//! both (`docker save` since version 25) is read as a layout, with the names of its `manifest.json`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::archive::Archive;
use super::digest::Digest;
use super::error::Result;
use super::platform::{Machine, Platform};
use super::{ImageConfig, Reference};

/// Manifests and configurations; the limit registries have.
const MAX_JSON: u64 = 4 << 20;
/// An index may name an index; deeper than this is a loop or a joke.
const MAX_DEPTH: usize = 4;
/// overlayfs stacks no more.
const MAX_LAYERS: usize = 500;
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const OCI_NAME: &str = "org.opencontainers.image.ref.name";

/// One image of an archive, for this machine.
pub(super) struct Found {
    pub(super) references: BTreeSet<Reference>,
    /// Digests it is known by in registries: of its manifest and of the indexes around that.
    pub(super) manifests: BTreeSet<Digest>,
    pub(super) id: Digest,
    pub(super) config: Vec<u8>,
    pub(super) created: String,
    pub(super) layers: Vec<FoundLayer>,
}

/// A layer's place in the archive.
pub(super) struct FoundLayer {
    pub(super) member: String,
    /// Digest of the member, where the archive states it.
    pub(super) packed: Option<Digest>,
    /// Digest of the unpacked tar.
    pub(super) diff_id: Digest,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: Digest,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// A manifest or an index; what it is shows by what it has.
#[derive(Deserialize)]
struct Document {
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// An image configuration file (OCI image specification, "Image Configuration").
#[derive(Deserialize)]
pub(super) struct ConfigFile {
    #[serde(flatten)]
    platform: Platform,
    #[serde(default)]
    created: Option<String>,
    config: Option<ConfigSection>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct ConfigSection {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    stop_signal: Option<String>,
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    labels: Option<BTreeMap<String, String>>,
}

impl ConfigFile {
    pub(super) fn into_config(self) -> ImageConfig {
        let c = self.config.unwrap_or_default();
        ImageConfig {
            entrypoint: c.entrypoint.unwrap_or_default(),
            cmd: c.cmd.unwrap_or_default(),
            env: c.env.unwrap_or_default(),
            working_dir: c.working_dir.unwrap_or_default(),
            user: c.user.unwrap_or_default(),
            exposed_ports: c.exposed_ports.unwrap_or_default().into_keys().collect(),
            stop_signal: c.stop_signal.filter(|s| !s.is_empty()),
            volumes: c.volumes.unwrap_or_default().into_keys().collect(),
            labels: c.labels.unwrap_or_default(),
        }
    }
}

/// Every image of the archive that has a name; `name` is for the one that has none.
pub(super) fn find(archive: &Archive, machine: &Machine, name: Option<&Reference>) -> Result<Vec<Found>> {
    let reader = Reader { archive, machine };
    let docker: Option<Vec<DockerImage>> = reader.json("manifest.json")?;
    let layout: Option<Document> = reader.json("index.json")?;
    let mut found = match (layout, docker) {
        (Some(layout), docker) => reader.layout(layout, docker.unwrap_or_default())?,
        (None, Some(docker)) => docker.into_iter().map(|image| reader.docker(image)).collect::<Result<_>>()?,
        (None, None) if archive.member("repositories")?.is_some() => {
            return Err(
                archive.error("it was saved by a Docker older than 1.10, in a form without digests: save it again")
            );
        }
        (None, None) => {
            return Err(
                archive.error("it is neither an OCI image layout (index.json) nor a docker-archive (manifest.json)")
            );
        }
    };
    found = merged(found);
    if found.is_empty() {
        return Err(archive.error("it holds no image"));
    }
    let unnamed: Vec<_> = found.iter_mut().filter(|f| f.references.is_empty()).collect();
    match (unnamed.len(), name) {
        (0, _) => {}
        (1, Some(name)) => unnamed.into_iter().for_each(|f| f.references.extend([name.clone()])),
        (1, None) => return Err(archive.error("the image in it has no name: give one with --name")),
        (n, _) => return Err(archive.error(format!("{n} images in it have no name"))),
    }
    Ok(found)
}

/// One entry an image, whatever number of times the archive names it.
fn merged(found: Vec<Found>) -> Vec<Found> {
    let mut by_id: BTreeMap<Digest, Found> = BTreeMap::new();
    for image in found {
        match by_id.get_mut(&image.id) {
            Some(same) => {
                same.references.extend(image.references);
                same.manifests.extend(image.manifests);
            }
            None => drop(by_id.insert(image.id.clone(), image)),
        }
    }
    by_id.into_values().collect()
}

struct Reader<'a> {
    archive: &'a Archive,
    machine: &'a Machine,
}

/// A manifest among the alternatives of one name.
struct Candidate {
    rank: Option<usize>,
    platform: Platform,
    digests: BTreeSet<Digest>,
    manifest: Digest,
}

impl Reader<'_> {
    fn layout(&self, layout: Document, docker: Vec<DockerImage>) -> Result<Vec<Found>> {
        let mut tags: BTreeMap<Digest, BTreeSet<Reference>> = BTreeMap::new();
        for image in docker {
            let (id, _) = self.docker_config(&image.config)?;
            tags.entry(id).or_default().extend(self.references(image.repo_tags.unwrap_or_default())?);
        }
        // Descriptors of one name are alternatives for different machines; those without a name are as well, unless
        // `manifest.json` names them.
        let mut groups: BTreeMap<Option<Reference>, Vec<Descriptor>> = BTreeMap::new();
        for descriptor in layout.manifests.unwrap_or_default() {
            groups.entry(self.annotated(&descriptor)?).or_default().push(descriptor);
        }
        let mut found = Vec::new();
        for (name, descriptors) in groups {
            let separate = name.is_none() && !tags.is_empty();
            let alternatives: Vec<Vec<Descriptor>> =
                if separate { descriptors.into_iter().map(|d| vec![d]).collect() } else { vec![descriptors] };
            for descriptors in alternatives {
                if let Some(mut image) = self.choose(descriptors, separate)? {
                    image.references.extend(name.clone());
                    image.references.extend(tags.get(&image.id).into_iter().flatten().cloned());
                    found.push(image);
                }
            }
        }
        Ok(found)
    }

    /// The alternative for this machine. Where `optional`, none fitting is no error.
    fn choose(&self, descriptors: Vec<Descriptor>, optional: bool) -> Result<Option<Found>> {
        let mut candidates = Vec::new();
        for descriptor in descriptors {
            self.candidates(descriptor, BTreeSet::new(), &mut candidates)?;
        }
        let Some(best) = candidates.iter().filter(|c| c.rank.is_some()).min_by_key(|c| c.rank) else {
            if optional {
                return Ok(None);
            }
            let there: BTreeSet<_> = candidates.iter().map(|c| c.platform.to_string()).collect();
            let there = there.into_iter().collect::<Vec<_>>().join(", ");
            return Err(self
                .archive
                .error(format!("no image in it is for {}; there is: {there}", self.machine.best())));
        };
        self.manifest(best).map(Some)
    }

    fn candidates(&self, descriptor: Descriptor, mut around: BTreeSet<Digest>, all: &mut Vec<Candidate>) -> Result<()> {
        if around.len() >= MAX_DEPTH {
            return Err(self.archive.error("its indexes are nested too deeply"));
        }
        around.insert(descriptor.digest.clone());
        let add = |platform: Platform, all: &mut Vec<Candidate>| {
            let rank = self.machine.rank(&platform);
            all.push(Candidate { rank, platform, digests: around.clone(), manifest: descriptor.digest.clone() });
        };
        // What is for another machine is often left out of the archive.
        if let Some(platform) = descriptor.platform.clone().filter(|p| self.machine.rank(p).is_none()) {
            add(platform, all);
            return Ok(());
        }
        let document: Document = self.parse(&self.blob(&descriptor.digest)?, descriptor.digest.as_str())?;
        if let Some(manifests) = document.manifests {
            return manifests.into_iter().try_for_each(|inner| self.candidates(inner, around.clone(), all));
        }
        let Some(config) = document.config else {
            return Err(self.archive.error(format!("manifest {} names no configuration", descriptor.digest)));
        };
        // The configuration of something that is no image (an attestation, a chart) does not parse as one.
        match descriptor.platform {
            Some(platform) if !platform.architecture.is_empty() => add(platform, all),
            _ => {
                let file: ConfigFile = self.parse(&self.blob(&config.digest)?, config.digest.as_str())?;
                add(file.platform, all);
            }
        }
        Ok(())
    }

    fn manifest(&self, candidate: &Candidate) -> Result<Found> {
        let document: Document = self.parse(&self.blob(&candidate.manifest)?, candidate.manifest.as_str())?;
        let (Some(config), Some(layers)) = (document.config, document.layers) else {
            return Err(self.archive.error(format!("manifest {} names no layers", candidate.manifest)));
        };
        let bytes = self.blob(&config.digest)?;
        let layers = layers.into_iter().map(|l| (blob_name(&l.digest), Some(l.digest))).collect();
        self.found(config.digest, bytes, layers, candidate.digests.clone())
    }

    fn docker(&self, image: DockerImage) -> Result<Found> {
        let (id, bytes) = self.docker_config(&image.config)?;
        let layers = image.layers.into_iter().map(|name| (name, None)).collect();
        let mut found = self.found(id, bytes, layers, BTreeSet::new())?;
        if self.machine.rank(&self.config(&found.config, &found.id)?.platform).is_none() {
            let platform = self.config(&found.config, &found.id)?.platform;
            return Err(self
                .archive
                .error(format!("the image in it is for {platform}, this machine is {}", self.machine.best())));
        }
        found.references = self.references(image.repo_tags.unwrap_or_default())?;
        Ok(found)
    }

    /// A docker-archive names the configuration's file by its digest; where the name has none the content decides.
    fn docker_config(&self, name: &str) -> Result<(Digest, Vec<u8>)> {
        let bytes = self.archive.read(name, MAX_JSON)?.ok_or_else(|| self.missing(name))?;
        let id = Digest::of(&bytes);
        let stem = name.rsplit('/').next().unwrap_or(name).trim_end_matches(".json");
        match format!("sha256:{stem}").parse::<Digest>() {
            Ok(named) if named != id => {
                Err(self.archive.error(format!("configuration {name} is damaged: its digest is {id}")))
            }
            _ => Ok((id, bytes)),
        }
    }

    fn found(
        &self,
        id: Digest,
        config: Vec<u8>,
        layers: Vec<(String, Option<Digest>)>,
        manifests: BTreeSet<Digest>,
    ) -> Result<Found> {
        let file = self.config(&config, &id)?;
        let diff_ids = file.rootfs.diff_ids;
        if diff_ids.len() != layers.len() || layers.is_empty() || layers.len() > MAX_LAYERS {
            return Err(self.archive.error(format!(
                "image {id} has {} layers, and its configuration {}",
                layers.len(),
                diff_ids.len()
            )));
        }
        let layers = layers
            .into_iter()
            .zip(diff_ids)
            .map(|((member, packed), diff_id)| FoundLayer { member, packed, diff_id })
            .collect();
        Ok(Found {
            references: BTreeSet::new(),
            manifests,
            id,
            config,
            created: file.created.unwrap_or_default(),
            layers,
        })
    }

    fn config(&self, bytes: &[u8], id: &Digest) -> Result<ConfigFile> {
        self.parse(bytes, id.as_str())
    }

    /// containerd's full name, or else the OCI name unless that is a mere tag.
    fn annotated(&self, descriptor: &Descriptor) -> Result<Option<Reference>> {
        let annotation = |key| descriptor.annotations.as_ref().and_then(|all| all.get(key));
        let name = annotation(CONTAINERD_NAME).or_else(|| annotation(OCI_NAME).filter(|n| n.contains(['/', ':', '@'])));
        Ok(self.references(name.cloned())?.into_iter().next())
    }

    fn references(&self, names: impl IntoIterator<Item = String>) -> Result<BTreeSet<Reference>> {
        names.into_iter().map(|n| n.parse::<Reference>().map_err(|e| self.archive.error(e.to_string()))).collect()
    }

    fn blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let name = blob_name(digest);
        let bytes = self.archive.read(&name, MAX_JSON)?.ok_or_else(|| self.missing(&name))?;
        match Digest::of(&bytes) {
            actual if actual == *digest => Ok(bytes),
            actual => Err(self.archive.error(format!("{name} is damaged: its digest is {actual}"))),
        }
    }

    fn missing(&self, name: &str) -> super::Error {
        self.archive.error(format!("{name} is missing: the archive is truncated or incomplete"))
    }

    fn json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        self.archive.read(name, MAX_JSON)?.map(|bytes| self.parse(&bytes, name)).transpose()
    }

    fn parse<T: DeserializeOwned>(&self, bytes: &[u8], name: &str) -> Result<T> {
        serde_json::from_slice(bytes).map_err(|e| self.archive.error(format!("{name}: {e}")))
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
