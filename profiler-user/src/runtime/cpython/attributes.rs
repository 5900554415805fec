//! An object whose class is written in Python, to the value of one of its attributes.
//!
//! Objects of one class share a table of their attributes' names, and each has an array of the values
//! only, until somebody asks for its `__dict__` or gives it names that the others lack.

use super::dict::{self, NoDict};
use super::layout::{CpythonLayout, Kept};
use super::object::type_of;
use crate::process::TargetMemory;

/// `PyTypeObject.tp_basicsize` and `tp_dictoffset`, the same from 3.8 to 3.15.
const TYPE_SIZE: u64 = 32;
const TYPE_DICT_OFFSET: u64 = 288;

/// What a type's flags say: from 3.13 that its objects end in their values; from 3.11 that what holds an
/// object's attributes stands before it.
const INLINE_VALUES: u64 = 1 << 2;
const MANAGED_DICT: u64 = 1 << 4;

/// Where that stands: of the values in 3.11, of the dictionary, or of either in 3.12.
const VALUES_BEFORE: u64 = 32;
const DICT_BEFORE: u64 = 24;

/// The same in free-threaded builds, where nothing of the collector's stands between.
const DICT_RIGHT_BEFORE: u64 = 8;

/// `PyDictObject.ma_values`, the same from 3.8 to 3.15.
const DICT_VALUES: u64 = 40;

/// No object of a class is as long.
const MAX_OBJECT_BYTES: u64 = 1 << 20;

/// What holds the attributes of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    Nothing,
    Dict(u64),
    /// By the names that the type has.
    Values(u64),
}

/// The value's address; `None` where the object has no such attribute.
pub fn value_of(
    memory: &dyn TargetMemory,
    layout: &CpythonLayout,
    object: u64,
    wanted: &str,
) -> Result<Option<u64>, NoDict> {
    let (kind, flags) = type_of(memory, layout, object)?;
    match holder(memory, layout, object, (kind, flags))? {
        Holder::Nothing => Ok(None),
        Holder::Values(values) => {
            let keys = memory.read_u64(kind.wrapping_add(layout.type_keys.into()))?;
            of_values(memory, layout, (keys, values), wanted)
        }
        Holder::Dict(dict) => {
            let values = memory.read_u64(dict.wrapping_add(layout.in_object(DICT_VALUES)))?;
            if values == 0 {
                return dict::value_of(memory, layout.dict, &layout.text, dict, wanted);
            }
            let keys = memory.read_u64(dict.wrapping_add(layout.in_object(dict::KEYS)))?;
            of_values(memory, layout, (keys, values), wanted)
        }
    }
}

fn holder(
    memory: &dyn TargetMemory,
    layout: &CpythonLayout,
    object: u64,
    (kind, flags): (u64, u64),
) -> Result<Holder, NoDict> {
    let dict = |address| if address == 0 { Holder::Nothing } else { Holder::Dict(address) };
    let before = |bytes| memory.read_u64(object.wrapping_sub(bytes));
    if layout.kept == Kept::Behind || flags & MANAGED_DICT == 0 {
        let offset = memory.read_u64(kind.wrapping_add(layout.in_object(TYPE_DICT_OFFSET)))?;
        // Of objects that differ in length it is negative, which ours are not.
        if !(1..MAX_OBJECT_BYTES).contains(&offset) {
            return Ok(Holder::Nothing);
        }
        return Ok(dict(memory.read_u64(object.wrapping_add(offset))?));
    }
    match layout.kept {
        Kept::Apart => match before(VALUES_BEFORE)? {
            0 => Ok(dict(before(DICT_BEFORE)?)),
            values => Ok(Holder::Values(values)),
        },
        Kept::Tagged => match before(DICT_BEFORE)? {
            tagged if tagged & 1 == 1 => Ok(Holder::Values(tagged.wrapping_add(1))),
            address => Ok(dict(address)),
        },
        Kept::Behind | Kept::Inline => {
            let is_right = layout.extra_header > 0;
            let address = before(if is_right { DICT_RIGHT_BEFORE } else { DICT_BEFORE })?;
            if address != 0 || flags & INLINE_VALUES == 0 {
                return Ok(dict(address));
            }
            let size = memory.read_u64(kind.wrapping_add(layout.in_object(TYPE_SIZE)))?;
            if size > MAX_OBJECT_BYTES {
                return Err(NoDict::Implausible);
            }
            Ok(Holder::Values(object.wrapping_add(size)))
        }
    }
}

/// From 3.13 on, four bytes for the array's own state and four of padding precede the values.
fn of_values(
    memory: &dyn TargetMemory,
    layout: &CpythonLayout,
    (keys, values): (u64, u64),
    wanted: &str,
) -> Result<Option<u64>, NoDict> {
    let names = dict::table(memory, layout.dict, keys)?;
    let is_it =
        |&(name, _): &(u64, u64)| name != 0 && dict::is_text(memory, &layout.text, name, wanted);
    let Some(index) = names.iter().position(is_it) else { return Ok(None) };
    let first = if layout.kept == Kept::Inline { 8 } else { 0 };
    let value = memory.read_u64(values.wrapping_add(first + 8 * index as u64))?;
    Ok((value != 0).then_some(value))
}
