//! A process's regions to its loaded modules: which image lies where, kept current as libraries come and go.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::gap::Gap;
use crate::process::TargetMemory;
use crate::process::image::Image;
use crate::process::maps::{Backing, Region};

/// Modules opened at most. Each keeps a file open, and the usual limit of a process is 1024;
/// a Python service maps about a hundred, a browser two hundred.
const MAX_MODULES: usize = 512;

/// Bytes of vdso read at most; it has two pages.
const MAX_VDSO_BYTES: u64 = 64 * 1024;

/// One mapping of one image. A module that is unmapped and mapped again is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModuleId(u64);

/// Executable memory that is backed by a file, or the vdso.
#[derive(Debug, Clone)]
pub struct Module {
    pub id: ModuleId,
    /// As the target sees it, or `[vdso]`.
    pub path: Arc<str>,
    pub range: Range<u64>,
    /// The offset in the file of the range's first byte.
    offset: u64,
    /// The image, or why it could not be read.
    pub image: Result<Arc<Image>, Gap>,
}

impl Module {
    /// The offset in the file of an address within the range.
    pub fn file_offset(&self, address: u64) -> u64 {
        address.wrapping_sub(self.range.start).wrapping_add(self.offset)
    }

    /// What has to be added to an address that the image states to get one in the target: 0 for an
    /// executable that is linked to a fixed address.
    pub fn bias(&self) -> Option<u64> {
        let image = self.image.as_ref().ok()?;
        Some(self.range.start.wrapping_sub(image.address_of(self.offset)?))
    }
}

/// What makes a mapping the same mapping at the next look.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    device: (u32, u32),
    inode: u64,
    path: Arc<str>,
    start: u64,
    end: u64,
    offset: u64,
}

/// The modules of one process.
#[derive(Debug, Default)]
pub struct Modules {
    /// By address.
    modules: Vec<Module>,
    keys: HashMap<Key, ModuleId>,
    made: u64,
    /// Executable memory without a file, by address.
    made_at_run_time: Vec<Range<u64>>,
}

impl Modules {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in new mappings and drops those that are gone. Costs no system call for what has not changed.
    ///
    /// `open` is asked once for each new file; `memory` is read once, for the vdso.
    pub fn update(
        &mut self,
        regions: &[Region],
        open: &dyn Fn(&Region) -> io::Result<File>,
        memory: &dyn TargetMemory,
    ) {
        let mut mapped: HashMap<Key, &Region> =
            regions.iter().filter_map(|region| Some((key(region)?, region))).collect();
        self.keys.retain(|key, _| mapped.contains_key(key));
        mapped.retain(|key, _| !self.keys.contains_key(key));
        let kept: HashSet<ModuleId> = self.keys.values().copied().collect();
        self.modules.retain(|module| kept.contains(&module.id));
        let mut new: Vec<_> = mapped.into_iter().collect();
        new.sort_by_key(|(key, _)| key.start);
        for (key, region) in new {
            self.add(key, region, open, memory);
        }
        self.modules.sort_by_key(|module| module.range.start);
        self.made_at_run_time = regions.iter().filter_map(without_file).collect();
    }

    fn add(
        &mut self,
        key: Key,
        region: &Region,
        open: &dyn Fn(&Region) -> io::Result<File>,
        memory: &dyn TargetMemory,
    ) {
        self.made += 1;
        let id = ModuleId(self.made);
        let image = match self.shared_image(&key) {
            Some(image) => Ok(image),
            None if self.modules.len() >= MAX_MODULES => {
                Err(format!("more than {MAX_MODULES} files are mapped executable"))
            }
            None => match region.backing {
                Backing::File(_) => open(region)
                    .map_err(|error| error.to_string())
                    .and_then(|file| Image::from_file(file, id.0)),
                _ => read_vdso(region, memory).and_then(|bytes| Image::from_memory(bytes, id.0)),
            }
            .map(Arc::new),
        };
        let image = image.map_err(|why| Gap::new(&format!("the code of {}", key.path), why));
        let path = Arc::clone(&key.path);
        self.modules.push(Module {
            id,
            path,
            range: key.start..key.end,
            offset: key.offset,
            image,
        });
        self.keys.insert(key, id);
    }

    /// The image of another mapping of the same file: code may be mapped in several pieces.
    /// While one of them is mapped, the inode's number belongs to that file.
    fn shared_image(&self, key: &Key) -> Option<Arc<Image>> {
        if key.inode == 0 {
            return None;
        }
        let same = |other: &&Key| {
            other.device == key.device && other.inode == key.inode && other.path == key.path
        };
        let id = self.keys.get(self.keys.keys().find(same)?)?;
        self.get(*id)?.image.as_ref().ok().cloned()
    }

    /// The module whose code an address is.
    pub fn find(&self, address: u64) -> Option<&Module> {
        let after = self.modules.partition_point(|module| module.range.start <= address);
        let module = self.modules.get(after.checked_sub(1)?)?;
        module.range.contains(&address).then_some(module)
    }

    /// Whether an address lies in code that no file backs: a compiler inside the target made it.
    pub fn is_made_at_run_time(&self, address: u64) -> bool {
        let ranges = &self.made_at_run_time;
        let after = ranges.partition_point(|range| range.start <= address);
        after
            .checked_sub(1)
            .and_then(|index| ranges.get(index))
            .is_some_and(|range| range.contains(&address))
    }

    pub fn get(&self, id: ModuleId) -> Option<&Module> {
        self.modules.iter().find(|module| module.id == id)
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Module> {
        self.modules.iter()
    }

    /// Why code that is mapped can be neither unwound by its tables nor named.
    pub fn gaps(&self) -> impl Iterator<Item = &Gap> {
        self.modules.iter().filter_map(|module| module.image.as_ref().err())
    }
}

/// `None` for what holds no code of an image: data, anonymous memory, `[vsyscall]`.
fn key(region: &Region) -> Option<Key> {
    let path = match &region.backing {
        Backing::File(path) => path.to_string_lossy(),
        Backing::Special(name) if name == "[vdso]" => name.as_str().into(),
        Backing::Special(_) | Backing::Anonymous => return None,
    };
    region.executable.then(|| Key {
        device: region.device,
        inode: region.inode,
        path: path.into(),
        start: region.start,
        end: region.end,
        offset: region.offset,
    })
}

/// The range of executable memory that no file backs. Runtimes may give it a name.
fn without_file(region: &Region) -> Option<Range<u64>> {
    let is_anonymous = match &region.backing {
        Backing::Anonymous => true,
        Backing::Special(name) => name.starts_with("[anon"),
        Backing::File(_) => false,
    };
    (region.executable && is_anonymous).then_some(region.start..region.end)
}

fn read_vdso(region: &Region, memory: &dyn TargetMemory) -> Result<Vec<u8>, String> {
    let length = region.end.saturating_sub(region.start);
    if length > MAX_VDSO_BYTES {
        return Err(format!("it claims {length} bytes"));
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(|error| error.to_string())?];
    memory.read(region.start, &mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::IoSliceMut;

    use nix::sys::uio::{RemoteIoVec, process_vm_readv};
    use nix::unistd::getpid;

    use super::*;
    use crate::process::{Unreadable, maps};

    /// This very process as a target.
    struct Own;

    impl TargetMemory for Own {
        fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unreadable> {
            let bytes = buffer.len();
            let remote = RemoteIoVec { base: address as usize, len: bytes };
            match process_vm_readv(getpid(), &mut [IoSliceMut::new(buffer)], &[remote]) {
                Ok(read) if read == bytes => Ok(()),
                _ => Err(Unreadable { address, bytes }),
            }
        }
    }

    fn regions() -> Vec<Region> {
        maps::parse(&std::fs::read_to_string("/proc/self/maps").unwrap())
    }

    fn open(region: &Region) -> io::Result<File> {
        match &region.backing {
            Backing::File(path) => File::open(path),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn own_modules() -> Modules {
        let mut modules = Modules::new();
        modules.update(&regions(), &open, &Own);
        modules
    }

    fn here() -> u64 {
        here as *const () as u64
    }

    /// An address in the target leads to the module, and through its image back to the address.
    #[test]
    fn address_to_file_and_back() {
        let modules = own_modules();
        let module = modules.find(here()).unwrap();
        let image = module.image.as_ref().unwrap();
        let stated = image.address_of(module.file_offset(here())).unwrap();
        assert_eq!(module.bias().unwrap().wrapping_add(stated), here());
        assert_eq!(&*module.path, std::env::current_exe().unwrap().to_str().unwrap());
        assert!(modules.find(module.range.start).is_some());
        assert!(modules.find(0).is_none() && modules.find(u64::MAX).is_none());
    }

    /// The vdso has no file and is read from memory.
    #[test]
    fn vdso() {
        let modules = own_modules();
        let vdso = modules.iter().find(|module| &*module.path == "[vdso]").unwrap();
        let image = vdso.image.as_ref().unwrap();
        assert!(image.bytes().is_some() && image.eh_frame().is_some());
        assert_eq!(image.path(), None);
    }

    /// A library that is loaded later appears, one that is unloaded goes, and only new files are opened.
    #[test]
    fn libraries_come_and_go() {
        let all = regions();
        let is_libc = |region: &Region| match &region.backing {
            Backing::File(path) => path.to_string_lossy().contains("libc.so"),
            _ => false,
        };
        let libc = all.iter().find(|region| is_libc(region) && region.executable).unwrap().start;
        let without: Vec<_> = all.iter().filter(|region| !is_libc(region)).cloned().collect();
        let opened = Cell::new(0);
        let counting = |region: &Region| {
            opened.set(opened.get() + 1);
            open(region)
        };
        let mut modules = Modules::new();
        modules.update(&without, &counting, &Own);
        let (before, here_before) = (opened.get(), modules.find(here()).unwrap().id);
        assert!(before > 0 && modules.find(libc).is_none());
        modules.update(&all, &counting, &Own);
        assert_eq!((opened.get(), modules.find(here()).unwrap().id), (before + 1, here_before));
        let id = modules.find(libc).unwrap().id;
        modules.update(&all, &counting, &Own);
        assert_eq!((opened.get(), modules.find(libc).unwrap().id), (before + 1, id));
        modules.update(&without, &counting, &Own);
        assert!(modules.find(libc).is_none() && modules.get(id).is_none());
        modules.update(&all, &counting, &Own);
        assert_ne!(modules.find(libc).unwrap().id, id);
    }

    /// What cannot be opened is known by its path, with the reason.
    #[test]
    fn unopenable_files() {
        let refuse = |_: &Region| Err(io::ErrorKind::PermissionDenied.into());
        let mut modules = Modules::new();
        modules.update(&regions(), &refuse, &Own);
        let module = modules.find(here()).unwrap();
        let gap = module.image.as_ref().unwrap_err();
        assert!(gap.to_string().contains(&*module.path), "{gap}");
        assert!(gap.to_string().contains("permission denied"), "{gap}");
        assert_eq!(module.bias(), None);
        assert!(modules.gaps().any(|other| other == gap));
    }

    /// Code of one file that is mapped in two pieces shares what is known of the file.
    #[test]
    fn one_file_in_two_pieces() {
        let mut all = regions();
        let index =
            all.iter().position(|region| (region.start..region.end).contains(&here())).unwrap();
        let middle = all[index].start + 4096;
        let mut second = all[index].clone();
        second.offset += 4096;
        second.start = middle;
        all[index].end = middle;
        all.insert(index + 1, second);
        let mut modules = Modules::new();
        modules.update(&all, &open, &Own);
        let (first, second) = (modules.find(middle - 1).unwrap(), modules.find(middle).unwrap());
        assert_ne!(first.id, second.id);
        assert_eq!(first.bias(), second.bias());
        assert!(Arc::ptr_eq(first.image.as_ref().unwrap(), second.image.as_ref().unwrap()));
    }

    /// More mappings than anybody has cost no more open files than the limit.
    #[test]
    fn too_many_mappings() {
        let region = regions().into_iter().find(|region| region.executable).unwrap();
        let many: Vec<_> = (0..MAX_MODULES as u64 + 10)
            .map(|index| Region {
                inode: index + 1,
                start: index * 0x10000,
                end: index * 0x10000 + 0x1000,
                ..region.clone()
            })
            .collect();
        let mut modules = Modules::new();
        let refuse = |_: &Region| Err(io::ErrorKind::NotFound.into());
        modules.update(&many, &refuse, &Own);
        assert_eq!(modules.iter().count(), many.len());
        let limited =
            modules.gaps().filter(|gap| gap.to_string().contains("more than 512")).count();
        assert_eq!(limited, 10);
    }
}
