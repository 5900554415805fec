//! The constants that a V8 binary exports to what is read of frames and heap objects.
//!
//! Their names follow the spelling of C++ types in V8's source, so one constant has several names
//! over the versions. What they leave out is the same in all versions that are read: the layout of a
//! `ScopeInfo` and of an external string.

use std::collections::HashMap;
use std::ops::{Range, RangeInclusive};

use super::symbols::Symbols;
use crate::process::TargetMemory;

/// Major versions whose objects are known to be as this reader expects: node 18 to 26.
pub const VERSIONS: RangeInclusive<u32> = 10..=14;

/// No field that is read lies further from an object's beginning.
const OFFSETS: RangeInclusive<i32> = 0..=1024;

/// No slot of a frame that is read lies further from its frame pointer.
const SLOTS: RangeInclusive<i32> = -256..=-8;

/// The constant `SmiShiftSize` where a word holds a small integer in its upper half: V8 without
/// pointer compression, as node is built.
const FULL_WORDS: i32 = 31;

/// A `ScopeInfo` has had its function's position in fixed slots since this version.
const FIXED_POSITIONS: V8Version = V8Version { major: 12, minor: 8, build: 44, patch: 0 };

/// Types of functions that follow `JS_FUNCTION_TYPE`, where the last is not exported: classes,
/// constructors of arrays and promises.
const FUNCTION_TYPES: u16 = 16;

/// V8's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct V8Version {
    pub major: u32,
    pub minor: u32,
    pub build: u32,
    pub patch: u32,
}

impl std::fmt::Display for V8Version {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "{}.{}.{}.{}", self.major, self.minor, self.build, self.patch)
    }
}

/// Slots of a JavaScript frame, in bytes below its frame pointer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameSlots {
    /// The function's context; in a frame of another kind, what kind it is.
    pub context: u64,
    pub function: u64,
    pub bytecode_array: u64,
}

/// Representations of strings: values of the type's lowest bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StringKinds {
    pub mask: u16,
    pub sequential: u16,
    pub cons: u16,
    pub external: u16,
    pub sliced: u16,
    pub thin: u16,
    /// Set in the type of strings with one byte a character.
    pub one_byte: u16,
    /// Types of strings lie below this.
    pub first_other: u16,
}

/// Field offsets in bytes, from the object's beginning, and instance types.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct V8Layout {
    pub slots: FrameSlots,
    pub strings: StringKinds,
    pub map_type: u64,
    pub functions: RangeInclusive<u16>,
    pub shared_type: u16,
    pub scope_type: u16,
    pub script_type: u16,
    pub bytecode_type: u16,
    pub function_shared: u64,
    pub shared_name: u64,
    pub shared_script: u64,
    pub script_name: u64,
    pub script_source: u64,
    pub string_length: u64,
    pub string_characters: u64,
    /// A thin string's other, and a sliced string's parent.
    pub string_other: u64,
    pub cons_first: u64,
    pub cons_second: u64,
    pub sliced_offset: u64,
    /// Where the characters of an external string are.
    pub external_data: u64,
    /// In words after the map.
    pub scope_locals: usize,
    pub scope_variables: usize,
    /// Whether the two words before the variables are the function's position in its script.
    pub fixed_positions: bool,
}

/// The constants' values, by name.
#[derive(Debug)]
struct Constants(HashMap<String, i32>);

impl Constants {
    fn any(&self, names: &[&str]) -> Result<i32, String> {
        let value = names.iter().find_map(|name| self.0.get(*name));
        value.copied().ok_or_else(|| format!("it exports no constant v8dbg_{}", names[0]))
    }

    fn within(&self, names: &[&str], bounds: &RangeInclusive<i32>) -> Result<i32, String> {
        let value = self.any(names)?;
        let why = || format!("its constant v8dbg_{} is {value}", names[0]);
        bounds.contains(&value).then_some(value).ok_or_else(why)
    }

    fn offset(&self, names: &[&str]) -> Result<u64, String> {
        self.within(names, &OFFSETS).map(|value| value as u64)
    }

    fn slot(&self, name: &str) -> Result<u64, String> {
        self.within(&[name], &SLOTS).map(|value| u64::from(value.unsigned_abs()))
    }

    fn kind(&self, names: &[&str]) -> Result<u16, String> {
        self.within(names, &(0..=0xffff)).map(|value| value as u16)
    }
}

/// V8's version, out of the memory of the process.
pub fn version(memory: &dyn TargetMemory, bias: u64, symbols: &Symbols) -> Option<V8Version> {
    let part = |index: usize| memory.read_u32(bias.wrapping_add(symbols.version[index]?)).ok();
    Some(V8Version { major: part(0)?, minor: part(1)?, build: part(2)?, patch: part(3)? })
}

impl V8Layout {
    /// Or why this V8 cannot be read.
    pub fn read(
        memory: &dyn TargetMemory,
        bias: u64,
        symbols: &Symbols,
        version: V8Version,
    ) -> Result<(Self, FrameTypes), String> {
        if !VERSIONS.contains(&version.major) {
            let Range { start, end } = *VERSIONS.start()..*VERSIONS.end();
            return Err(format!("its V8 is {version}, and {start} to {end} can be read"));
        }
        let value = |(name, address): (&String, &u64)| {
            // The variables are of the type int.
            let value = memory.read_u32(bias.wrapping_add(*address)).ok()?;
            Some((name.clone(), value as i32))
        };
        let constants = Constants(symbols.constants.iter().filter_map(value).collect());
        let layout = Self::from_constants(&constants, version)?;
        Ok((layout, FrameTypes::from_constants(&constants)))
    }

    fn from_constants(all: &Constants, version: V8Version) -> Result<Self, String> {
        if all.any(&["SmiShiftSize"])? != FULL_WORDS {
            return Err("its V8 compresses pointers".to_owned());
        }
        let first = all.kind(&["FirstJSFunctionType", "type_JSFunction__JS_FUNCTION_TYPE"])?;
        let last = all.kind(&["LastJSFunctionType"]).unwrap_or(first + FUNCTION_TYPES);
        let resource = all.offset(&["class_ExternalString__resource__Object"])?;
        Ok(Self {
            slots: FrameSlots {
                context: all.slot("off_fp_context")?,
                function: all.slot("off_fp_function")?,
                bytecode_array: all.slot("off_fp_bytecode_array")?,
            },
            strings: StringKinds {
                mask: all.kind(&["StringRepresentationMask"])?,
                sequential: all.kind(&["SeqStringTag"])?,
                cons: all.kind(&["ConsStringTag"])?,
                external: all.kind(&["ExternalStringTag"])?,
                sliced: all.kind(&["SlicedStringTag"])?,
                thin: all.kind(&["ThinStringTag"])?,
                one_byte: all.kind(&["OneByteStringTag"])?,
                first_other: all.kind(&["FirstNonstringType"])?,
            },
            map_type: all.offset(&["class_Map__instance_type__uint16_t"])?,
            functions: first..=last,
            shared_type: all.kind(&["type_SharedFunctionInfo__SHARED_FUNCTION_INFO_TYPE"])?,
            scope_type: all.kind(&["type_ScopeInfo__SCOPE_INFO_TYPE"])?,
            script_type: all.kind(&["type_Script__SCRIPT_TYPE"])?,
            bytecode_type: all.kind(&["type_BytecodeArray__BYTECODE_ARRAY_TYPE"])?,
            function_shared: all.offset(&["class_JSFunction__shared__SharedFunctionInfo"])?,
            shared_name: all.offset(&[
                "class_SharedFunctionInfo__name_or_scope_info__Tagged_NameOrScopeInfoT_",
                "class_SharedFunctionInfo__name_or_scope_info__Tagged_Object_",
                "class_SharedFunctionInfo__name_or_scope_info__Object",
            ])?,
            shared_script: all.offset(&[
                "class_SharedFunctionInfo__script__Tagged_HeapObject_",
                "class_SharedFunctionInfo__script_or_debug_info__HeapObject",
                "class_SharedFunctionInfo__script_or_debug_info__Object",
            ])?,
            script_name: all.offset(&["class_Script__name__Object"])?,
            script_source: all.offset(&["class_Script__source__Object"])?,
            string_length: all.offset(&["class_String__length__int32_t"])?,
            string_characters: all.offset(&["class_SeqOneByteString__chars__char"])?,
            string_other: all.offset(&["class_ThinString__actual__String"])?,
            cons_first: all.offset(&["class_ConsString__first__String"])?,
            cons_second: all.offset(&["class_ConsString__second__String"])?,
            sliced_offset: all.offset(&["class_SlicedString__offset__SMI"])?,
            external_data: resource + 8,
            scope_locals: all.offset(&["scopeinfo_idx_ncontextlocals"])? as usize,
            scope_variables: all.offset(&["scopeinfo_idx_first_vars"])? as usize,
            fixed_positions: version >= FIXED_POSITIONS,
        })
    }
}

/// Names of the kinds of frames that are not of a JavaScript function.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrameTypes(HashMap<u64, String>);

impl FrameTypes {
    fn from_constants(all: &Constants) -> Self {
        let named = all.0.iter().filter_map(|(name, value)| {
            let name = name.strip_prefix("frametype_")?;
            Some((u64::try_from(*value).ok()?, name.to_owned()))
        });
        Self(named.collect())
    }

    #[cfg(test)]
    pub fn from<const N: usize>(named: [(u64, String); N]) -> Self {
        Self(named.into())
    }

    /// The kind that a frame's context slot names, if it names one: a small number, shifted by one.
    pub fn name(&self, context: u64) -> Option<&str> {
        if context & 1 != 0 {
            return None;
        }
        self.0.get(&(context >> 1)).map(String::as_str)
    }
}
