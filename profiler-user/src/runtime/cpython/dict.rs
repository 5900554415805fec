//! A `dict` in the target's memory to its entries, and text keys to whether they are the one looked for.

use super::layout::{KeysLayout, StrLayout};
use crate::process::{TargetMemory, Unreadable};

/// Entries read of one dictionary at most. Large services have some thousand modules.
pub const MAX_ENTRIES: u64 = 1 << 16;

/// The slots of the index table lie below this power of two, which no real dictionary reaches.
const MAX_LOG2_BYTES: u8 = 40;

/// `PyDictObject.ma_keys`, the same from 3.8 to 3.15.
pub const KEYS: u64 = 32;

impl KeysLayout {
    /// Where `ma_keys` lies.
    fn keys(self) -> u64 {
        match self {
            Self::Sized | Self::Logarithmic => KEYS,
            Self::LogarithmicAfterLonger => KEYS + 16,
        }
    }
}

/// Why a dictionary could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoDict {
    Unreadable(Unreadable),
    /// Its numbers cannot be those of a dictionary.
    Implausible,
}

impl From<Unreadable> for NoDict {
    fn from(error: Unreadable) -> Self {
        Self::Unreadable(error)
    }
}

impl std::fmt::Display for NoDict {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreadable(error) => error.fmt(formatter),
            Self::Implausible => formatter.write_str("no dictionary lies where it should"),
        }
    }
}

/// The addresses of keys and values.
pub fn entries(
    memory: &dyn TargetMemory,
    form: KeysLayout,
    dict: u64,
) -> Result<Vec<(u64, u64)>, NoDict> {
    let keys = memory.read_u64(dict.wrapping_add(form.keys()))?;
    let pairs = table(memory, form, keys)?;
    // What was deleted leaves an entry without a value.
    Ok(pairs.into_iter().filter(|&(key, value)| key != 0 && value != 0).collect())
}

/// All that a table of keys has, in its order: the keys that objects share have no values here.
pub fn table(
    memory: &dyn TargetMemory,
    form: KeysLayout,
    keys: u64,
) -> Result<Vec<(u64, u64)>, NoDict> {
    let word = |offset: u64| memory.read_u64(keys.wrapping_add(offset));
    let (begin, count, entry_bytes) = match form {
        KeysLayout::Sized => {
            let slots = word(8)?;
            let slot_bytes: u64 = match slots {
                0..=0xff => 1,
                0x100..=0xffff => 2,
                _ => 4,
            };
            let index_bytes = slots.checked_mul(slot_bytes).ok_or(NoDict::Implausible)?;
            (index_bytes.checked_add(40), word(32)?, 24)
        }
        KeysLayout::Logarithmic | KeysLayout::LogarithmicAfterLonger => {
            let [_, log2_bytes, kind, ..] = word(8)?.to_le_bytes();
            if log2_bytes > MAX_LOG2_BYTES || kind > 2 {
                return Err(NoDict::Implausible);
            }
            let entry_bytes = if kind == 0 { 24 } else { 16 };
            (Some(32 + (1_u64 << log2_bytes)), word(24)?, entry_bytes)
        }
    };
    if count > MAX_ENTRIES {
        return Err(NoDict::Implausible);
    }
    let begin = begin.ok_or(NoDict::Implausible)?;
    let mut bytes = vec![0; count as usize * entry_bytes];
    memory.read(keys.wrapping_add(begin), &mut bytes)?;
    let pair = |entry: &[u8]| {
        let (words, _) = entry.as_chunks();
        // Key and value are the last two words of an entry.
        let [.., key, value] = words else { return None };
        Some((u64::from_le_bytes(*key), u64::from_le_bytes(*value)))
    };
    Ok(bytes.chunks_exact(entry_bytes).filter_map(pair).collect())
}

/// The value of a text key. A text that cannot be read is not the one looked for.
pub fn value_of(
    memory: &dyn TargetMemory,
    form: KeysLayout,
    text: &StrLayout,
    dict: u64,
    wanted: &str,
) -> Result<Option<u64>, NoDict> {
    let pairs = entries(memory, form, dict)?;
    let found = pairs.into_iter().find(|&(key, _)| is_text(memory, text, key, wanted));
    Ok(found.map(|(_, value)| value))
}

/// Whether a key is this ASCII text. Most differ in length, which is one short read.
pub fn is_text(memory: &dyn TargetMemory, layout: &StrLayout, key: u64, wanted: &str) -> bool {
    let length = memory.read_u64(key.wrapping_add(layout.length.into()));
    if length != Ok(wanted.len() as u64) {
        return false;
    }
    let mut bytes = vec![0; wanted.len()];
    let data = key.wrapping_add(layout.ascii_data.into());
    memory.read(data, &mut bytes).is_ok() && bytes == wanted.as_bytes()
}

#[cfg(test)]
pub mod tests {
    use super::{KeysLayout, MAX_ENTRIES, NoDict, entries, value_of};
    use crate::runtime::cpython::offsets::of_minor;
    use crate::runtime::cpython::pages::CopiedPages;

    /// Puts a dictionary there, its keys 0x100 further on. Entries lack hashes where `kind` is not 0.
    pub fn put_dict(
        pages: &mut CopiedPages,
        form: KeysLayout,
        kind: u8,
        dict: u64,
        pairs: &[(u64, u64)],
    ) {
        let keys = dict + 0x100;
        pages.put_u64(dict + 32, keys);
        put_table(pages, form, kind, keys, pairs);
    }

    /// Puts a table of keys there.
    pub fn put_table(
        pages: &mut CopiedPages,
        form: KeysLayout,
        kind: u8,
        keys: u64,
        pairs: &[(u64, u64)],
    ) {
        let begin = match form {
            KeysLayout::Sized => {
                pages.put_u64(keys + 8, 8);
                pages.put_u64(keys + 32, pairs.len() as u64);
                keys + 40 + 8
            }
            KeysLayout::Logarithmic | KeysLayout::LogarithmicAfterLonger => {
                pages.put(keys + 8, &[3, 3, kind, 0, 0, 0, 0, 0]);
                pages.put_u64(keys + 24, pairs.len() as u64);
                keys + 32 + 8
            }
        };
        let mut at = begin;
        for (key, value) in pairs {
            let words: &[u64] = if kind == 0 { &[99, *key, *value] } else { &[*key, *value] };
            for word in words {
                pages.put_u64(at, *word);
                at += 8;
            }
        }
    }

    /// Puts an ASCII text there.
    pub fn put_text(pages: &mut CopiedPages, minor: u8, address: u64, text: &str) {
        let layout = of_minor(minor).expect("known").text;
        pages.put(address, &[0; 72]);
        pages.put_u64(address + u64::from(layout.length), text.len() as u64);
        pages.put(address + u64::from(layout.state), &0x65_u32.to_le_bytes());
        pages.put(address + u64::from(layout.ascii_data), text.as_bytes());
    }

    /// Both forms, with hashes and without; what was deleted is passed over.
    #[test]
    fn forms() {
        let pairs = [(0x10, 0x20), (0x11, 0), (0x12, 0x22)];
        for (form, kind) in
            [(KeysLayout::Sized, 0), (KeysLayout::Logarithmic, 0), (KeysLayout::Logarithmic, 1)]
        {
            let mut pages = CopiedPages::default();
            put_dict(&mut pages, form, kind, 0x1000, &pairs);
            let found = entries(&pages, form, 0x1000);
            assert_eq!(found, Ok(vec![(0x10, 0x20), (0x12, 0x22)]), "{form:?} {kind}");
        }
    }

    /// Keys of another length, of the same length, and of unreadable memory are not the one wanted.
    #[test]
    fn by_text() {
        let layout = of_minor(12).expect("known");
        let mut pages = CopiedPages::default();
        put_text(&mut pages, 12, 0x5000, "asyncio");
        put_text(&mut pages, 12, 0x6000, "asyncio.tasks");
        put_text(&mut pages, 12, 0x7000, "asyncio.tests");
        let pairs = [(0x9000, 1), (0x5000, 2), (0x7000, 3), (0x6000, 4)];
        put_dict(&mut pages, KeysLayout::Logarithmic, 1, 0x1000, &pairs);
        let value = |name| value_of(&pages, KeysLayout::Logarithmic, &layout.text, 0x1000, name);
        assert_eq!(value("asyncio.tasks"), Ok(Some(4)));
        assert_eq!(value("asyncio.locks"), Ok(None));
    }

    /// A hostile dictionary neither makes us read without end nor overflows.
    #[test]
    fn bounded() {
        let mut pages = CopiedPages::default();
        put_dict(&mut pages, KeysLayout::Logarithmic, 0, 0x1000, &[]);
        pages.put_u64(0x1100 + 24, MAX_ENTRIES + 1);
        assert_eq!(entries(&pages, KeysLayout::Logarithmic, 0x1000), Err(NoDict::Implausible));
        pages.put(0x1100 + 8, &[3, 200, 0, 0, 0, 0, 0, 0]);
        assert_eq!(entries(&pages, KeysLayout::Logarithmic, 0x1000), Err(NoDict::Implausible));
        let mut pages = CopiedPages::default();
        put_dict(&mut pages, KeysLayout::Sized, 0, 0x1000, &[]);
        pages.put_u64(0x1100 + 8, u64::MAX);
        assert_eq!(entries(&pages, KeysLayout::Sized, 0x1000), Err(NoDict::Implausible));
        assert!(matches!(entries(&pages, KeysLayout::Sized, 0x9000), Err(NoDict::Unreadable(_))));
    }
}
