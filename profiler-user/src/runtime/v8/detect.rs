//! The files that a process has mapped to the V8 that it runs, and how to read that.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::builtins;
use super::layout::{FrameTypes, V8Layout, version};
use super::symbols::Symbols;
use crate::gap::Gap;
use crate::process::TargetMemory;
use crate::process::image::Image;
use crate::process::live::OpenRegion;
use crate::process::maps::{Backing, Region};

/// Beginnings of the names of files that hold a V8.
const NAMES: [&str; 4] = ["node", "libnode", "libv8", "electron"];

/// Characters of a version at most: `18.20.8-nightly20250101abcdef`.
const MAX_VERSION: u64 = 64;

/// A V8 that can be read.
#[derive(Debug)]
pub struct FoundV8 {
    /// The mapped file, as the target sees it.
    pub path: PathBuf,
    /// The builtins, as offsets in the file: it may be mapped more than once.
    pub builtins: Range<u64>,
    pub layout: V8Layout,
    pub frame_types: FrameTypes,
    /// Node's own, or V8's where another program brings it.
    pub version: String,
    pub is_node: bool,
}

/// `Ok(None)`: no V8. A gap: there is one, but not one that can be read.
pub fn detect(
    memory: &dyn TargetMemory,
    regions: &[Region],
    exe: Option<&Path>,
    open: OpenRegion<'_>,
) -> Result<Option<FoundV8>, Gap> {
    let mut seen = Vec::new();
    for region in regions.iter().filter(|region| region.executable) {
        let Backing::File(path) = &region.backing else { continue };
        let is_known = has_name(path);
        if seen.contains(&path) || !is_known && Some(path.as_path()) != exe {
            continue;
        }
        seen.push(path);
        match examine(memory, path, region, open) {
            Ok(Some(found)) => return Ok(Some(found)),
            Ok(None) => {}
            // Of the executable alone, nobody said that it has one.
            Err(_) if !is_known => {}
            Err(why) => {
                return Err(missing(path, &why));
            }
        }
    }
    // A `node` that is linked with its V8 has none itself.
    match seen.into_iter().find(|path| has_name(path)) {
        Some(path) => Err(missing(path, "it does not export V8's constants")),
        None => Ok(None),
    }
}

fn missing(path: &Path, why: &str) -> Gap {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("V8");
    Gap::new(&format!("frames that {name} interprets"), format_args!("{}: {why}", path.display()))
}

fn has_name(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    NAMES.iter().any(|known| {
        // `node`, `nodejs`, `node-22`, `libnode.so.108`; not `node_exporter`.
        name.strip_prefix(known).is_some_and(|rest| {
            rest.chars().next().is_none_or(|next| !next.is_ascii_alphabetic() && next != '_')
        })
    }) || name == "nodejs"
}

fn examine(
    memory: &dyn TargetMemory,
    path: &Path,
    region: &Region,
    open: OpenRegion<'_>,
) -> Result<Option<FoundV8>, String> {
    let file = open(region).map_err(|error| error.to_string())?;
    let symbols = Symbols::read(&file)?;
    if symbols.constants.is_empty() {
        return Ok(None);
    }
    let image = Image::from_file(file, 0)?;
    let stated = image.address_of(region.offset);
    let bias = region.start.wrapping_sub(stated.ok_or("its segments do not match its mappings")?);
    let v8 = version(memory, bias, &symbols).ok_or("it does not tell its V8's version")?;
    let (layout, frame_types) = V8Layout::read(memory, bias, &symbols, v8)?;
    let builtins = symbols.builtins.clone().or_else(|| builtins::find(&image));
    let builtins = builtins.ok_or("V8's builtins are not to be found in it")?;
    let node = node_version(memory, bias, &symbols);
    let is_node = symbols.metadata.is_some();
    let version = node.unwrap_or_else(|| format!("V8 {v8}"));
    Ok(Some(FoundV8 { path: path.to_path_buf(), builtins, layout, frame_types, version, is_node }))
}

/// The first of the strings of which node's metadata consist: a pointer and a length.
fn node_version(memory: &dyn TargetMemory, bias: u64, symbols: &Symbols) -> Option<String> {
    let metadata = bias.wrapping_add(symbols.metadata?);
    let text = memory.read_u64(metadata).ok()?;
    let length = memory.read_u64(metadata.checked_add(8)?).ok()?;
    if length > MAX_VERSION {
        return None;
    }
    let mut bytes = vec![0; length as usize];
    memory.read(text, &mut bytes).ok()?;
    let version = String::from_utf8(bytes).ok()?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+');
    let is_version =
        version.starts_with(|c: char| c.is_ascii_digit()) && version.chars().all(is_plain);
    is_version.then_some(version)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io;
    use std::path::Path;

    use super::{detect, has_name};
    use crate::process::maps::{self, Backing, Region};
    use crate::runtime::v8::sample::Pages;

    /// Programs and libraries of node's are looked into, others of a similar name are not.
    #[test]
    fn names_of_files() {
        for name in ["node", "nodejs", "node-22", "node22", "libnode.so.108", "libv8.so"] {
            assert!(has_name(Path::new("/usr/bin").join(name).as_path()), "{name}");
        }
        for name in ["node_exporter", "nodemon", "python3", "libnodes.so", "redis-server", ""] {
            assert!(!has_name(Path::new("/usr/bin").join(name).as_path()), "{name}");
        }
    }

    fn own_regions(name: &str) -> Vec<Region> {
        let mut regions = maps::parse(&std::fs::read_to_string("/proc/self/maps").unwrap());
        let own = std::env::current_exe().unwrap();
        for region in &mut regions {
            if region.backing == Backing::File(own.clone()) {
                region.backing = Backing::File(name.into());
            }
        }
        regions
    }

    fn open(_: &Region) -> io::Result<File> {
        File::open("/proc/self/exe")
    }

    /// A program that is called node and has no V8 is told; another without one is not V8's at all.
    #[test]
    fn programs_without_v8() {
        let pages = Pages::default();
        let gap = detect(&pages, &own_regions("/usr/bin/node"), None, &open).unwrap_err();
        assert_eq!(
            gap.0,
            "frames that node interprets: /usr/bin/node: it does not export V8's constants"
        );
        let other = Path::new("/srv/server");
        assert!(detect(&pages, &own_regions("/srv/server"), Some(other), &open).unwrap().is_none());
        let refused = |_: &Region| Err(io::ErrorKind::PermissionDenied.into());
        assert!(detect(&pages, &own_regions("/usr/bin/node"), None, &refused).is_err());
        assert!(detect(&pages, &own_regions("/x"), None, &refused).unwrap().is_none());
    }
}
