//! The text of `/proc/PID/maps` to regions.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// What backs a region.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Backing {
    /// A file, by the path that the kernel shows (seen from the reader's root; `(deleted)` cut off).
    File(PathBuf),
    /// `[vdso]`, `[heap]`, `[stack]` and their kin, brackets included.
    Special(String),
    Anonymous,
}

/// One line of `/proc/PID/maps`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Region {
    pub start: u64,
    pub end: u64,
    pub executable: bool,
    pub writable: bool,
    /// Offset in the file, bytes.
    pub offset: u64,
    pub device: (u32, u32),
    pub inode: u64,
    pub backing: Backing,
}

/// Every line that reads as a mapping, in the order of the text, which is that of the addresses.
///
/// The kernel writes no other lines; one that does not read as a mapping is passed over.
pub fn parse(text: &str) -> Vec<Region> {
    text.lines().filter_map(region).collect()
}

fn region(line: &str) -> Option<Region> {
    let (addresses, rest) = field(line)?;
    let (permissions, rest) = field(rest)?;
    let (offset, rest) = field(rest)?;
    let (device, rest) = field(rest)?;
    let (inode, name) = field(rest)?;
    let (start, end) = addresses.split_once('-')?;
    let (major, minor) = device.split_once(':')?;
    Some(Region {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        executable: permissions.as_bytes().get(2) == Some(&b'x'),
        writable: permissions.as_bytes().get(1) == Some(&b'w'),
        offset: u64::from_str_radix(offset, 16).ok()?,
        device: (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?),
        inode: inode.parse().ok()?,
        backing: backing(name),
    })
}

/// The next field and what follows the blanks after it. The last field, a path, may hold blanks itself.
fn field(text: &str) -> Option<(&str, &str)> {
    let (field, rest) = text.split_once(' ').unwrap_or((text, ""));
    (!field.is_empty()).then(|| (field, rest.trim_start_matches(' ')))
}

fn backing(name: &str) -> Backing {
    if name.is_empty() {
        return Backing::Anonymous;
    }
    if !name.starts_with('/') {
        return Backing::Special(name.to_owned());
    }
    Backing::File(unescape(name.strip_suffix(" (deleted)").unwrap_or(name)))
}

/// The kernel writes a line break within a path as `\012`, and nothing else in octal.
fn unescape(path: &str) -> PathBuf {
    PathBuf::from(OsString::from_vec(path.replace("\\012", "\n").into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
55d0c5a00000-55d0c5a01000 r--p 00000000 fe:00 131077                     /usr/bin/python3.11
55d0c5a01000-55d0c5cb2000 r-xp 00001000 fe:00 131077                     /usr/bin/python3.11
55d0c7000000-55d0c7021000 rw-p 00000000 00:00 0                          [heap]
7f1e60000000-7f1e60021000 rw-p 00000000 00:00 0 
7f1e64000000-7f1e64002000 r-xp 00003000 103:1f 77                        /srv/my app/lib one.so (deleted)
7f1e65000000-7f1e65001000 r-xp 00000000 00:01 9                          /memfd:jit (deleted)
7f1e66000000-7f1e66001000 rw-p 00000000 00:00 0                          [anon:glibc: malloc]
7f1e67000000-7f1e67001000 r--s 00000000 00:0e 1058                       anon_inode:[perf_event]
7f1e68000000-7f1e68001000 r-xp 00000000 fe:00 5                          /odd\\012name.so
7ffd1b9c8000-7ffd1b9ca000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    /// Every kind of line of a real text comes out with its numbers and its backing.
    #[test]
    fn lines_of_every_kind() {
        let regions = parse(TEXT);
        assert_eq!(regions.len(), TEXT.lines().count());
        assert_eq!(
            regions[1],
            Region {
                start: 0x55d0_c5a0_1000,
                end: 0x55d0_c5cb_2000,
                executable: true,
                writable: false,
                offset: 0x1000,
                device: (0xfe, 0),
                inode: 131_077,
                backing: Backing::File("/usr/bin/python3.11".into()),
            }
        );
        let backings: Vec<_> = regions[2..].iter().map(|region| &region.backing).collect();
        let special = |name: &str| Backing::Special(name.to_owned());
        assert_eq!(
            backings,
            [
                &special("[heap]"),
                &Backing::Anonymous,
                &Backing::File("/srv/my app/lib one.so".into()),
                &Backing::File("/memfd:jit".into()),
                &special("[anon:glibc: malloc]"),
                &special("anon_inode:[perf_event]"),
                &Backing::File("/odd\nname.so".into()),
                &special("[vdso]"),
                &special("[vsyscall]"),
            ]
        );
        assert_eq!(regions[4].device, (0x103, 0x1f));
        assert!(regions[2].writable && !regions[2].executable);
    }

    /// A line that is no mapping costs only itself.
    #[test]
    fn other_lines_are_passed_over() {
        let text = format!("\nnonsense\n1-2 r-xp zz 00:00 0\n7f00-7g00 r-xp 0 00:00 0\n{TEXT}");
        assert_eq!(parse(&text), parse(TEXT));
    }

    /// Our own text, whatever the kernel writes today, is understood line by line.
    #[test]
    fn own_maps() {
        let text = std::fs::read_to_string("/proc/self/maps").unwrap();
        let regions = parse(&text);
        assert_eq!(regions.len(), text.lines().count());
        let here = own_maps as *const () as u64;
        let region = regions.iter().find(|region| (region.start..region.end).contains(&here));
        assert!(region.is_some_and(|region| region.executable));
    }
}
