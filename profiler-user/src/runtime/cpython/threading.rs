//! A thread of the interpreter's to the name by which Python's `threading` knows it.
//!
//! `threading._active` has the `Thread` objects by their threads' identities, which are those of the
//! interpreter's own thread states. Threads that were not started by `threading` are not among them.

use super::attributes;
use super::dict::{self, NoDict};
use super::layout::CpythonLayout;
use super::modules::ModuleDict;
use super::strings;
use crate::gap::Gap;
use crate::process::TargetMemory;
use crate::runtime::THREAD_NAME;

/// What a gap is about.
const WHAT: &str = THREAD_NAME;

/// An `int`: how many digits it has, and those, 30 bits each.
const INT_COUNT: u64 = 16;
const DIGIT_BITS: u32 = 30;

/// The names of one process's threads.
#[derive(Debug)]
pub struct Threading {
    active: ModuleDict,
}

impl Default for Threading {
    fn default() -> Self {
        Self { active: ModuleDict::new("threading", "_active") }
    }
}

impl Threading {
    /// The name of the thread with this state; `None` where `threading` does not know it.
    pub fn name(
        &mut self,
        memory: &dyn TargetMemory,
        layout: &CpythonLayout,
        tstate: u64,
    ) -> Result<Option<String>, Gap> {
        let thread = self.thread(memory, layout, tstate).map_err(|why| Gap::new(WHAT, why))?;
        let Some(thread) = thread else { return Ok(None) };
        let name = attributes::value_of(memory, layout, thread, "_name");
        let name = name.map_err(|why| Gap::new(WHAT, why))?;
        let name = name.ok_or_else(|| Gap::new(WHAT, "the Thread object has no name"))?;
        strings::read(memory, &layout.text, name, WHAT).map(Some)
    }

    fn thread(
        &mut self,
        memory: &dyn TargetMemory,
        layout: &CpythonLayout,
        tstate: u64,
    ) -> Result<Option<u64>, NoDict> {
        let identity = memory.read_u64(tstate.wrapping_add(layout.walk.tstate_thread_id.into()))?;
        let Some(active) = self.active.locate(memory, layout, tstate)? else { return Ok(None) };
        let threads = dict::entries(memory, layout.dict, active)?;
        let is_its = |&(key, _): &(u64, u64)| is_int(memory, layout, key, identity);
        Ok(threads.into_iter().find(is_its).map(|(_, thread)| thread))
    }
}

/// Whether an object is this `int`: an identity is an address, of one or two digits.
fn is_int(memory: &dyn TargetMemory, layout: &CpythonLayout, object: u64, wanted: u64) -> bool {
    let mut words = [0; 16];
    if memory.read(object.wrapping_add(layout.in_object(INT_COUNT)), &mut words).is_err() {
        return false;
    }
    let (words, _) = words.as_chunks();
    let [count, digits] = words else { return false };
    let (low, high) = (wanted & ((1 << DIGIT_BITS) - 1), wanted >> DIGIT_BITS);
    let expected = if high == 0 { 1 } else { 2 };
    let digits = u64::from_le_bytes(*digits);
    // Of an int of one digit, what follows is somebody else's.
    let digits = if high == 0 { digits & u64::from(u32::MAX) } else { digits };
    u64::from_le_bytes(*count) == expected << layout.int_count_shift
        && digits == high << 32 | low
        && high >> DIGIT_BITS == 0
}

#[cfg(test)]
mod tests {
    use super::Threading;
    use crate::runtime::cpython::dict::tests::{put_dict, put_table, put_text};
    use crate::runtime::cpython::layout::{CpythonLayout, Kept};
    use crate::runtime::cpython::object::{IS_DICT, TYPE_FLAGS};
    use crate::runtime::cpython::offsets::of_minor;
    use crate::runtime::cpython::pages::CopiedPages;

    const TSTATE: u64 = 0x1_0000;
    const INTERPRETER: u64 = 0x2_0000;
    const MODULES: u64 = 0x3_0000;
    const MODULE: u64 = 0x4_0000;
    const NAMES: u64 = 0x5_0000;
    const ACTIVE: u64 = 0x6_0000;
    const TEXTS: u64 = 0x7_0000;
    const DICT_TYPE: u64 = 0x8_0000;
    const THREAD_TYPE: u64 = 0x9_0000;
    const THREAD: u64 = 0xa_0000;
    const KEYS: u64 = 0xb_0000;
    const INTS: u64 = 0xc_0000;
    const VALUES: u64 = 0xd_0000;
    const DICT: u64 = 0xe_0000;

    const IDENTITY: u64 = 0x7f3a_1234_5680;

    fn put_int(pages: &mut CopiedPages, layout: &CpythonLayout, address: u64, value: u64) {
        pages.put_u64(address + 16, 2 << layout.int_count_shift);
        pages.put_u64(address + 24, (value >> 30) << 32 | value & 0x3fff_ffff);
    }

    /// A process whose thread has a `Thread` object, the attributes of which a test puts there.
    fn process(minor: u8) -> (CpythonLayout, CopiedPages) {
        let layout = of_minor(minor).expect("known");
        let mut pages = CopiedPages::default();
        pages.put_u64(TSTATE + 16, INTERPRETER);
        pages.put_u64(TSTATE + u64::from(layout.walk.tstate_thread_id), IDENTITY);
        pages.put_u64(INTERPRETER + u64::from(layout.modules), MODULES);
        let texts = ["threading", "_active", "_target", "_name", "ingest"];
        for (at, text) in texts.into_iter().enumerate() {
            put_text(&mut pages, minor, TEXTS + 0x100 * at as u64, text);
        }
        put_dict(&mut pages, layout.dict, 0, MODULES, &[(TEXTS, MODULE)]);
        pages.put_u64(MODULE + 16, NAMES);
        put_dict(&mut pages, layout.dict, 0, NAMES, &[(TEXTS + 0x100, ACTIVE)]);
        pages.put_u64(ACTIVE + 8, DICT_TYPE);
        pages.put_u64(DICT_TYPE + TYPE_FLAGS, IS_DICT);
        put_int(&mut pages, &layout, INTS, IDENTITY + 0x1000);
        put_int(&mut pages, &layout, INTS + 0x100, IDENTITY);
        let active = [(INTS, 0xdead), (INTS + 0x100, THREAD)];
        put_dict(&mut pages, layout.dict, 0, ACTIVE, &active);
        pages.put_u64(THREAD + 8, THREAD_TYPE);
        let managed = if layout.kept == Kept::Behind { 0 } else { 1 << 4 | 1 << 2 };
        pages.put_u64(THREAD_TYPE + TYPE_FLAGS, managed);
        pages.put_u64(THREAD_TYPE + 32, 48);
        pages.put_u64(THREAD_TYPE + 288, 16);
        pages.put_u64(THREAD_TYPE + u64::from(layout.type_keys), KEYS);
        let kind = if minor < 11 { 0 } else { 2 };
        let names = [(TEXTS + 0x200, 0), (TEXTS + 0x300, 0)];
        put_table(&mut pages, layout.dict, kind, KEYS, &names);
        (layout, pages)
    }

    fn name(layout: &CpythonLayout, pages: &CopiedPages) -> Result<Option<String>, String> {
        Threading::default().name(pages, layout, TSTATE).map_err(|gap| gap.0)
    }

    /// In every version the name is found where an object has its values only, and where it has a
    /// dictionary, by itself or over those values.
    #[test]
    fn every_version() {
        let ingest = || Ok(Some("ingest".to_owned()));
        for minor in 8..=15 {
            let (layout, mut pages) = process(minor);
            let first = if minor >= 13 { 8 } else { 0 };
            let put_values = |pages: &mut CopiedPages, at: u64| {
                pages.put_u64(at + first, 0xdead);
                pages.put_u64(at + first + 8, TEXTS + 0x400);
            };
            match layout.kept {
                Kept::Behind => pages.put_u64(THREAD + 16, DICT),
                Kept::Apart => pages.put_u64(THREAD - 32, VALUES),
                Kept::Tagged => pages.put_u64(THREAD - 24, VALUES - 1),
                Kept::Inline => pages.put_u64(THREAD - 24, 0),
            }
            put_values(&mut pages, if minor >= 13 { THREAD + 48 } else { VALUES });
            pages.put_u64(DICT + 32, KEYS);
            pages.put_u64(DICT + 40, VALUES);
            assert_eq!(name(&layout, &pages), ingest(), "3.{minor}, values");

            put_values(&mut pages, VALUES);
            match layout.kept {
                Kept::Behind => {}
                Kept::Apart => pages.put_u64(THREAD - 32, 0),
                Kept::Tagged | Kept::Inline => {}
            }
            if minor > 10 {
                pages.put_u64(THREAD - 24, DICT);
            }
            assert_eq!(name(&layout, &pages), ingest(), "3.{minor}, dictionary over values");

            let pairs = [(TEXTS + 0x200, 0xdead), (TEXTS + 0x300, TEXTS + 0x400)];
            put_dict(&mut pages, layout.dict, 0, DICT, &pairs);
            pages.put_u64(DICT + 40, 0);
            assert_eq!(name(&layout, &pages), ingest(), "3.{minor}, dictionary");
        }
    }

    /// A thread that `threading` did not start has no name, and that is no gap; nor is it one where nobody
    /// has imported it.
    #[test]
    fn unknown_threads() {
        let (layout, mut pages) = process(12);
        pages.put_u64(TSTATE + u64::from(layout.walk.tstate_thread_id), IDENTITY + 8);
        assert_eq!(name(&layout, &pages), Ok(None));
        put_dict(&mut pages, layout.dict, 0, MODULES, &[(TEXTS + 0x100, MODULE)]);
        assert_eq!(name(&layout, &pages), Ok(None));
    }

    /// What cannot be read, or makes no sense, is a gap.
    #[test]
    fn misses() {
        for address in [ACTIVE + 32, MODULE + 16, THREAD + 8, THREAD - 24, TEXTS + 0x410] {
            for value in [8, u64::MAX, u64::MAX - 7] {
                let (layout, mut pages) = process(13);
                pages.put_u64(THREAD - 24, 0);
                pages.put_u64(THREAD + 48 + 16, TEXTS + 0x400);
                assert_eq!(name(&layout, &pages), Ok(Some("ingest".to_owned())));
                pages.put_u64(address, value);
                match name(&layout, &pages) {
                    Ok(name) => assert_ne!(name.as_deref(), Some("ingest"), "{address:#x}"),
                    Err(gap) => assert!(gap.starts_with("thread.python_name: "), "{gap}"),
                }
            }
        }
    }
}
