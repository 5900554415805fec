//! Kernel return addresses to kernel functions.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::sync::Arc;

use crate::frame::{Frame, Language};
use crate::gap::Gap;

/// Symbols kept at most; a kernel with all its modules loaded has some 200 000.
const MAX_SYMBOLS: usize = 1 << 20;

/// No function of the kernel is longer; an address further behind the last symbol before it is in
/// none, or in one that came after the list was read.
const MAX_FUNCTION_BYTES: u64 = 256 * 1024;

const KERNEL: &str = "[kernel]";

#[derive(Debug, Clone, Copy)]
struct Symbol {
    address: u64,
    /// Where its name starts in `text`.
    name: u32,
    /// Index into `modules`.
    module: u16,
}

/// The kernel's functions by address: some 3 MB, read once in 50 ms. blazesym can read the same list,
/// but takes three times the memory, leaves out the modules' names, and bounds no function.
#[derive(Debug)]
pub struct KernelSymbols {
    symbols: Vec<Symbol>,
    /// Names, each ended by a line break.
    text: String,
    modules: Vec<Arc<str>>,
}

impl KernelSymbols {
    /// Reads the running kernel's list.
    pub fn read() -> Result<Self, Gap> {
        let file = File::open("/proc/kallsyms").map_err(|error| gap(&error))?;
        Self::parse(BufReader::new(file))
    }

    /// Reads lines of the form of `/proc/kallsyms`.
    pub fn parse(mut lines: impl BufRead) -> Result<Self, Gap> {
        let mut symbols =
            Self { symbols: Vec::new(), text: String::new(), modules: vec![KERNEL.into()] };
        let mut hidden = 0;
        let mut line = String::new();
        while symbols.symbols.len() < MAX_SYMBOLS {
            line.clear();
            if lines.read_line(&mut line).map_err(|error| gap(&error))? == 0 {
                break;
            }
            hidden += usize::from(!symbols.add(&line));
        }
        if symbols.symbols.is_empty() {
            let why = if hidden > 0 {
                "/proc/kallsyms shows no addresses (kernel.kptr_restrict, or the capability SYSLOG is missing)"
            } else {
                "/proc/kallsyms is empty"
            };
            return Err(gap(&why));
        }
        // Of several names for one place the kernel lists the best first; labels of sections come last.
        symbols.symbols.sort_by_key(|symbol| symbol.address);
        symbols.symbols.dedup_by_key(|symbol| symbol.address);
        symbols.symbols.shrink_to_fit();
        symbols.text.shrink_to_fit();
        Ok(symbols)
    }

    /// False where the line names a function but hides its address.
    fn add(&mut self, line: &str) -> bool {
        let mut fields = line.split_ascii_whitespace();
        let (Some(address), Some(kind), Some(name)) = (fields.next(), fields.next(), fields.next())
        else {
            return true;
        };
        let Ok(address) = u64::from_str_radix(address, 16) else { return true };
        // Half of the list are names for the padding before functions, from which nothing is called.
        if !matches!(kind, "t" | "T" | "w" | "W") || name.starts_with("__pfx_") {
            return true;
        }
        if address == 0 {
            return false;
        }
        let module = fields.next().unwrap_or(KERNEL);
        let (Some(module), Ok(start)) = (self.module(module), u32::try_from(self.text.len()))
        else {
            return true;
        };
        self.text.push_str(name);
        self.text.push('\n');
        self.symbols.push(Symbol { address, name: start, module });
        true
    }

    /// The index of a module's name. A module's functions stand together in the list.
    fn module(&mut self, name: &str) -> Option<u16> {
        let index = match self.modules.iter().rposition(|known| **known == *name) {
            Some(index) => index,
            None => {
                self.modules.push(name.into());
                self.modules.len() - 1
            }
        };
        u16::try_from(index).ok()
    }

    /// Names a kernel stack as `bpf_get_stack` takes it, innermost first. The first address may be an
    /// interrupted instruction; the others are return addresses, and the call lies before them.
    pub fn name(&self, addresses: &[u64]) -> Vec<Frame> {
        let calls = (0..).zip(addresses);
        calls
            .map(|(depth, &address)| {
                self.frame(address, address.wrapping_sub(u64::from(depth > 0)))
            })
            .collect()
    }

    fn frame(&self, address: u64, call: u64) -> Frame {
        let after = self.symbols.partition_point(|symbol| symbol.address <= call);
        let found = after.checked_sub(1).and_then(|index| self.symbols.get(index));
        let found = found.filter(|symbol| call - symbol.address < MAX_FUNCTION_BYTES);
        let name = found.and_then(|symbol| {
            let tail = self.text.get(usize::try_from(symbol.name).ok()?..)?;
            tail.lines().next()
        });
        let module = found.and_then(|symbol| self.modules.get(usize::from(symbol.module)));
        Frame {
            function: name.map(Into::into),
            file: None,
            line: None,
            module: module.cloned().or_else(|| Some(KERNEL.into())),
            language: Language::Kernel,
            inlined: false,
            address: Some(address),
            module_offset: None,
        }
    }
}

fn gap(why: &impl std::fmt::Display) -> Gap {
    Gap::new("names of kernel functions", why)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KALLSYMS: &str = "\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81001000 T first
ffffffff810010f0 t __pfx_second
ffffffff81001100 t second
ffffffff81001180 d data_is_no_function
ffffffff81002000 T io_schedule_timeout
ffffffff81002000 T __sched_text_start
ffffffff82000000 t nf_hook\t[nf_tables]
";

    fn functions(symbols: &KernelSymbols, addresses: &[u64]) -> Vec<Option<Arc<str>>> {
        symbols.name(addresses).into_iter().map(|frame| frame.function).collect()
    }

    /// The name that the kernel itself would print.
    #[test]
    fn label_of_a_section_is_no_function() {
        let symbols = KernelSymbols::parse(KALLSYMS.as_bytes()).unwrap();
        let found = functions(&symbols, &[0xffff_ffff_8100_2010]);
        assert_eq!(found, [Some("io_schedule_timeout".into())]);
    }

    /// A return address behind a function's last call still belongs to the caller, an interrupted
    /// first instruction to the function that it begins.
    #[test]
    fn addresses_to_functions() {
        let symbols = KernelSymbols::parse(KALLSYMS.as_bytes()).unwrap();
        let named = functions(&symbols, &[0xffff_ffff_8100_1100, 0xffff_ffff_8100_1100]);
        assert_eq!(named, [Some("second".into()), Some("first".into())]);
        let frame = &symbols.name(&[0xffff_ffff_8200_0010])[0];
        assert_eq!(frame.function.as_deref(), Some("nf_hook"));
        assert_eq!(frame.module.as_deref(), Some("[nf_tables]"));
        assert_eq!(frame.address, Some(0xffff_ffff_8200_0010));
    }

    /// Before the first function and far behind the last there is no name.
    #[test]
    fn addresses_without_functions() {
        let symbols = KernelSymbols::parse(KALLSYMS.as_bytes()).unwrap();
        let nowhere = [0, 0x1000, u64::MAX, 0xffff_ffff_8200_0000 + MAX_FUNCTION_BYTES + 1];
        assert_eq!(functions(&symbols, &nowhere), vec![None; nowhere.len()]);
    }

    /// A list without addresses is a gap that names the setting.
    #[test]
    fn hidden_addresses() {
        let text = "0000000000000000 T _stext\n0000000000000000 t second\n";
        let gap = KernelSymbols::parse(text.as_bytes()).unwrap_err();
        assert!(gap.to_string().contains("kptr_restrict"), "{gap}");
        assert!(KernelSymbols::parse("".as_bytes()).unwrap_err().to_string().contains("empty"));
    }

    /// The running kernel's list names a function that every kernel has, by its own address.
    #[test]
    fn own_kernel() {
        let symbols = match KernelSymbols::read() {
            Ok(symbols) => symbols,
            Err(gap) => return eprintln!("skipped: {gap}"),
        };
        let text = std::fs::read_to_string("/proc/kallsyms").unwrap();
        let line = text.lines().find(|line| line.ends_with(" vfs_read")).unwrap();
        let address = u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap();
        assert_eq!(functions(&symbols, &[address, address + 5]), vec![Some("vfs_read".into()); 2]);
    }
}
