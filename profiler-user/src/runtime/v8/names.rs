//! A function object to its name, its script and the line on which it is defined.
//!
//! Names are kept by the address of the function's `SharedFunctionInfo`, together with two words of
//! it: the collector may move another one to the same place.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::heap::{Heap, object, small_integer};
use super::layout::V8Layout;
use crate::process::TargetMemory;

/// Functions whose names are kept; forgotten all at once when there are more. Some hundred bytes each.
const MAX_FUNCTIONS: usize = 8192;

/// Scripts whose lines are kept.
const MAX_SCRIPTS: usize = 1024;

/// Lines of all scripts together that are kept: 16 MB. A bundle has some ten thousand.
const MAX_LINES: usize = 4 << 20;

/// Characters of sources looked through for their lines, for one stack; all of a service may be in one file.
pub const MAX_SOURCE: u64 = 8 << 20;

/// Characters of a function's name, and of a script's.
pub const MAX_NAME: u64 = 1024;
pub const MAX_PATH: u64 = 4096;

/// Variables of a scope whose names V8 keeps in its `ScopeInfo`; more are in a table of their own,
/// which takes one word there.
const INLINE_VARIABLES: usize = 75;

/// Words between the variables and the function's name, and the name itself.
const WORDS_BEFORE_NAME: usize = 3;

/// Maps of functions that are remembered: each context has about a dozen.
const MAX_MAPS: usize = 4096;

/// What a function is called in the stack traces of the target itself, and where it is defined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    pub name: Arc<str>,
    /// A path, or a name such as `node:fs`.
    pub file: Option<Arc<str>>,
    /// Counted from 1.
    pub line: Option<u32>,
}

/// A function as the heap shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedFunction {
    Script(Arc<Function>),
    /// One that V8 brings itself: it has no script.
    Builtin,
}

/// What is known of a `SharedFunctionInfo`, as long as it has these words.
#[derive(Debug)]
struct Known {
    words: [u64; 2],
    named: NamedFunction,
}

#[derive(Debug)]
struct Script {
    words: [u64; 2],
    file: Option<String>,
    /// Where each line ends, in characters; `None` where the source could not be read.
    line_ends: Option<Vec<u32>>,
}

/// Names functions, and remembers the names.
#[derive(Debug, Default)]
pub struct FunctionNames {
    functions: HashMap<u64, Known>,
    scripts: HashMap<u64, Script>,
    lines: usize,
    /// Characters of sources looked through for the present stack.
    looked_through: u64,
    /// Maps of functions, of `SharedFunctionInfo`s and of bytecode.
    function_maps: HashSet<u64>,
    shared_map: Option<u64>,
    bytecode_map: Option<u64>,
}

impl FunctionNames {
    /// What follows is of one stack.
    pub fn begin_stack(&mut self) {
        self.looked_through = 0;
    }

    /// `None` for a word that points to no function, or to one that has been moved.
    pub fn function(
        &mut self,
        memory: &dyn TargetMemory,
        layout: &V8Layout,
        function: u64,
    ) -> Option<NamedFunction> {
        let heap = Heap { memory, layout };
        let mut function = function;
        let mut map = heap.field(function, 0)?;
        // The collector leaves behind where it moved an object to, until it uses the page again.
        if let Some(moved) = forwarded(map) {
            function = moved;
            map = heap.field(function, 0)?;
        }
        if !self.function_maps.contains(&map) {
            let kind = heap.type_of_map(map)?;
            if !layout.functions.contains(&kind) {
                return None;
            }
            if self.function_maps.len() >= MAX_MAPS {
                self.function_maps.clear();
            }
            self.function_maps.insert(map);
        }
        let shared = heap.field(function, layout.function_shared)?;
        self.shared(&heap, shared)
    }

    /// Whether a word points to bytecode: the frame that has it is interpreted, or of code that V8
    /// translated without optimising.
    pub fn is_bytecode(&mut self, memory: &dyn TargetMemory, layout: &V8Layout, word: u64) -> bool {
        let heap = Heap { memory, layout };
        let Some(map) = heap.field(word, 0) else { return false };
        if self.bytecode_map == Some(map) {
            return true;
        }
        let is_bytecode = heap.type_of_map(map) == Some(layout.bytecode_type);
        if is_bytecode {
            self.bytecode_map = Some(map);
        }
        is_bytecode
    }

    fn shared(&mut self, heap: &Heap<'_>, shared: u64) -> Option<NamedFunction> {
        let map = heap.field(shared, 0)?;
        if self.shared_map != Some(map) {
            if heap.type_of_map(map)? != heap.layout.shared_type {
                return None;
            }
            self.shared_map = Some(map);
        }
        let words = [
            heap.field(shared, heap.layout.shared_name)?,
            heap.field(shared, heap.layout.shared_script)?,
        ];
        if let Some(known) = self.functions.get(&shared).filter(|known| known.words == words) {
            return Some(known.named.clone());
        }
        let named = self.read(heap, words)?;
        if self.functions.len() >= MAX_FUNCTIONS {
            self.functions.clear();
        }
        self.functions.insert(shared, Known { words, named: named.clone() });
        Some(named)
    }

    fn read(
        &mut self,
        heap: &Heap<'_>,
        [name_or_scope, script]: [u64; 2],
    ) -> Option<NamedFunction> {
        object(script)?;
        if heap.type_of(script)? != heap.layout.script_type {
            return Some(NamedFunction::Builtin);
        }
        let scope = if heap.is_string(name_or_scope) {
            Scope { name: heap.text(name_or_scope, MAX_NAME), start: None }
        } else if heap.type_of(name_or_scope) == Some(heap.layout.scope_type) {
            Scope::read(heap, name_or_scope)?
        } else {
            Scope::default()
        };
        let (file, line) = self.place(heap, script, scope.start)?;
        let name = scope.name.filter(|name| !name.is_empty());
        let name = name.unwrap_or_else(|| "(anonymous)".to_owned());
        Some(NamedFunction::Script(Arc::new(Function {
            name: name.into(),
            file: file.map(Into::into),
            line,
        })))
    }

    /// A script's name, and the line of a position in it.
    fn place(
        &mut self,
        heap: &Heap<'_>,
        script: u64,
        position: Option<u32>,
    ) -> Option<(Option<String>, Option<u32>)> {
        let words = [
            heap.field(script, heap.layout.script_name)?,
            heap.field(script, heap.layout.script_source)?,
        ];
        if self.scripts.get(&script).is_none_or(|known| known.words != words) {
            self.read_script(heap, script, words);
        }
        let known = self.scripts.get(&script)?;
        let line = position.zip(known.line_ends.as_ref()).and_then(|(position, ends)| {
            let before = ends.partition_point(|end| *end < position);
            u32::try_from(before).ok()?.checked_add(1)
        });
        Some((known.file.clone(), line))
    }

    fn read_script(&mut self, heap: &Heap<'_>, script: u64, words: [u64; 2]) {
        let [name, source] = words;
        let file = heap.text(name, MAX_PATH).map(|name| path(&name));
        let length = heap.length(source).unwrap_or_default();
        if length <= MAX_SOURCE && length > MAX_SOURCE - self.looked_through {
            // The next stack that it is on begins anew.
            return;
        }
        let line_ends = line_ends(heap, source);
        if line_ends.is_some() {
            self.looked_through += length;
        }
        let lines = line_ends.as_ref().map_or(0, Vec::len);
        if self.scripts.len() >= MAX_SCRIPTS || self.lines.saturating_add(lines) > MAX_LINES {
            self.scripts.clear();
            self.lines = 0;
        }
        self.lines += lines;
        let script_before = self.scripts.insert(script, Script { words, file, line_ends });
        let before = script_before.and_then(|script| script.line_ends).map_or(0, |ends| ends.len());
        self.lines = self.lines.saturating_sub(before);
    }
}

/// The object to which a first word leads that is no map any more.
fn forwarded(first: u64) -> Option<u64> {
    (first & 3 == 0).then_some(first | 1)
}

/// Where the lines of a source end: as in V8, at a line feed, a carriage return, or a separator of
/// Unicode's.
fn line_ends(heap: &Heap<'_>, source: u64) -> Option<Vec<u32>> {
    const FEED: u16 = 0x0a;
    const RETURN: u16 = 0x0d;
    let mut ends = Vec::new();
    let (mut position, mut last) = (0_u32, 0);
    heap.characters(source, MAX_SOURCE, &mut |unit| {
        match unit {
            // Both together end one line.
            FEED if last == RETURN => {
                ends.pop();
                ends.push(position);
            }
            FEED | RETURN | 0x2028 | 0x2029 => ends.push(position),
            _ => {}
        }
        last = unit;
        position += 1;
    })?;
    Some(ends)
}

/// A file's URL as its path; anything else as it is.
fn path(name: &str) -> String {
    let Some(encoded) = name.strip_prefix("file://") else { return name.to_owned() };
    let bytes = encoded.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let escaped = bytes.get(at + 1..at + 3).filter(|_| *byte == b'%');
        let value = escaped
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        decoded.push(value.unwrap_or(*byte));
        at += if value.is_some() { 3 } else { 1 };
    }
    String::from_utf8(decoded).unwrap_or_else(|_| encoded.to_owned())
}

/// What a `ScopeInfo` says of its function.
#[derive(Debug, Default)]
struct Scope {
    name: Option<String>,
    /// Where its parameters begin, in characters of the source.
    start: Option<u32>,
}

impl Scope {
    /// The words after the map: flags, the number of parameters, that of variables, from 12.8 on
    /// the position, the variables, perhaps one for a class; then the name, its slot, and the name
    /// that V8 made up for a function without one; before 12.8 the position. Which there are, the
    /// flags tell by bits that move with every version; the words' types tell as well.
    fn read(heap: &Heap<'_>, scope: u64) -> Option<Self> {
        let layout = heap.layout;
        let words = object(scope)?.checked_add(8)?;
        let word = |index: usize| heap.word(words.checked_add(8 * index as u64)?);
        let number = |index: usize| word(index).and_then(small_integer);
        let locals = number(layout.scope_locals)? as usize;
        let skipped = if locals < INLINE_VARIABLES { 2 * locals } else { 1 + locals };
        let first = layout.scope_variables.checked_add(skipped)?;
        let named = (first..first + WORDS_BEFORE_NAME)
            .take_while(|index| *index == first || number(index - 1).is_some())
            .find(|index| word(*index).is_some_and(|word| heap.is_string(word)));
        let mut name = None;
        // The code of a module as a whole has no name, and its position in place of it.
        let mut position = first;
        if let Some(at) = named {
            let text = |index| heap.text(word(index)?, MAX_NAME).filter(|name| !name.is_empty());
            name = text(at).or_else(|| text(at + 2));
            position = at + 3;
        }
        if layout.fixed_positions {
            position = layout.scope_variables.checked_sub(2)?;
        }
        let start = number(position).zip(number(position + 1));
        let start = start.filter(|(start, end)| start <= end).map(|(start, _)| start);
        Some(Self { name, start })
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{Objects, layout};
    use super::{Function, FunctionNames, NamedFunction, V8Layout, path};

    fn function(objects: &Objects, names: &mut FunctionNames, tagged: u64) -> Option<Function> {
        match names.function(&objects.memory, &layout(), tagged) {
            Some(NamedFunction::Script(function)) => Some(Function::clone(&function)),
            _ => None,
        }
    }

    const SOURCE: &str = "'use strict';\r\n\nfunction handle(request) {\n  work();\n}\n";

    /// A function comes out with its name, its file, and the line of its parameters.
    #[test]
    fn whole_function() {
        let mut objects = Objects::default();
        let tagged = objects.function("handle", "file:///srv/my%20app.mjs", SOURCE, (31, 54));
        let expected =
            Function { name: "handle".into(), file: Some("/srv/my app.mjs".into()), line: Some(3) };
        let mut names = FunctionNames::default();
        assert_eq!(function(&objects, &mut names, tagged), Some(expected.clone()));
        // And again, from what is remembered.
        assert_eq!(function(&objects, &mut names, tagged), Some(expected));
    }

    /// A function without a name has the one that V8 made up, or none.
    #[test]
    fn anonymous() {
        let mut objects = Objects::default();
        let inferred = objects.anonymous("server.on", "/srv/app.js", SOURCE, (31, 54));
        let nameless = objects.anonymous("", "/srv/app.js", SOURCE, (0, 54));
        let mut names = FunctionNames::default();
        let mut name = |tagged| function(&objects, &mut names, tagged).map(|found| found.name);
        assert_eq!(name(inferred).as_deref(), Some("server.on"));
        assert_eq!(name(nameless).as_deref(), Some("(anonymous)"));
    }

    /// Variables of the function's scope do not pass for its name, nor their numbers for its place.
    #[test]
    fn variables() {
        let mut objects = Objects::default();
        for count in [1, 3, 80] {
            objects.variables = count;
            let tagged = objects.function("handle", "/srv/app.js", SOURCE, (31, 54));
            let found = function(&objects, &mut FunctionNames::default(), tagged).unwrap();
            assert_eq!((&*found.name, found.line), ("handle", Some(3)), "{count}");
        }
    }

    /// What lies behind a `ScopeInfo` is not part of it.
    #[test]
    fn behind_the_scope() {
        let mut objects = Objects::default();
        let stranger = objects.one_byte("something else");
        let tagged = objects.anonymous("", "/srv/app.js", SOURCE, (31, 54));
        objects.append_to_scope(tagged, stranger);
        let found = function(&objects, &mut FunctionNames::default(), tagged).unwrap();
        assert_eq!((&*found.name, found.line), ("(anonymous)", Some(3)));
    }

    /// A module's own code has no name, but a place.
    #[test]
    fn module_code() {
        let mut objects = Objects::default();
        let tagged = objects.module("/srv/app.mjs", SOURCE, (0, 54));
        let found = function(&objects, &mut FunctionNames::default(), tagged).unwrap();
        assert_eq!((&*found.name, found.line), ("(anonymous)", Some(1)));
    }

    /// Since 12.8, the position stands before the variables.
    #[test]
    fn fixed_positions() {
        let mut objects = Objects::default();
        objects.fixed_positions = true;
        objects.variables = 2;
        let tagged = objects.function("handle", "/srv/app.js", SOURCE, (31, 54));
        let layout = V8Layout { fixed_positions: true, scope_variables: 5, ..layout() };
        let named = FunctionNames::default().function(&objects.memory, &layout, tagged);
        let Some(NamedFunction::Script(found)) = named else { panic!("{named:?}") };
        assert_eq!((&*found.name, found.line), ("handle", Some(3)));
    }

    /// V8's own functions have no script; what has been moved, or is something else, is nothing.
    #[test]
    fn other_objects() {
        let mut objects = Objects::default();
        let builtin = objects.builtin();
        let string = objects.one_byte("no function");
        let moved = objects.function("handle", "/srv/app.js", SOURCE, (31, 54));
        objects.memory.put_u64(moved - 1, 0x7000);
        let mut names = FunctionNames::default();
        let mut named = |tagged| names.function(&objects.memory, &layout(), tagged);
        assert_eq!(named(builtin), Some(NamedFunction::Builtin));
        for tagged in [string, moved, 0, 1, u64::MAX, 0x1_0000_0001] {
            assert_eq!(named(tagged), None, "{tagged:#x}");
        }
    }

    /// A function that was moved after the stack was copied is found where it is now.
    #[test]
    fn moved_function() {
        let mut objects = Objects::default();
        let before = objects.one_byte("what was there");
        let tagged = objects.function("handle", "/srv/app.js", SOURCE, (31, 54));
        objects.memory.put_u64(before - 1, tagged - 1);
        let found = function(&objects, &mut FunctionNames::default(), before).unwrap();
        assert_eq!((&*found.name, found.line), ("handle", Some(3)));
    }

    /// Another function that the collector moved to a known place is read anew.
    #[test]
    fn reused_place() {
        let mut objects = Objects::default();
        let tagged = objects.function("first", "/srv/app.js", SOURCE, (31, 54));
        let mut names = FunctionNames::default();
        assert_eq!(function(&objects, &mut names, tagged).unwrap().name.as_ref(), "first");
        let other = objects.function("second", "/srv/app.js", SOURCE, (31, 54));
        objects.replace_shared(tagged, other);
        assert_eq!(function(&objects, &mut names, tagged).unwrap().name.as_ref(), "second");
    }

    /// Any byte of a function's objects may be garbage: there is an answer all the same.
    #[test]
    fn garbage() {
        let mut objects = Objects::default();
        let tagged = objects.function("handle", "/srv/app.js", SOURCE, (31, 54));
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for address in objects.addresses() {
            for _ in 0..4 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let mut damaged = objects.clone();
                damaged.memory.put_u64(address, seed);
                let _ = function(&damaged, &mut FunctionNames::default(), tagged);
            }
        }
    }

    /// Only files' URLs are decoded.
    #[test]
    fn names_of_scripts() {
        assert_eq!(path("file:///srv/a%20b.mjs"), "/srv/a b.mjs");
        assert_eq!(path("file:///srv/50%"), "/srv/50%");
        assert_eq!(path("file:///srv/%zz"), "/srv/%zz");
        assert_eq!(path("/srv/a%20b.js"), "/srv/a%20b.js");
        assert_eq!(path("node:internal/timers"), "node:internal/timers");
    }
}
