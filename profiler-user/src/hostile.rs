//! Randomness, bytes and memory as a hostile target would have them: what the tests of readers of such things start from.
//!
//! A test is a number of rounds, and everything in a round follows from its seed, which is printed
//! when the round fails. `STALLTRACE_FUZZ_ROUNDS=100` makes each test a hundred times as long,
//! `STALLTRACE_FUZZ_SEED=…` runs that round alone.

use std::cell::Cell;
use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, memfd_create};

use crate::process::maps::{Backing, Region};
use crate::process::modules::Modules;
use crate::process::{TargetMemory, Unreadable};

const PAGE: u64 = 4096;

/// Runs a test as often as is said, and times `STALLTRACE_FUZZ_ROUNDS`.
pub fn rounds(count: u64, mut test: impl FnMut(&mut Random)) {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("STALLTRACE_FUZZ_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..count.saturating_mul(number("STALLTRACE_FUZZ_ROUNDS").unwrap_or(1)) + 1,
    };
    for seed in seeds {
        let round = AssertUnwindSafe(|| test(&mut Random::new(seed)));
        if let Err(panic) = catch_unwind(round) {
            eprintln!("the round of STALLTRACE_FUZZ_SEED={seed} failed");
            resume_unwind(panic);
        }
    }
}

/// A sequence of numbers that a seed determines (xorshift64*).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(mixed(seed) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Less than `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }

    /// A number of the kind at which readers stumble: around zero, around the ends of the integers.
    pub fn odd_number(&mut self) -> u64 {
        let ends = [0_u64, 1 << 7, 1 << 8, 1 << 15, 1 << 16, 1 << 31, 1 << 32, 1 << 63];
        match self.below(4) {
            0 => self.next(),
            1 => self.next() >> self.below(64),
            _ => self.pick(&ends).wrapping_add(self.next() % 5).wrapping_sub(2),
        }
    }
}

/// A number that has nothing to do with the one it was made from (the end of splitmix64).
fn mixed(number: u64) -> u64 {
    let mut number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// Damages bytes the way that forgers and broken disks do: a few places overwritten, by odd numbers
/// or by bytes from elsewhere; sometimes cut off.
pub fn damage(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..1 + random.below(8) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        match random.below(8) {
            0 => bytes.truncate(at),
            1 | 2 => bytes[at] ^= 1 << random.below(8),
            3 => {
                let length = random.below(64).min(bytes.len() - at);
                let from = random.below(bytes.len() - length + 1);
                bytes.copy_within(from..from + length, at);
            }
            _ => {
                let width = *random.pick(&[1, 2, 4, 8]);
                let number = random.odd_number().to_le_bytes();
                let length = width.min(bytes.len() - at);
                bytes[at..at + length].copy_from_slice(&number[..length]);
            }
        }
    }
}

/// An ELF file with damage where it hurts: in its header, in its tables of segments or sections, or
/// anywhere.
pub fn damaged_elf(random: &mut Random, whole: &[u8]) -> Vec<u8> {
    /// The header and, behind it, the segments.
    const HEAD: usize = 1024;
    /// Where the header says where the table of sections lies.
    const SECTIONS_AT: std::ops::Range<usize> = 40..48;
    let mut bytes = whole.to_vec();
    let sections = bytes[SECTIONS_AT].try_into().map(u64::from_le_bytes).unwrap_or(0) as usize;
    let range = match random.below(4) {
        0 => 0..HEAD.min(bytes.len()),
        1 | 2 => sections.min(bytes.len())..bytes.len(),
        _ => 0..bytes.len(),
    };
    let mut part = bytes[range.clone()].to_vec();
    damage(random, &mut part);
    let cut_off = range.start + part.len();
    if range.end == bytes.len() {
        bytes.truncate(cut_off);
    }
    // Cut off within, the rest of the file stays where it is.
    bytes[range.start..cut_off].copy_from_slice(&part);
    bytes
}

/// The C library of this very process: a file with all tables that a linker writes.
pub fn libc() -> Vec<u8> {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("our own");
    let line = maps.lines().find(|line| line.contains("libc.so")).expect("it is mapped");
    std::fs::read(line.split_whitespace().last().expect("a path")).expect("readable")
}

/// A file with these bytes that has no name.
pub fn file_of(bytes: &[u8]) -> File {
    let mut file = File::from(memfd_create("hostile", MemfdFlags::CLOEXEC).expect("a memfd"));
    file.write_all(bytes).expect("memory");
    file
}

/// Where [`mapped`] puts a file.
pub const MAPPED_AT: u64 = 0x5500_0000_0000;

/// The only module of a process: the whole file, mapped executable in one piece.
pub fn mapped(bytes: &[u8]) -> Modules {
    let region = Region {
        start: MAPPED_AT,
        end: MAPPED_AT + (bytes.len() as u64).next_multiple_of(PAGE),
        executable: true,
        writable: false,
        offset: 0,
        device: (8, 1),
        inode: 1,
        backing: Backing::File(PathBuf::from("/bin/hostile")),
    };
    let mut modules = Modules::new();
    let nothing = HostileMemory::new(Style::Heap, &mut Random::new(1));
    modules.update(&[region], &|_| Ok(file_of(bytes)), &nothing);
    modules
}

/// What a target's memory may be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Every address has a byte, and all of them are random.
    Noise,
    /// The same, but of three pages one is not mapped.
    Holes,
    /// A small heap full of pointers into itself, zeros, small numbers and absurd lengths: lists run
    /// in circles, sizes are wrong, and most of what is followed leads somewhere.
    Heap,
}

pub const STYLES: [Style; 3] = [Style::Noise, Style::Holes, Style::Heap];

/// Where the heap lies, and how many bytes it has.
pub const HEAP: u64 = 0x7f00_0000_0000;
const HEAP_BYTES: u64 = 256 * PAGE;

/// Memory that a seed determines. The same address always holds the same byte; reads are counted.
#[derive(Debug)]
pub struct HostileMemory {
    seed: u64,
    style: Style,
    reads: Cell<u64>,
    bytes: Cell<u64>,
    /// What was put there on purpose, over everything else.
    planted: Vec<(u64, Vec<u8>)>,
    /// Pages that are readable in spite of the style, because something was put there.
    mapped: HashSet<u64>,
}

impl HostileMemory {
    pub fn new(style: Style, random: &mut Random) -> Self {
        Self {
            seed: random.next(),
            style,
            reads: Cell::new(0),
            bytes: Cell::new(0),
            planted: Vec::new(),
            mapped: HashSet::new(),
        }
    }

    /// Puts bytes to an address, so that a reader gets past its first look.
    pub fn plant(&mut self, address: u64, bytes: &[u8]) {
        self.planted.push((address, bytes.to_vec()));
        let end = address + bytes.len() as u64;
        self.mapped.extend(address / PAGE..=end / PAGE);
    }

    pub fn plant_u64(&mut self, address: u64, value: u64) {
        self.plant(address, &value.to_le_bytes());
    }

    /// An address at which a structure may lie.
    pub fn place(&self, random: &mut Random) -> u64 {
        match self.style {
            Style::Heap => HEAP + ((random.next() % HEAP_BYTES) & !7),
            _ => random.next() & 0x7fff_ffff_fff8,
        }
    }

    /// Reads asked for so far, failed ones included, and bytes given.
    pub fn counts(&self) -> (u64, u64) {
        (self.reads.get(), self.bytes.get())
    }

    pub fn forget_counts(&self) {
        self.reads.set(0);
        self.bytes.set(0);
    }

    fn is_mapped(&self, page: u64) -> bool {
        let mapped = match self.style {
            Style::Noise => true,
            Style::Holes => !mixed(self.seed ^ page).is_multiple_of(3),
            Style::Heap => (HEAP..HEAP + HEAP_BYTES).contains(&(page * PAGE)),
        };
        mapped || self.mapped.contains(&page)
    }

    fn word(&self, address: u64) -> u64 {
        let noise = mixed(self.seed ^ address);
        if self.style != Style::Heap {
            return noise;
        }
        let detail = mixed(noise);
        match noise % 16 {
            0..=6 => HEAP + ((detail % HEAP_BYTES) & !7),
            7 => address,
            8..=9 => 0,
            10..=11 => detail % 64,
            // Two halves, of which readers take either.
            12 => (detail % 256) | (((detail >> 32) % 256) << 32),
            13 => detail % (8 << 20),
            14 => u64::MAX - detail % 16,
            _ => detail,
        }
    }
}

impl TargetMemory for HostileMemory {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unreadable> {
        self.reads.set(self.reads.get() + 1);
        let unreadable = Unreadable { address, bytes: buffer.len() };
        let end = address.checked_add(buffer.len() as u64).ok_or(unreadable)?;
        if !(address / PAGE..=end.saturating_sub(1) / PAGE).all(|page| self.is_mapped(page)) {
            return Err(unreadable);
        }
        self.bytes.set(self.bytes.get() + buffer.len() as u64);
        let mut done = 0;
        while done < buffer.len() {
            let at = address + done as u64;
            let word = self.word(at & !7).to_le_bytes();
            let rest = &word[(at & 7) as usize..];
            let length = rest.len().min(buffer.len() - done);
            buffer[done..done + length].copy_from_slice(&rest[..length]);
            done += length;
        }
        for (start, bytes) in &self.planted {
            let from = address.max(*start);
            let to = end.min(start + bytes.len() as u64);
            if from < to {
                let within = |base: u64| (from - base) as usize..(to - base) as usize;
                buffer[within(address)].copy_from_slice(&bytes[within(*start)]);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{HostileMemory, Random, STYLES, Style, rounds};
    use crate::process::TargetMemory;

    /// The same address holds the same bytes, however they are read.
    #[test]
    fn consistent() {
        rounds(20, |random| {
            for style in STYLES {
                let memory = HostileMemory::new(style, random);
                let at = memory.place(random);
                let (mut whole, mut half) = ([0; 64], [0; 32]);
                if memory.read(at, &mut whole).is_ok() {
                    memory.read(at + 17, &mut half).unwrap();
                    assert_eq!(whole[17..49], half);
                }
            }
        });
    }

    /// What was planted is found, also where nothing else is.
    #[test]
    fn planted() {
        let mut memory = HostileMemory::new(Style::Heap, &mut Random::new(1));
        assert!(memory.read_u64(0x1000).is_err());
        memory.plant_u64(0x1000, 77);
        assert_eq!(memory.read_u64(0x1000), Ok(77));
        assert_eq!(memory.counts(), (2, 8));
    }
}
