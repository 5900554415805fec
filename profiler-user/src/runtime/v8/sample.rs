//! Functions, scripts and strings as node 20 lays them out: what tests read instead of a process.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Code;
use super::layout::{FrameSlots, FrameTypes, StringKinds, V8Layout};
use crate::process::{TargetMemory, Unreadable};

const SHARED: u16 = 262;
const SCOPE: u16 = 261;
const SCRIPT: u16 = 165;
const FUNCTION: u16 = 2066;
const ODDBALL: u16 = 131;
const SEQUENTIAL_ONE: u16 = 40;
const SEQUENTIAL_TWO: u16 = 32;
const CONS: u16 = 33;
const EXTERNAL_ONE: u16 = 42;
const SLICED: u16 = 35;
const THIN: u16 = 37;

/// The constants of node 20.
pub fn layout() -> V8Layout {
    V8Layout {
        slots: FrameSlots { context: 8, function: 16, bytecode_array: 32 },
        strings: StringKinds {
            mask: 7,
            sequential: 0,
            cons: 1,
            external: 2,
            sliced: 3,
            thin: 5,
            one_byte: 8,
            first_other: 128,
        },
        map_type: 12,
        functions: FUNCTION..=FUNCTION + 16,
        shared_type: SHARED,
        scope_type: SCOPE,
        script_type: SCRIPT,
        bytecode_type: 191,
        function_shared: 24,
        shared_name: 16,
        shared_script: 32,
        script_name: 16,
        script_source: 8,
        string_length: 12,
        string_characters: 16,
        string_other: 16,
        cons_first: 16,
        cons_second: 24,
        sliced_offset: 24,
        external_data: 24,
        scope_locals: 2,
        scope_variables: 3,
        fixed_positions: false,
    }
}

/// Builtins in a file, and one kind of frame that belongs to no function.
pub fn code(path: &str, builtins: Range<u64>, (number, name): (u64, &str)) -> Code {
    Code {
        path: path.to_owned(),
        builtins,
        frame_types: FrameTypes::from([(number, name.to_owned())]),
        context_slot: 8,
    }
}

/// Bytes at addresses.
#[derive(Debug, Clone, Default)]
pub struct Pages(BTreeMap<u64, u8>);

impl Pages {
    pub fn put(&mut self, address: u64, bytes: &[u8]) {
        for (at, byte) in (address..).zip(bytes) {
            self.0.insert(at, *byte);
        }
    }

    pub fn put_u64(&mut self, address: u64, value: u64) {
        self.put(address, &value.to_le_bytes());
    }
}

impl TargetMemory for Pages {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unreadable> {
        let unreadable = Unreadable { address, bytes: buffer.len() };
        for (index, byte) in buffer.iter_mut().enumerate() {
            let at = address.checked_add(index as u64).ok_or(unreadable)?;
            *byte = *self.0.get(&at).ok_or(unreadable)?;
        }
        Ok(())
    }
}

/// A heap to put objects into. What it gives out are tagged words.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    pub memory: Pages,
    /// Variables in the scopes of functions made from now on.
    pub variables: u32,
    /// As since 12.8.
    pub fixed_positions: bool,
    next: u64,
    maps: BTreeMap<u16, u64>,
}

impl Objects {
    fn allocate(&mut self) -> u64 {
        self.next += 0x1000;
        0x1000_0000 + self.next
    }

    fn map(&mut self, kind: u16) -> u64 {
        if let Some(map) = self.maps.get(&kind) {
            return *map;
        }
        let address = self.allocate();
        self.memory.put(address + 12, &kind.to_le_bytes());
        self.maps.insert(kind, address + 1);
        address + 1
    }

    /// An object of these words after its map.
    fn object(&mut self, kind: u16, words: &[u64]) -> u64 {
        let map = self.map(kind);
        let address = self.allocate();
        self.memory.put_u64(address, map);
        for (at, word) in (address + 8..).step_by(8).zip(words) {
            self.memory.put_u64(at, *word);
        }
        address + 1
    }

    fn string(&mut self, kind: u16, length: usize, words: &[u64]) -> u64 {
        let mut all = vec![(length as u64) << 32];
        all.extend_from_slice(words);
        self.object(kind, &all)
    }

    pub fn one_byte(&mut self, text: &str) -> u64 {
        let string = self.string(SEQUENTIAL_ONE, text.len(), &[]);
        self.memory.put(string - 1 + 16, text.as_bytes());
        string
    }

    pub fn two_byte(&mut self, text: &str) -> u64 {
        let units: Vec<u16> = text.encode_utf16().collect();
        let string = self.string(SEQUENTIAL_TWO, units.len(), &[]);
        let bytes: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        self.memory.put(string - 1 + 16, &bytes);
        string
    }

    pub fn cons(&mut self, first: u64, second: u64) -> u64 {
        self.string(CONS, 0, &[first, second])
    }

    /// One whose first part is itself.
    pub fn endless_cons(&mut self) -> u64 {
        let cons = self.cons(0, 0);
        self.memory.put_u64(cons - 1 + 16, cons);
        cons
    }

    pub fn thin(&mut self, actual: u64) -> u64 {
        self.string(THIN, 0, &[actual])
    }

    pub fn sliced(&mut self, parent: u64, offset: u64, length: usize) -> u64 {
        self.string(SLICED, length, &[parent, offset << 32])
    }

    pub fn external(&mut self, text: &str) -> u64 {
        let data = self.allocate();
        self.memory.put(data, text.as_bytes());
        self.string(EXTERNAL_ONE, text.len(), &[0, data])
    }

    /// A function of a script, from one position to another.
    pub fn function(&mut self, name: &str, file: &str, source: &str, place: (u64, u64)) -> u64 {
        let inferred = self.one_byte("");
        let name = self.one_byte(name);
        self.scoped(name, inferred, file, source, place)
    }

    /// A function without a name, for which V8 made one up.
    pub fn anonymous(
        &mut self,
        inferred: &str,
        file: &str,
        source: &str,
        place: (u64, u64),
    ) -> u64 {
        let name = self.one_byte("");
        let inferred = self.one_byte(inferred);
        self.scoped(name, inferred, file, source, place)
    }

    fn scoped(
        &mut self,
        name: u64,
        inferred: u64,
        file: &str,
        source: &str,
        (start, end): (u64, u64),
    ) -> u64 {
        let (file, source) = (self.one_byte(file), self.one_byte(source));
        let script = self.object(SCRIPT, &[source, file]);
        let mut words = self.variables(start, end);
        words.extend([name, 0, inferred]);
        if !self.fixed_positions {
            words.extend([start << 32, end << 32]);
        }
        let scope = self.object(SCOPE, &words);
        self.with_shared(scope, script)
    }

    /// The code of a module as a whole.
    pub fn module(&mut self, file: &str, source: &str, (start, end): (u64, u64)) -> u64 {
        let (file, source) = (self.one_byte(file), self.one_byte(source));
        let script = self.object(SCRIPT, &[source, file]);
        let mut words = self.variables(start, end);
        words.extend([start << 32, end << 32, script]);
        let scope = self.object(SCOPE, &words);
        self.with_shared(scope, script)
    }

    /// The words of a scope up to its variables.
    fn variables(&mut self, start: u64, end: u64) -> Vec<u64> {
        let variable = self.one_byte("variable");
        let count = u64::from(self.variables);
        // Flags, parameters, variables.
        let mut words = vec![0x1234 << 32, 2 << 32, count << 32];
        if self.fixed_positions {
            words.extend([start << 32, end << 32]);
        }
        // 75 names have a table of their own.
        words.extend((0..if count < 75 { count } else { 1 }).map(|_| variable));
        words.extend((0..count).map(|index| index << 32));
        words
    }

    /// Puts a word behind what a function's scope consists of.
    pub fn append_to_scope(&mut self, function: u64, word: u64) {
        let field = |memory: &Pages, tagged: u64, offset| memory.read_u64(tagged - 1 + offset);
        let shared = field(&self.memory, function, 24).unwrap();
        let scope = field(&self.memory, shared, 16).unwrap();
        let behind = (scope - 1..).step_by(8).find(|at| self.memory.read_u64(*at).is_err());
        self.memory.put_u64(behind.unwrap(), word);
    }

    /// One of V8's own, which has a number in place of a script.
    pub fn builtin(&mut self) -> u64 {
        let name = self.one_byte("map");
        let undefined = self.object(ODDBALL, &[]);
        self.with_shared(name, undefined)
    }

    fn with_shared(&mut self, name_or_scope: u64, script: u64) -> u64 {
        let shared = self.object(SHARED, &[0, name_or_scope, 0, script]);
        self.object(FUNCTION, &[0, 0, shared])
    }

    /// Puts the `SharedFunctionInfo` of one function to the place of another's.
    pub fn replace_shared(&mut self, function: u64, by: u64) {
        let shared = |memory: &Pages, function: u64| memory.read_u64(function - 1 + 24).unwrap();
        let (old, new) = (shared(&self.memory, function), shared(&self.memory, by));
        for offset in [8, 16, 24, 32] {
            let word = self.memory.read_u64(new - 1 + offset).unwrap();
            self.memory.put_u64(old - 1 + offset, word);
        }
    }

    /// Of all words that there are.
    pub fn addresses(&self) -> Vec<u64> {
        self.memory.0.keys().copied().filter(|address| address % 8 == 0).collect()
    }
}
