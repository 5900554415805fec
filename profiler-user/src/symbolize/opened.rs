//! One image, as blazesym sees it, and an offset in its file to the functions that lie there.

use std::sync::Arc;

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolizer};
use object::{Object, ObjectSymbol};

use crate::process::image::{Identity, Image};
use crate::symbolize::snapshot::Snapshot;

/// One function at one place: the frame's own, or one that was inlined there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    pub function: Option<Arc<str>>,
    pub file: Option<Arc<str>>,
    pub line: Option<u32>,
    pub inlined: bool,
}

pub const NAMELESS: Name = Name { function: None, file: None, line: None, inlined: false };

/// An image as blazesym sees it.
#[derive(Debug)]
pub struct OpenedImage {
    pub identity: Identity,
    pub image: Arc<Image>,
    pub symbolizer: Symbolizer,
    /// The separate debug file, which is asked first.
    pub separate: Option<Separate>,
    /// The copy keeps the path of the source good.
    pub own: Result<(Elf, Snapshot), String>,
}

/// A file apart that holds an image's debug information.
#[derive(Debug)]
pub struct Separate {
    pub elf: Elf,
    /// Keeps its path good.
    pub _image: Image,
    /// What is read instead of it, where somebody else could change it.
    pub copy: Option<Snapshot>,
}

impl OpenedImage {
    /// Bytes of memory that the copies take.
    pub fn bytes(&self) -> u64 {
        let own = self.own.as_ref().map_or(0, |(_, copy)| copy.bytes());
        let separate = self.separate.as_ref().and_then(|separate| separate.copy.as_ref());
        own + separate.map_or(0, Snapshot::bytes)
    }

    /// The functions at an offset of the image's file.
    pub fn names(&self, offset: u64) -> Result<Vec<Name>, String> {
        // A debug file has the addresses of the file it is about, but not its offsets.
        if let (Some(separate), Some(address)) = (&self.separate, self.image.address_of(offset)) {
            match self.ask(&separate.elf, Input::VirtOffset(address)) {
                Ok(Some(names)) => return Ok(names),
                // Its symbols may make sense.
                Err(why) if separate.elf.debug_syms => return Err(why),
                _ => {}
            }
        }
        let (elf, _) = self.own.as_ref().map_err(Clone::clone)?;
        let names = self.ask(elf, Input::FileOffset(offset))?;
        Ok(names.unwrap_or_else(|| vec![NAMELESS]))
    }

    fn ask(&self, elf: &Elf, at: Input<u64>) -> Result<Option<Vec<Name>>, String> {
        let found = self.look_up(elf, at)?;
        if !elf.debug_syms {
            return Ok(found);
        }
        let symbols = Elf { debug_syms: false, ..elf.clone() };
        // Debug information has no name where that lies in a file which is missing.
        let Some(mut names) = found else { return self.look_up(&symbols, at) };
        if let Some(name) = names.last_mut()
            && lacks_path(name)
        {
            let symbol = self.look_up(&symbols, at)?.and_then(|mut names| names.pop()?.function);
            name.function = symbol.filter(|symbol| symbol.contains("::")).or(name.function.take());
        }
        Ok(Some(names))
    }

    fn look_up(&self, elf: &Elf, at: Input<u64>) -> Result<Option<Vec<Name>>, String> {
        let found = self.symbolizer.symbolize_single(&Source::Elf(elf.clone()), at);
        Ok(found.map_err(|error| error.to_string())?.as_sym().and_then(names))
    }
}

/// Whether debug information gave a function's name without the modules that it lies in.
///
/// Where it was reduced to lines, `{async_fn#0}` is all that rustc writes; the symbol has the rest. C
/// has no more to say.
fn lacks_path(name: &Name) -> bool {
    let own = name.function.as_deref().and_then(|function| function.split(['<', '(']).next());
    let is_c = name.file.as_deref().is_none_or(|file| file.ends_with(".c"));
    !is_c && own.is_some_and(|own| !own.is_empty() && !own.contains("::"))
}

/// `None` where the symbol does not cover the address, or does not say how far it reaches: it is then
/// only the nearest one.
fn names(symbol: &Sym<'_>) -> Option<Vec<Name>> {
    let covers = match symbol.size {
        Some(size) => symbol.offset < size,
        // Of a function in several pieces, debug information gives neither a beginning nor a size.
        None => symbol.offset == 0 || (symbol.addr == 0 && symbol.code_info.is_some()),
    };
    if symbol.name.is_empty() || !covers {
        return None;
    }
    let name = |function: &str, code: Option<&CodeInfo<'_>>, inlined| Name {
        function: (!function.is_empty()).then(|| public_name(function).into()),
        file: code.map(|code| code.to_path().to_string_lossy().into()),
        line: code.and_then(|code| code.line),
        inlined,
    };
    let inlined = symbol.inlined.iter().rev();
    let mut names: Vec<_> =
        inlined.map(|function| name(&function.name, function.code_info.as_ref(), true)).collect();
    names.push(name(&symbol.name, symbol.code_info.as_deref(), false));
    Some(names)
}

/// glibc's functions carry a second name for calls from within, and debug information tells that one.
fn public_name(function: &str) -> &str {
    function.strip_prefix("__GI_").unwrap_or(function)
}

/// The vdso has a few dozen dynamic symbols and nothing else.
pub fn dynamic_symbol(bytes: &[u8], address: Option<u64>) -> Name {
    let found = || {
        let file = object::File::parse(bytes).ok()?;
        let address = address?;
        let covers = |symbol: &object::Symbol<'_, '_>| {
            let end = symbol.address().saturating_add(symbol.size());
            (symbol.address()..end).contains(&address)
        };
        let symbol = file.dynamic_symbols().find(covers)?;
        Some(symbol.name().ok()?.into())
    };
    Name { function: found(), ..NAMELESS }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::path::Path;

    use blazesym::symbolize::InlinedFn;

    use super::*;

    fn code(line: u32) -> CodeInfo<'static> {
        CodeInfo {
            dir: Some(Path::new("/src").into()),
            file: OsStr::new("a.c").into(),
            line: Some(line),
            column: None,
            _non_exhaustive: (),
        }
    }

    fn symbol(offset: usize, size: Option<usize>) -> Sym<'static> {
        let inlined = |name: &'static str, line| InlinedFn {
            name: name.into(),
            code_info: Some(code(line)),
            _non_exhaustive: (),
        };
        Sym {
            name: "__GI_outer".into(),
            module: None,
            addr: 0x1000,
            offset,
            size,
            code_info: Some(Box::new(code(10))),
            inlined: Box::new([inlined("middle", 20), inlined("inner", 30)]),
            _non_exhaustive: (),
        }
    }

    /// Inlined functions come innermost first, each with the line at which it stands.
    #[test]
    fn inlined_functions() {
        let names = names(&symbol(8, Some(16))).unwrap();
        let shown: Vec<_> = names
            .iter()
            .map(|name| (name.function.as_deref().unwrap(), name.line.unwrap(), name.inlined))
            .collect();
        assert_eq!(shown, [("inner", 30, true), ("middle", 20, true), ("outer", 10, false)]);
        assert_eq!(names[0].file.as_deref(), Some("/src/a.c"));
    }

    /// Names that debug information cut short are told from whole ones, and from C's.
    #[test]
    fn names_without_path() {
        let lacks = |function: &str, file: &str| {
            let (function, file) = (Some(function.into()), Some(file.into()));
            lacks_path(&Name { function, file, ..NAMELESS })
        };
        assert!(lacks("{async_fn#0}", "/srv/main.rs"));
        assert!(lacks("poll<shop::pay::{async_fn_env#0}>", "/srv/core.rs"));
        assert!(lacks("pop(int)", "/srv/queue.cpp"));
        assert!(!lacks("shop::pay::{{closure}}", "/srv/main.rs"));
        assert!(!lacks("<shop::Queue as core::fmt::Debug>::fmt", "/srv/main.rs"));
        assert!(!lacks("dictFind", "/build/dict.c"));
    }

    /// The nearest symbol is no name for an address behind its end, nor behind the beginning of one
    /// of unknown size.
    #[test]
    fn symbols_that_end_before_the_address() {
        assert!(names(&symbol(15, Some(16))).is_some());
        assert_eq!(names(&symbol(16, Some(16))), None);
        assert_eq!(names(&symbol(1, None)), None);
        assert!(names(&symbol(0, None)).is_some());
        let in_pieces = Sym { addr: 0, ..symbol(0x1001, None) };
        assert!(names(&in_pieces).is_some());
        assert_eq!(names(&Sym { code_info: None, ..in_pieces }), None);
        assert_eq!(names(&Sym { name: "".into(), ..symbol(0, None) }), None);
    }
}
