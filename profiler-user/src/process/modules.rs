//! A process's regions to its loaded modules: which image lies where, kept current as libraries come and go.
//!
//! Of a process that maps more files than may be open, those are open that frames were found in last, and always the
//! ones that stacks lead through: the program, the C library, the interpreter.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::gap::Gap;
use crate::process::TargetMemory;
use crate::process::image::Image;
use crate::process::maps::{Backing, Region};

/// Images of files open at most. Each keeps its file open, and the usual limit of a process is 1024;
/// a Python service maps about a hundred, a browser two hundred.
const MAX_IMAGES: usize = 512;

/// Of these, the ones that are never closed for others: their names are the target's choice.
const MAX_ESSENTIAL: usize = 16;

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
    /// It could be, if fewer were.
    is_closed: bool,
    is_essential: bool,
    /// When an address was looked for in it last, by the count of updates and looks.
    used: Cell<u64>,
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

/// What makes a file the same file: while it is mapped, the inode's number belongs to it.
type FileKey = ((u32, u32), u64, Arc<str>);

/// The modules of one process.
#[derive(Debug)]
pub struct Modules {
    /// By address.
    modules: Vec<Module>,
    keys: HashMap<Key, ModuleId>,
    made: u64,
    /// Shared memory that was looked into, and holds no image.
    imageless: HashSet<Key>,
    /// Executable memory without an image, by address.
    made_at_run_time: Vec<Range<u64>>,
    /// The path of the main executable.
    program: Option<String>,
    /// Images open at most.
    most: usize,
    /// Looks so far.
    clock: Cell<u64>,
    /// Whether a file that is not open was looked for since the last update.
    wants_more: Cell<bool>,
    closed: u64,
}

impl Default for Modules {
    fn default() -> Self {
        Self::new()
    }
}

/// How files are opened, and what is open.
struct Opening<'a> {
    open: &'a dyn Fn(&Region) -> io::Result<File>,
    memory: &'a dyn TargetMemory,
    /// Code of one file may be mapped in several pieces.
    images: HashMap<FileKey, Arc<Image>>,
    essential: usize,
}

impl Modules {
    pub fn new() -> Self {
        Self {
            modules: Vec::new(),
            keys: HashMap::new(),
            made: 0,
            imageless: HashSet::new(),
            made_at_run_time: Vec::new(),
            program: None,
            most: MAX_IMAGES,
            clock: Cell::new(0),
            wants_more: Cell::new(false),
            closed: 0,
        }
    }

    /// Those of a process whose executable has this path.
    pub fn of_program(program: Option<String>) -> Self {
        Self { program, ..Self::new() }
    }

    /// Takes in new mappings, drops those that are gone, and opens what was looked for. Costs no system call for what
    /// has not changed.
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
        let wanted = self.take_wanted();
        self.keys.retain(|key, _| mapped.contains_key(key));
        self.imageless.retain(|key| mapped.contains_key(key));
        mapped.retain(|key, _| {
            let is_known = self.keys.get(key).is_some_and(|id| !wanted.contains(id));
            !is_known && !self.imageless.contains(key)
        });
        let kept: HashSet<ModuleId> =
            self.keys.values().copied().filter(|id| !wanted.contains(id)).collect();
        self.modules.retain(|module| kept.contains(&module.id));
        let mut new: Vec<_> = mapped.into_iter().collect();
        new.sort_by_key(|(key, _)| (!self.is_essential(key), key.start));
        let mut opening = self.opening(open, memory);
        for (key, region) in new {
            self.add(key, region, &mut opening);
        }
        self.modules.sort_by_key(|module| module.range.start);
        let made = regions.iter().filter(|region| {
            without_file(region) || key(region).is_some_and(|key| self.imageless.contains(&key))
        });
        self.made_at_run_time = made.map(|region| region.start..region.end).collect();
    }

    /// Whether frames were found in files that are not open. The next update opens them.
    pub fn wants_more(&self) -> bool {
        self.wants_more.get()
    }

    /// How often a file was not opened, or closed, because too many are mapped.
    pub fn closed(&self) -> u64 {
        self.closed
    }

    fn take_wanted(&mut self) -> HashSet<ModuleId> {
        self.wants_more.set(false);
        let wanted = self.modules.iter().filter(|module| module.is_closed && module.used.get() > 0);
        wanted.take(self.most).map(|module| module.id).collect()
    }

    fn is_essential(&self, key: &Key) -> bool {
        is_essential(&key.path, self.program.as_deref())
    }

    fn opening<'a>(
        &self,
        open: &'a dyn Fn(&Region) -> io::Result<File>,
        memory: &'a dyn TargetMemory,
    ) -> Opening<'a> {
        let modules: HashMap<ModuleId, &Module> =
            self.modules.iter().map(|module| (module.id, module)).collect();
        let image = |(key, id): (&Key, &ModuleId)| {
            let image = modules.get(id)?.image.as_ref().ok()?;
            Some((key.file()?, Arc::clone(image)))
        };
        let images = self.keys.iter().filter_map(image).collect();
        let essential = self.modules.iter().filter(|module| module.is_essential).count();
        Opening { open, memory, images, essential }
    }

    fn add(&mut self, key: Key, region: &Region, opening: &mut Opening<'_>) {
        let id = self.next_id();
        let is_wanted = self.keys.contains_key(&key);
        let is_essential = opening.essential < MAX_ESSENTIAL && self.is_essential(&key);
        let shared = key.file().and_then(|file| opening.images.get(&file).cloned());
        let is_closed = shared.is_none() && !self.make_room(is_wanted || is_essential, opening);
        let image = match shared {
            Some(image) => Ok(image),
            None if is_closed => Err(too_many(self.most)),
            None => opening.read(region, id).map(Arc::new),
        };
        if image.is_err() && is_shared_memory(region) {
            self.imageless.insert(key);
            return;
        }
        if let (Ok(image), Some(file)) = (&image, key.file()) {
            opening.images.insert(file, Arc::clone(image));
        }
        opening.essential += usize::from(is_essential);
        self.closed += u64::from(is_closed);
        let image = image.map_err(|why| Gap::new(&format!("the code of {}", key.path), why));
        self.modules.push(Module {
            id,
            path: Arc::clone(&key.path),
            range: key.start..key.end,
            offset: key.offset,
            image,
            is_closed,
            is_essential,
            used: Cell::new(if is_wanted { self.tick() } else { 0 }),
        });
        self.keys.insert(key, id);
    }

    /// Whether one more image may be open. For one that is wanted, the one is closed that was used least.
    fn make_room(&mut self, is_wanted: bool, opening: &mut Opening<'_>) -> bool {
        if opening.images.len() < self.most {
            return true;
        }
        let candidates = self.modules.iter().filter(|module| !module.is_essential);
        let least = candidates
            .filter_map(|module| Some((module.used.get(), module.image.as_ref().ok()?)))
            .min_by_key(|(used, _)| *used)
            .map(|(_, image)| Arc::clone(image));
        let Some(least) = least.filter(|_| is_wanted) else { return false };
        opening.images.retain(|_, image| !Arc::ptr_eq(image, &least));
        let is_it =
            |module: &Module| module.image.as_ref().is_ok_and(|image| Arc::ptr_eq(image, &least));
        // Whoever remembers something of the image by its number must not take this for it.
        let mut renamed = HashMap::new();
        for index in 0..self.modules.len() {
            let id = self.next_id();
            let why = too_many(self.most);
            let Some(module) = self.modules.get_mut(index).filter(|module| is_it(module)) else {
                continue;
            };
            renamed.insert(module.id, id);
            module.image = Err(Gap::new(&format!("the code of {}", module.path), why));
            (module.id, module.is_closed) = (id, true);
            module.used.set(0);
        }
        for id in self.keys.values_mut() {
            *id = renamed.get(id).copied().unwrap_or(*id);
        }
        self.closed += renamed.len() as u64;
        true
    }

    fn next_id(&mut self) -> ModuleId {
        self.made += 1;
        ModuleId(self.made)
    }

    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    /// The module whose code an address is.
    pub fn find(&self, address: u64) -> Option<&Module> {
        let after = self.modules.partition_point(|module| module.range.start <= address);
        let module = self.modules.get(after.checked_sub(1)?)?;
        if !module.range.contains(&address) {
            return None;
        }
        module.used.set(self.tick());
        if module.is_closed {
            self.wants_more.set(true);
        }
        Some(module)
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

/// Whether a region is executable memory that no file backs. Runtimes may give it a name.
fn without_file(region: &Region) -> bool {
    let is_anonymous = match &region.backing {
        Backing::Anonymous => true,
        Backing::Special(name) => name.starts_with("[anon"),
        Backing::File(_) => false,
    };
    region.executable && is_anonymous
}

/// Whether a region is memory that the kernel shows as a file: shared, or made to be mapped twice, as .NET does for
/// the code that it makes. An image that was loaded out of such memory is one all the same.
fn is_shared_memory(region: &Region) -> bool {
    let Backing::File(path) = &region.backing else { return false };
    let path = path.to_string_lossy();
    let names = ["/memfd:", "/SYSV", "/dev/shm/", "/anon_hugepage"];
    path == "/dev/zero" || names.iter().any(|name| path.starts_with(name))
}

/// Whether stacks lead through a file again and again: the program, the C library and its loader, an interpreter.
fn is_essential(path: &str, program: Option<&str>) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let names = ["libc.so", "libc-", "ld-", "libpthread", "libpython", "python", "node", "libnode"];
    path == "[vdso]" || Some(path) == program || names.iter().any(|known| name.starts_with(known))
}

fn too_many(most: usize) -> String {
    format!("more than {most} files are mapped, and others were used since")
}

impl Key {
    /// The file that it is of. The vdso is none.
    fn file(&self) -> Option<FileKey> {
        (self.inode != 0).then(|| (self.device, self.inode, Arc::clone(&self.path)))
    }
}

impl Opening<'_> {
    fn read(&self, region: &Region, id: ModuleId) -> Result<Image, String> {
        match region.backing {
            Backing::File(_) => (self.open)(region)
                .map_err(|error| error.to_string())
                .and_then(|file| Image::from_file(file, id.0)),
            _ => read_vdso(region, self.memory).and_then(|bytes| Image::from_memory(bytes, id.0)),
        }
    }
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

    use super::*;
    use crate::process::live::LiveMemory;
    use crate::process::maps;

    /// This very process as a target.
    fn own() -> LiveMemory {
        LiveMemory::new(std::process::id())
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
        modules.update(&regions(), &open, &own());
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
        modules.update(&without, &counting, &own());
        let (before, here_before) = (opened.get(), modules.find(here()).unwrap().id);
        assert!(before > 0 && modules.find(libc).is_none());
        modules.update(&all, &counting, &own());
        assert_eq!((opened.get(), modules.find(here()).unwrap().id), (before + 1, here_before));
        let id = modules.find(libc).unwrap().id;
        modules.update(&all, &counting, &own());
        assert_eq!((opened.get(), modules.find(libc).unwrap().id), (before + 1, id));
        modules.update(&without, &counting, &own());
        assert!(modules.find(libc).is_none() && modules.get(id).is_none());
        modules.update(&all, &counting, &own());
        assert_ne!(modules.find(libc).unwrap().id, id);
    }

    /// What cannot be opened is known by its path, with the reason.
    #[test]
    fn unopenable_files() {
        let refuse = |_: &Region| Err(io::ErrorKind::PermissionDenied.into());
        let mut modules = Modules::new();
        modules.update(&regions(), &refuse, &own());
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
        modules.update(&all, &open, &own());
        let (first, second) = (modules.find(middle - 1).unwrap(), modules.find(middle).unwrap());
        assert_ne!(first.id, second.id);
        assert_eq!(first.bias(), second.bias());
        assert!(Arc::ptr_eq(first.image.as_ref().unwrap(), second.image.as_ref().unwrap()));
    }

    /// As many mappings of files as there are numbers, 64 KiB apart.
    fn many(count: u64) -> Vec<Region> {
        let region = regions().into_iter().find(|region| region.executable).unwrap();
        let numbered = |index: u64| Region {
            inode: index + 1,
            start: index * 0x10000,
            end: index * 0x10000 + 0x1000,
            backing: Backing::File(format!("/srv/lib{index}.so").into()),
            ..region.clone()
        };
        (0..count).map(numbered).collect()
    }

    fn own_file(_: &Region) -> io::Result<File> {
        File::open("/proc/self/exe")
    }

    const FEW: usize = 8;

    fn few(program: &str) -> Modules {
        Modules { most: FEW, ..Modules::of_program(Some(program.to_owned())) }
    }

    /// More mappings than anybody has cost no more open files than the limit, and are counted.
    #[test]
    fn too_many_mappings() {
        let many = many(FEW as u64 + 10);
        let mut modules = few("/srv/program");
        modules.update(&many, &own_file, &own());
        assert_eq!(modules.iter().count(), many.len());
        let open = modules.iter().filter(|module| module.image.is_ok()).count();
        let limited = modules.gaps().filter(|gap| gap.to_string().contains("more than 8")).count();
        assert_eq!((open, limited, modules.closed()), (FEW, 10, 10));
    }

    /// What frames are found in is opened, for what was not used for longest; never for the C library, the interpreter
    /// or the program.
    #[test]
    fn the_least_used_is_closed() {
        let mut many = many(FEW as u64 + 4);
        let last = many.len() - 1;
        for (index, path) in
            [(last, "/usr/lib/libc.so.6"), (last - 1, "/srv/program"), (1, "/usr/bin/python3.11")]
        {
            many[index].backing = Backing::File(path.into());
        }
        let at = |index: usize| index as u64 * 0x10000 + 0x10;
        let open = |modules: &Modules| {
            let open = modules.iter().filter(|module| module.image.is_ok());
            open.map(|module| module.range.start as usize / 0x10000).collect::<Vec<_>>()
        };
        let mut modules = few("/srv/program");
        modules.update(&many, &own_file, &own());
        assert_eq!(open(&modules), [0, 1, 2, 3, 4, 5, last - 1, last]);
        // All but the fourth are in use; what is past the limit is asked for.
        for index in [0, 2, 4, 5] {
            modules.find(at(index));
        }
        assert!(!modules.wants_more());
        let before = modules.find(at(7)).unwrap().id;
        assert!(modules.wants_more());
        modules.update(&many, &own_file, &own());
        assert_eq!(open(&modules), [0, 1, 2, 4, 5, 7, last - 1, last]);
        assert!(!modules.wants_more() && modules.find(at(7)).unwrap().id != before);
        // The one that was closed comes back for another.
        modules.find(at(3));
        modules.update(&many, &own_file, &own());
        assert_eq!(open(&modules), [1, 2, 3, 4, 5, 7, last - 1, last]);
        assert_eq!(modules.closed(), 4 + 2);
    }

    /// A process that calls all its files C libraries has no more of them open than others.
    #[test]
    fn forged_names() {
        let mut many = many(40);
        for region in &mut many {
            region.backing = Backing::File(format!("/{}/libc.so.6", region.inode).into());
        }
        let mut modules = few("/srv/program");
        modules.update(&many, &own_file, &own());
        assert_eq!(modules.iter().filter(|module| module.image.is_ok()).count(), FEW);
    }

    /// Code in shared memory is made at run time, unless a linker made it; it is looked at once.
    #[test]
    fn shared_memory() {
        let mut all = many(4);
        for (region, path) in
            all.iter_mut().zip(["/memfd:doublemapper", "/dev/zero", "/memfd:lib", "/srv/lib.so"])
        {
            region.backing = Backing::File(path.into());
        }
        let opened = Cell::new(0);
        let open = |region: &Region| {
            opened.set(opened.get() + 1);
            match &region.backing {
                Backing::File(path) if path.ends_with("memfd:lib") => own_file(region),
                _ => Err(io::ErrorKind::NotFound.into()),
            }
        };
        let mut modules = Modules::new();
        for _ in 0..2 {
            modules.update(&all, &open, &own());
            let made = |index: u64| modules.is_made_at_run_time(index * 0x10000 + 0x10);
            assert_eq!([0, 1, 2, 3].map(made), [true, true, false, false]);
            let known = |index: u64| modules.find(index * 0x10000 + 0x10).is_some();
            assert_eq!([0, 1, 2, 3].map(known), [false, false, true, true]);
            assert_eq!(opened.get(), 4);
        }
        let data = Region { executable: false, ..all[0].clone() };
        modules.update(&[data], &open, &own());
        assert!(!modules.is_made_at_run_time(0x10));
    }
}
