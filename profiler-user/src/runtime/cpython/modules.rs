//! The name of a dictionary that a module of Python's keeps, to where it lies: searched for once, then kept in mind.

use super::dict::{self, NoDict};
use super::layout::CpythonLayout;
use super::object::{IS_DICT, type_of};
use crate::process::TargetMemory;

/// `PyThreadState.interp`, the same from 3.8 to 3.15.
const TSTATE_INTERPRETER: u64 = 16;

/// `PyModuleObject.md_dict`, the same from 3.8 to 3.15.
const MODULE_DICT: u64 = 16;

/// How often a dictionary that was not found is asked for between two searches: a search reads through the
/// names of all modules.
pub const SEARCH_EVERY: u32 = 100;

/// A dictionary of a module's.
#[derive(Debug)]
pub struct ModuleDict {
    module: &'static str,
    variable: &'static str,
    found: Option<Found>,
    /// How often it was asked for since the last fruitless search.
    since_search: Option<u32>,
}

/// That of one interpreter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    interpreter: u64,
    dict: u64,
    /// What it was of when it was found: memory that was freed since has another.
    kind: u64,
}

impl ModuleDict {
    pub const fn new(module: &'static str, variable: &'static str) -> Self {
        Self { module, variable, found: None, since_search: None }
    }

    /// Where it lies in the interpreter of this thread; `None` where there is none.
    pub fn locate(
        &mut self,
        memory: &dyn TargetMemory,
        layout: &CpythonLayout,
        tstate: u64,
    ) -> Result<Option<u64>, NoDict> {
        let interpreter = memory.read_u64(tstate.wrapping_add(TSTATE_INTERPRETER))?;
        let holds = |found: &Found| {
            let kind = memory.read_u64(found.dict.wrapping_add(layout.object_type.into()));
            found.interpreter == interpreter && kind == Ok(found.kind)
        };
        self.found = self.found.filter(holds);
        if self.found.is_none() {
            self.found = self.search(memory, layout, interpreter)?;
        }
        Ok(self.found.map(|found| found.dict))
    }

    fn search(
        &mut self,
        memory: &dyn TargetMemory,
        layout: &CpythonLayout,
        interpreter: u64,
    ) -> Result<Option<Found>, NoDict> {
        if let Some(since) = &mut self.since_search {
            *since += 1;
            if *since < SEARCH_EVERY {
                return Ok(None);
            }
        }
        self.since_search = Some(0);
        let value_of = |dict, name| dict::value_of(memory, layout.dict, &layout.text, dict, name);
        let modules = memory.read_u64(interpreter.wrapping_add(layout.modules.into()))?;
        let Some(module) = value_of(modules, self.module)? else { return Ok(None) };
        let names = memory.read_u64(module.wrapping_add(layout.in_object(MODULE_DICT)))?;
        let Some(dict) = value_of(names, self.variable)? else { return Ok(None) };
        let (kind, flags) = type_of(memory, layout, dict)?;
        if flags & IS_DICT == 0 {
            return Ok(None);
        }
        self.since_search = None;
        Ok(Some(Found { interpreter, dict, kind }))
    }
}
