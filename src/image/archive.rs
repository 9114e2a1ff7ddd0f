//! Image archives as sets of named members: a tar or a directory, read in any order without holding them in memory.
//!
//! The order of a tar's members is not known beforehand, so a tar is walked once to learn where its members lie, and
//! read by position afterwards. Only what cannot be positioned (a stream, a packed tar) is first written plain to one
//! unlinked file in the store: a plain tar costs no flash beyond its layers.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::compression::{self, Compression};
use super::error::{At, Error, Result};
use super::progress::Told;
use super::tarball::{Kind, Seeking, Tar};
use super::{Progress, Source};

/// More members than any archive has: blobs, and three files a layer in old ones.
const MAX_MEMBERS: usize = 100_000;
const MAX_LINKS: usize = 8;
const BUFFER: usize = 1 << 20;

/// An opened archive.
pub(super) struct Archive {
    name: String,
    content: Content,
}

enum Content {
    Directory(PathBuf),
    Tar { file: Arc<File>, members: HashMap<String, Member> },
}

enum Member {
    Data {
        offset: u64,
        size: u64,
    },
    /// Another member's name: old docker archives share equal layers by links.
    Link(String),
}

impl Archive {
    /// Opens an archive; `spool` is a directory for what has to be written out first.
    pub(super) fn open(source: Source<'_>, spool: &Path, progress: &mut dyn FnMut(&Progress)) -> Result<Archive> {
        match source {
            Source::Path(path) => {
                let name = path.display().to_string();
                let metadata = fs::metadata(path).at("read", path)?;
                if metadata.is_dir() {
                    return Ok(Archive { name, content: Content::Directory(path.to_owned()) });
                }
                let mut file = File::open(path).at("open", path)?;
                if metadata.is_file() && is_plain(&mut file).at("read", path)? {
                    return Archive::index(name, file);
                }
                let total = metadata.is_file().then_some(metadata.len());
                Archive::spooled(name, &mut file, total, spool, progress)
            }
            Source::Stream(stream, name) => Archive::spooled(name.to_owned(), stream, None, spool, progress),
        }
    }

    fn spooled(
        name: String,
        stream: &mut dyn Read,
        total: Option<u64>,
        spool: &Path,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Archive> {
        let path = spool.join("archive");
        let mut file = File::options().read(true).write(true).create_new(true).open(&path).at("create", &path)?;
        // The open file is all that is needed; so it is gone however this ends.
        fs::remove_file(&path).at("remove", &path)?;
        let mut counted = Told::new(stream, "reading", total, progress);
        let unpacked = compression::decompress(&mut counted)
            .map_err(Failure::Read)
            .and_then(|mut plain| copy(&mut plain, &mut file));
        match unpacked {
            Ok(()) => {}
            Err(Failure::Read(e)) => return Err(Error::Archive { archive: name, problem: describe(&e) }),
            Err(Failure::Write(e)) => return Err(e).at("write", &path),
        }
        file.rewind().at("read", &path)?;
        Archive::index(name, file)
    }

    /// Learns where the members of a plain tar lie.
    fn index(name: String, file: File) -> Result<Archive> {
        let problem = |e: &io::Error| Error::Archive { archive: name.clone(), problem: describe(e) };
        let mut members = HashMap::new();
        let mut tar = Tar::new(Seeking::new(file.try_clone().map_err(|e| problem(&e))?).map_err(|e| problem(&e))?);
        while let Some(entry) = tar.next().map_err(|e| problem(&e))? {
            let (Some(path), link) = (normal(&String::from_utf8_lossy(&entry.path)), &entry.link) else { continue };
            let link = String::from_utf8_lossy(link).into_owned();
            let member = match entry.kind {
                Kind::File => Member::Data { offset: tar.position(), size: entry.size },
                Kind::HardLink => Member::Link(link),
                Kind::Symlink => Member::Link(beside(&path, &link)),
                _ => continue,
            };
            if members.insert(path, member).is_none() && members.len() > MAX_MEMBERS {
                return Err(Error::Archive { archive: name, problem: "it has too many members".to_owned() });
            }
        }
        Ok(Archive { name, content: Content::Tar { file: Arc::new(file), members } })
    }

    /// A member's data and size; none where there is no such member.
    pub(super) fn member(&self, name: &str) -> Result<Option<(Box<dyn Read + '_>, u64)>> {
        match &self.content {
            Content::Directory(root) => {
                let Some(path) = normal(name).map(|n| root.join(n)) else { return Ok(None) };
                match fs::metadata(&path) {
                    Ok(m) if m.is_file() => Ok(Some((Box::new(File::open(&path).at("open", &path)?), m.len()))),
                    Ok(_) => Ok(None),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(e) => Err(e).at("read", &path),
                }
            }
            Content::Tar { file, members } => {
                let mut name = normal(name);
                for _ in 0..MAX_LINKS {
                    match name.as_ref().and_then(|n| members.get(n)) {
                        None => return Ok(None),
                        Some(Member::Link(target)) => name = normal(target),
                        Some(Member::Data { offset, size }) => {
                            let section = Section { file: file.clone(), offset: *offset, left: *size };
                            return Ok(Some((Box::new(section), *size)));
                        }
                    }
                }
                Ok(None)
            }
        }
    }

    /// A small member as a whole; none where there is no such member.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some((mut data, size)) = self.member(name)? else { return Ok(None) };
        if size > limit {
            return Err(self.error(format!("{name} has {size} bytes, more than the {limit} allowed")));
        }
        let mut bytes = Vec::with_capacity(size as usize);
        data.read_to_end(&mut bytes).map_err(|e| self.error(format!("{name}: {}", describe(&e))))?;
        Ok(Some(bytes))
    }

    /// An error about this archive.
    pub(super) fn error(&self, problem: impl Into<String>) -> Error {
        Error::Archive { archive: self.name.clone(), problem: problem.into() }
    }
}

/// One member of a tar, read by position.
struct Section {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.file.read_at(&mut buffer[..wanted], self.offset)?;
        if n == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}

enum Failure {
    Read(io::Error),
    Write(io::Error),
}

/// `io::copy`, but telling which side failed: a full disk is not a damaged archive.
fn copy(from: &mut dyn Read, to: &mut File) -> std::result::Result<(), Failure> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer).map_err(Failure::Read)? {
            0 => return Ok(()),
            n => to.write_all(&buffer[..n]).map_err(Failure::Write)?,
        }
    }
}

fn is_plain(file: &mut File) -> io::Result<bool> {
    let mut head = [0; 4];
    let n = file.read_at(&mut head, 0)?;
    Ok(compression::detect(&head[..n]) == Compression::None)
}

/// What an I/O error means to someone who holds a bad archive.
pub(super) fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "it is truncated".to_owned(),
        _ => error.to_string(),
    }
}

/// `./a//b` as `a/b`; none for names that lead out of the archive.
fn normal(name: &str) -> Option<String> {
    let mut parts = Vec::new();
    for component in Path::new(name.trim_start_matches('/')).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            Component::ParentDir => drop(parts.pop()?),
            _ => return None,
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// A symbolic link's target, which counts from the directory of the link.
fn beside(path: &str, target: &str) -> String {
    match path.rsplit_once('/') {
        Some((directory, _)) if !target.starts_with('/') => format!("{directory}/{target}"),
        _ => target.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        for (name, expected) in [
            ("a/b", Some("a/b")),
            ("./a//b/.", Some("a/b")),
            ("/a", Some("a")),
            ("a/../b", Some("b")),
            ("../a", None),
            ("a/../../b", None),
            ("", None),
            (".", None),
        ] {
            assert_eq!(normal(name).as_deref(), expected, "{name}");
        }
        assert_eq!(normal(&beside("x/layer.tar", "../y/layer.tar")).as_deref(), Some("y/layer.tar"));
    }
}
