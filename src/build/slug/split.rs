//! From the compiled `/app`, as the engine streams it, to layers, on the fly.

use std::{
    collections::{HashMap, HashSet},
    io::{self, Read, Write},
    path::PathBuf,
};

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
use tar::{Entry, EntryType};

use super::{
    layer::{LayerWriter, RawLayer, in_app},
    shadow::Shadow,
    sizes::{Sizes, human_size},
    spool::Spool,
};
use crate::build::source::{Kind, SourceEntry, lossy};

/// Why the compiled app cannot become a slug.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// The stream broke, or the disk is full.
    #[error("the compiled app could not be read: {0}")]
    Io(#[from] io::Error),
    /// Something that an image must not hold.
    #[error("the build left {what} at {path}; remove it at the end of the build")]
    Refused { path: String, what: &'static str },
    /// Larger than allowed.
    #[error("the slug has {}; at most {} are allowed", human_size(*size), human_size(*limit))]
    TooLarge { size: u64, limit: u64, largest: Vec<String> },
    /// Each path is kept in memory, whatever the file weighs.
    #[error("the build left more than {ENTRIES} files, or more than {} MiB of paths; remove caches and the like at its end", PATHS >> 20)]
    TooMany,
}

/// A directory that becomes a layer of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDirectory {
    pub name: String,
    /// Relative to the app.
    pub path: Vec<u8>,
}

/// Layers that a build may ask for; an image can have 127.
const LAYERS: usize = 32;
/// Files and folders that a build may leave, and bytes of their paths.
const ENTRIES: usize = 500_000;
const PATHS: usize = 128 << 20;
/// Hard links across layers that are resolved; each costs a request to the engine.
const COPIES: usize = 1000;

impl LayerDirectory {
    /// Reads `/meta/layers`: `NAME<TAB>PATH` a line. Lines that name nothing below the app are left out.
    pub fn parse(text: &str) -> Vec<Self> {
        let mut found: Vec<Self> = Vec::new();
        for (name, path) in text.lines().filter_map(|line| line.split_once('\t')) {
            let path = path.trim().trim_end_matches('/');
            let path = path.strip_prefix("./").unwrap_or(path);
            let path = path.strip_prefix("/app/").unwrap_or(path);
            let proper = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
            let name: String =
                name.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).take(40).collect();
            let new = !found.iter().any(|other| other.path == path.as_bytes());
            if proper && new && !name.is_empty() && found.len() < LAYERS {
                found.push(Self { name, path: path.as_bytes().to_vec() });
            }
        }
        found
    }
}

/// What the split goes by.
pub struct SplitPlan<'e> {
    pub directories: Vec<LayerDirectory>,
    /// What the source is, so that it can be told from what the build made.
    pub source: &'e [SourceEntry],
    /// Where large layers are spooled.
    pub scratch: PathBuf,
    /// Largest sum of all files, bytes.
    pub limit: u64,
}

/// Where a file goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Directory(usize),
    Changes,
}

/// A hard link whose other end is in another layer: it becomes a copy.
#[derive(Debug, Clone)]
pub struct Copy {
    /// Relative to the app.
    path: Vec<u8>,
    /// What it is linked to, relative to the app.
    pub target: Vec<u8>,
    place: Place,
}

/// Takes the stream apart.
pub struct Splitter {
    directories: Vec<LayerDirectory>,
    source: HashMap<Vec<u8>, (Kind, git2::Oid)>,
    source_directories: HashSet<Vec<u8>>,
    scratch: PathBuf,
    limit: u64,
    layers: Vec<LayerWriter>,
    changes: LayerWriter,
    /// Files in the layer of changes, for hard links.
    changed: HashSet<Vec<u8>>,
    seen: HashSet<Vec<u8>>,
    shadow: Shadow,
    sizes: Sizes,
    copies: Vec<Copy>,
    /// What is left of [`ENTRIES`] and [`PATHS`].
    entries: usize,
    paths: usize,
}

/// The compiled app as layers.
#[derive(Debug)]
pub struct SplitSlug {
    /// From the bottom; the source layer is not among them. Empty ones are left out.
    pub layers: Vec<RawLayer>,
    pub shadow: Shadow,
    /// Bytes of all files but those of the source layer.
    pub sizes: Sizes,
}

impl Splitter {
    /// Nothing read yet.
    pub fn new(plan: SplitPlan<'_>) -> io::Result<Self> {
        let mut shadow = Shadow::default();
        let mut layers = Vec::new();
        for directory in &plan.directories {
            layers.push(LayerWriter::new(&directory.name, &plan.scratch)?);
            shadow.add(&directory.path);
        }
        let mut source_directories = HashSet::new();
        for entry in plan.source {
            for (at, _) in entry.path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
                if !source_directories.contains(&entry.path[..at]) {
                    source_directories.insert(entry.path[..at].to_vec());
                }
            }
        }
        Ok(Self {
            directories: plan.directories,
            source: plan.source.iter().map(|entry| (entry.path.clone(), (entry.kind, entry.oid))).collect(),
            source_directories,
            changes: LayerWriter::new("build", &plan.scratch)?,
            scratch: plan.scratch,
            limit: plan.limit,
            layers,
            changed: HashSet::new(),
            seen: HashSet::new(),
            shadow,
            sizes: Sizes::default(),
            copies: Vec::new(),
            entries: ENTRIES,
            paths: PATHS,
        })
    }

    /// Reads the whole stream; its entries begin with `app/`. Blocking.
    pub fn read(&mut self, stream: &mut dyn Read) -> Result<(), SplitError> {
        let mut archive = tar::Archive::new(stream);
        for entry in archive.entries()? {
            let entry = entry?;
            let path = self.path_in_app(&entry.path_bytes())?;
            let left = self.entries.checked_sub(1).zip(self.paths.checked_sub(path.len()));
            (self.entries, self.paths) = left.ok_or(SplitError::TooMany)?;
            if !path.is_empty() {
                self.entry(entry, path)?;
            }
            // What is large is known well enough; a sparse file alone could go on for hours.
            if self.sizes.total() > self.limit.saturating_mul(2) {
                break;
            }
        }
        self.check_size()
    }

    fn check_size(&self) -> Result<(), SplitError> {
        let (size, limit) = (self.sizes.total(), self.limit);
        if size > limit {
            return Err(SplitError::TooLarge { size, limit, largest: self.sizes.largest() });
        }
        Ok(())
    }

    /// The hard links that have to be copied: give each one's content to [`Self::copy`].
    pub fn take_copies(&mut self) -> Vec<Copy> {
        std::mem::take(&mut self.copies)
    }

    /// Writes a copy of the file that `stream` has as its only entry.
    pub fn copy(&mut self, copy: &Copy, stream: &mut dyn Read) -> Result<(), SplitError> {
        let mut archive = tar::Archive::new(stream);
        let entry = archive.entries()?.next().ok_or_else(|| refused(&copy.path, "a hard link to nothing"))??;
        if entry.header().entry_type() != EntryType::Regular {
            return Err(refused(&copy.path, "a hard link to what is no file"));
        }
        self.file(entry, &copy.path, copy.place)
    }

    /// The layers.
    pub fn finish(mut self) -> Result<SplitSlug, SplitError> {
        self.check_size()?;
        for path in self.source.keys() {
            if !self.seen.contains(path) && !self.shadow.hides(path) {
                self.shadow.add(path);
            }
        }
        let mut layers = Vec::new();
        for writer in self.layers.into_iter().chain([self.changes]).filter(|writer| !writer.is_empty()) {
            layers.push(writer.finish()?);
        }
        Ok(SplitSlug { layers, shadow: self.shadow, sizes: self.sizes })
    }

    /// The path relative to the app, checked.
    fn path_in_app(&self, path: &[u8]) -> Result<Vec<u8>, SplitError> {
        let path = path.strip_prefix(b"./").unwrap_or(path);
        let path = path.strip_suffix(b"/").unwrap_or(path);
        let inner = match path.strip_prefix(b"app") {
            Some(b"") => return Ok(Vec::new()),
            Some([b'/', inner @ ..]) => inner,
            _ => return Err(refused(path, "a path outside the app")),
        };
        let proper = inner.split(|byte| *byte == b'/').all(|part| !matches!(part, b"" | b"." | b".."));
        if proper { Ok(inner.to_vec()) } else { Err(refused(path, "a path outside the app")) }
    }

    fn place(&self, path: &[u8]) -> Place {
        let holds = |directory: &LayerDirectory| {
            path.strip_prefix(directory.path.as_slice()).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        };
        let holding = self.directories.iter().enumerate().filter(|(_, directory)| holds(directory));
        let closest = holding.max_by_key(|(_, directory)| directory.path.len());
        closest.map_or(Place::Changes, |(index, _)| Place::Directory(index))
    }

    fn writer(&mut self, place: Place) -> &mut LayerWriter {
        match place {
            Place::Directory(index) => &mut self.layers[index],
            Place::Changes => &mut self.changes,
        }
    }

    fn entry(&mut self, entry: Entry<'_, &mut dyn Read>, path: Vec<u8>) -> Result<(), SplitError> {
        let place = self.place(&path);
        match entry.header().entry_type() {
            EntryType::Directory => self.directory(&path, entry.header().mode()?, place),
            EntryType::Regular | EntryType::Continuous => {
                if place == Place::Changes && self.source.contains_key(&path) {
                    self.source_file(entry, &path)
                } else {
                    self.file(entry, &path, place)
                }
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                self.symlink(&path, &target, place)
            }
            EntryType::Link => {
                let target = self.path_in_app(&entry.link_name_bytes().unwrap_or_default())?;
                self.hard_link(path, entry.header().mode()?, target, place)
            }
            EntryType::Char | EntryType::Block => Err(refused(&path, "a device node")),
            EntryType::Fifo => Err(refused(&path, "a named pipe")),
            _ => Err(refused(&path, "something that is no file, link or directory")),
        }
    }

    fn directory(&mut self, path: &[u8], mode: u32, place: Place) -> Result<(), SplitError> {
        if place == Place::Changes {
            if self.source_directories.contains(path) {
                return Ok(());
            }
            self.mark_added(path);
        }
        Ok(self.writer(place).tar.directory(&in_app(path), mode)?)
    }

    /// A file of the source: as it was, it is left to the source layer; else it is a change.
    fn source_file(&mut self, mut entry: Entry<'_, &mut dyn Read>, path: &[u8]) -> Result<(), SplitError> {
        let mode = entry.header().mode()?;
        self.seen.insert(path.to_vec());
        if self.sizes.total().saturating_add(entry.size()) > self.limit {
            // Too large, changed or not: in one layer or another it is part of the slug.
            self.sizes.add(path, entry.size());
            return Ok(());
        }
        let mut content = Spool::new(&self.scratch);
        let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
        context.update(format!("blob {}\0", entry.size()).as_bytes());
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = entry.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            context.update(&buffer[..length]);
            content.write_all(&buffer[..length])?;
        }
        let kind = if mode & 0o100 != 0 { Kind::Executable } else { Kind::File };
        let same = |(was, oid): &(Kind, git2::Oid)| *was == kind && oid.as_bytes() == context.clone().finish().as_ref();
        if self.source.get(path).is_some_and(same) {
            return Ok(());
        }
        self.shadow.add(path);
        self.changed.insert(path.to_vec());
        self.sizes.add(path, content.len());
        Ok(self.changes.tar.file(&in_app(path), mode, content.len(), content.reader()?)?)
    }

    fn file(&mut self, entry: Entry<'_, &mut dyn Read>, path: &[u8], place: Place) -> Result<(), SplitError> {
        let (mode, size) = (entry.header().mode()?, entry.size());
        self.sizes.add(path, size);
        if place == Place::Changes {
            self.mark_added(path);
            self.changed.insert(path.to_vec());
        }
        if self.sizes.total() > self.limit {
            // Too large already; the rest is only counted, to say what is large.
            return Ok(());
        }
        Ok(self.writer(place).tar.file(&in_app(path), mode, size, entry)?)
    }

    fn symlink(&mut self, path: &[u8], target: &[u8], place: Place) -> Result<(), SplitError> {
        if place == Place::Changes {
            if let Some((Kind::Symlink, oid)) = self.source.get(path) {
                let same = git2::Oid::hash_object(git2::ObjectType::Blob, target).is_ok_and(|now| now == *oid);
                self.seen.insert(path.to_vec());
                if same {
                    return Ok(());
                }
            }
            self.mark_added(path);
        }
        Ok(self.writer(place).tar.symlink(&in_app(path), target)?)
    }

    fn hard_link(&mut self, path: Vec<u8>, mode: u32, target: Vec<u8>, place: Place) -> Result<(), SplitError> {
        let together = match place {
            Place::Directory(_) => self.place(&target) == place,
            Place::Changes => self.changed.contains(&target) && !self.source.contains_key(&path),
        };
        if together {
            if place == Place::Changes {
                self.mark_added(&path);
                self.changed.insert(path.clone());
            }
            return Ok(self.writer(place).tar.hard_link(&in_app(&path), mode, &in_app(&target))?);
        }
        if self.copies.len() >= COPIES {
            return Err(refused(&path, "too many hard links between directories"));
        }
        if place == Place::Changes {
            // Read again as a file of its own, it is a change even if its content is that of the source.
            self.mark_added(&path);
        }
        self.copies.push(Copy { path, target, place });
        Ok(())
    }

    /// Notes what the build put where the source has nothing: the topmost directory that is new, or the path itself.
    fn mark_added(&mut self, path: &[u8]) {
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let new = slashes.map(|end| &path[..end]).find(|part| !self.source_directories.contains(*part));
        self.shadow.add(new.unwrap_or(path));
    }
}

fn refused(path: &[u8], what: &'static str) -> SplitError {
    SplitError::Refused { path: lossy(path), what }
}

#[cfg(test)]
#[path = "tests/split.rs"]
mod tests;
