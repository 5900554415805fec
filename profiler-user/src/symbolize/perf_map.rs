//! `perf-PID.map`, the file in which compilers inside a process list the code that they made, to names.
//!
//! A line is the beginning and the length of a piece of code, in hexadecimal, and its name. Node
//! writes it with `--perf-basic-prof`, the JVM with `jcmd PID Compiler.perfmap`, .NET with
//! `DOTNET_PerfMapEnabled=1`. It lies in the target's own /tmp, under the number that the target knows
//! itself by. Code moves and addresses are used again, so of what overlaps the last line counts.

use std::collections::BTreeMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use crate::frame::{Frame, Language};
use crate::gap::Gap;
use crate::process::modules::Modules;
use crate::process::target::Target;
use crate::unwind::merge::NamedNativeStack;
use crate::unwind::native::NativeStack;

/// Bytes read of one file in all: node with a hundred thousand functions has about 10 MB.
const MAX_BYTES: u64 = 64 << 20;

/// Pieces of code kept. With their names, some hundred bytes each.
const MAX_PIECES: usize = 256 * 1024;

/// Characters kept of a name: .NET's have all types of all parameters.
const MAX_NAME: usize = 512;

/// One file, as far as it has been read.
#[derive(Debug)]
pub struct PerfMap {
    path: PathBuf,
    /// Who may have written it, besides root.
    owner: u32,
    read: Option<Progress>,
    pieces: Pieces,
    /// Why the file, or a part of it, is not read.
    refused: Option<String>,
}

/// The file that was read, and how far: to the end of its last whole line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Progress {
    inode: u64,
    bytes: u64,
}

impl PerfMap {
    /// The file of a process, whether it is there or not.
    pub fn of(target: &Target) -> Self {
        let pid = target.pid();
        let number = target.tid_in_container(pid).unwrap_or(pid);
        let path = format!("/proc/{pid}/root/tmp/perf-{number}.map").into();
        // Of a process that is gone, root's files are as good as any.
        Self::new(path, target.uid().unwrap_or(0))
    }

    fn new(path: PathBuf, owner: u32) -> Self {
        Self { path, owner, read: None, pieces: Pieces::default(), refused: None }
    }

    /// Names those frames in code without a file that nobody else has named; says how many have no
    /// name here either.
    pub fn name_stack(
        &mut self,
        named: &mut NamedNativeStack,
        native: &NativeStack,
        modules: &Modules,
    ) -> Option<Gap> {
        let mut nameless = 0;
        let mut is_current = false;
        for (shown, frame) in named.frames.iter_mut().zip(&native.frames) {
            let call = frame.address.wrapping_sub(u64::from(frame.is_return_address));
            let is_named = shown.iter().any(|shown| shown.function.is_some());
            if is_named || frame.module.is_some() || !modules.is_made_at_run_time(call) {
                continue;
            }
            // An address that is known may have been used again since.
            if !is_current {
                is_current = true;
                self.refused = self.read_on().err();
            }
            match self.name(call) {
                Some(found) => *shown = vec![found],
                None => nameless += 1,
            }
        }
        let why = match &self.refused {
            Some(why) => why.clone(),
            None if self.pieces.left_out > 0 => {
                format!("of /tmp/perf-PID.map only the first {MAX_PIECES} pieces of code are kept")
            }
            None => "the target lists none in /tmp/perf-PID.map".to_owned(),
        };
        let what = format!("names of {nameless} frames in code that was made at run time");
        (nameless > 0).then(|| Gap::new(&what, why))
    }

    fn name(&self, address: u64) -> Option<Frame> {
        self.pieces.name(address).map(|name| frame(name, address))
    }

    /// Takes in what was written since the last time, or says why nothing, or not all, is read.
    fn read_on(&mut self) -> Result<(), String> {
        // Not through a link, and without waiting for what is no file at all.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&self.path);
        let mut file = match file {
            Ok(file) => file,
            // A target without the file is the rule.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err("the target lists none in /tmp/perf-PID.map".to_owned());
            }
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
                return Err("/tmp/perf-PID.map is a symbolic link".to_owned());
            }
            Err(error) => return Err(format!("/tmp/perf-PID.map cannot be read ({error})")),
        };
        let metadata = file.metadata().map_err(|error| error.to_string())?;
        if let Some(why) = self.distrust(&metadata) {
            (self.read, self.pieces) = (None, Pieces::default());
            return Err(format!("/tmp/perf-PID.map {why}"));
        }
        let inode = metadata.ino();
        let known = self.read.filter(|known| known.inode == inode && known.bytes <= metadata.len());
        if known.is_none() {
            self.pieces = Pieces::default();
        }
        let mut progress = known.unwrap_or(Progress { inode, bytes: 0 });
        if metadata.len() > progress.bytes {
            let read = self.pieces.read(&mut file, progress.bytes);
            progress.bytes += read.map_err(|error| format!("/tmp/perf-PID.map: {error}"))?;
        }
        self.read = Some(progress);
        if metadata.len() > MAX_BYTES {
            let mebibytes = MAX_BYTES >> 20;
            return Err(format!("of /tmp/perf-PID.map only the first {mebibytes} MiB are read"));
        }
        Ok(())
    }

    /// Why a file is not believed: whoever else may write it would tell us names of their own.
    fn distrust(&self, metadata: &Metadata) -> Option<String> {
        const OTHERS_WRITE: u32 = 0o002;
        let owner = metadata.uid();
        if !metadata.is_file() {
            return Some("is no regular file".to_owned());
        }
        if ![0, self.owner].contains(&owner) {
            let own = self.owner;
            return Some(format!(
                "belongs to user {owner}, who is neither root nor the user of the process, {own}"
            ));
        }
        (metadata.mode() & OTHERS_WRITE != 0).then(|| "can be written by every user".to_owned())
    }
}

/// Pieces of code that do not overlap, by their beginnings.
#[derive(Debug, Default)]
struct Pieces {
    by_start: BTreeMap<u64, Piece>,
    /// How many there was no room for.
    left_out: u64,
}

#[derive(Debug)]
struct Piece {
    end: u64,
    name: Box<str>,
}

impl Pieces {
    fn name(&self, address: u64) -> Option<&str> {
        let (_, piece) = self.by_start.range(..=address).next_back()?;
        (address < piece.end).then_some(&*piece.name)
    }

    /// Takes in the file from an offset on; returns the bytes of its whole lines.
    fn read(&mut self, file: &mut File, from: u64) -> io::Result<u64> {
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(MAX_BYTES.saturating_sub(from)).read_to_end(&mut bytes)?;
        // Half a line is completed later.
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        for line in bytes.get(..whole).unwrap_or_default().split(|byte| *byte == b'\n') {
            self.take(&String::from_utf8_lossy(line));
        }
        Ok(whole as u64)
    }

    /// A line that is none of the kind is passed over.
    fn take(&mut self, line: &str) {
        let mut fields = line.trim_end().splitn(3, ' ');
        let mut number = || {
            let digits = fields.next()?;
            u64::from_str_radix(digits.strip_prefix("0x").unwrap_or(digits), 16).ok()
        };
        let (Some(start), Some(length)) = (number(), number()) else { return };
        let Some(name) = fields.next().filter(|name| !name.is_empty()) else { return };
        let Some(end) = start.checked_add(length).filter(|end| *end > start) else { return };
        while let Some((&over, piece)) = self.by_start.range(..end).next_back() {
            if piece.end <= start {
                break;
            }
            self.by_start.remove(&over);
        }
        if self.by_start.len() >= MAX_PIECES {
            self.left_out += 1;
            return;
        }
        let name = name.chars().take(MAX_NAME).collect::<String>().into();
        self.by_start.insert(start, Piece { end, name });
    }
}

fn frame(name: &str, address: u64) -> Frame {
    let native = Frame {
        function: Some(name.into()),
        file: None,
        line: None,
        module: None,
        language: Language::Native,
        inlined: false,
        address: Some(address),
        module_offset: None,
    };
    match javascript(name) {
        Some((function, file, line)) => Frame {
            function: Some(function.into()),
            file: Some(file.strip_prefix("file://").unwrap_or(file).into()),
            line: Some(line),
            language: Language::JavaScript,
            address: None,
            ..native
        },
        None => native,
    }
}

/// `JS:*handle /srv/app.js:12:8`, as V8 writes it: kind, tier, function, and where it is defined.
fn javascript(name: &str) -> Option<(&str, &str, u32)> {
    let (kind, rest) = name.split_once(':')?;
    if !["JS", "LazyCompile", "Function", "Script", "Eval"].contains(&kind) {
        return None;
    }
    let rest = rest.trim_start_matches(['~', '^', '+', '*', '\'', 'o']);
    let (place, _column) = rest.rsplit_once(':')?;
    let (place, line) = place.rsplit_once(':')?;
    let (function, file) = place.split_once(' ')?;
    let function = if function.is_empty() { "(anonymous)" } else { function };
    Some((function, file, line.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::{Frame, Language, PerfMap, Pieces, frame};

    fn pieces(text: &str) -> Pieces {
        let mut pieces = Pieces::default();
        text.lines().for_each(|line| pieces.take(line));
        pieces
    }

    /// Both spellings of numbers are read, and names keep their spaces; other lines are passed over.
    #[test]
    fn lines() {
        let text = "7f00 10 JS:~one /srv/my app.js:1:2\n0x8000 0x20 void App.run()\n\
                    nonsense\n9000 0 empty\n9000 10\nffffffffffffffff 10 over the end\n";
        let pieces = pieces(text);
        assert_eq!(pieces.name(0x7f0f), Some("JS:~one /srv/my app.js:1:2"));
        assert_eq!(pieces.name(0x801f), Some("void App.run()"));
        for address in [0, 0x7eff, 0x7f10, 0x8020, 0x9000, u64::MAX] {
            assert_eq!(pieces.name(address), None, "{address:#x}");
        }
        assert_eq!(pieces.by_start.len(), 2);
    }

    /// The last line wins, over all that it overlaps.
    #[test]
    fn used_again() {
        let pieces = pieces("1000 100 a\n1100 100 b\n1080 100 c\n2000 10 d\n2000 20 e\n");
        let names = [0x1000, 0x1080, 0x117f, 0x1180, 0x2010].map(|at| pieces.name(at));
        assert_eq!(names, [None, Some("c"), Some("c"), None, Some("e")]);
    }

    /// What V8 writes tells function, file and line; other names are functions as they stand.
    #[test]
    fn frames() {
        let of = |name| {
            let Frame { function, file, line, language, .. } = frame(name, 7);
            (function.unwrap(), file, line, language)
        };
        let script = |function: &str, file: &str, line| {
            (function.into(), Some(file.into()), Some(line), Language::JavaScript)
        };
        assert_eq!(of("JS:*handle /srv/my app.js:12:8"), script("handle", "/srv/my app.js", 12));
        assert_eq!(
            of("LazyCompile:~ file:///srv/a.mjs:3:1"),
            script("(anonymous)", "/srv/a.mjs", 3)
        );
        assert_eq!(
            of("JS:^listOnTimeout node:internal/timers:524:25"),
            script("listOnTimeout", "node:internal/timers", 524)
        );
        let native = |name: &str| (name.into(), None, None, Language::Native);
        assert_eq!(of("Builtin:ArrayMap"), native("Builtin:ArrayMap"));
        assert_eq!(of("JS:no place"), native("JS:no place"));
        assert_eq!(of("void App::run(int)"), native("void App::run(int)"));
    }

    fn map_of(owner: u32) -> PerfMap {
        let (own, thread) = (std::process::id(), std::thread::current().id());
        let name = format!("stalltrace-perf-map-{own}-{thread:?}");
        PerfMap::new(std::env::temp_dir().join(name), owner)
    }

    fn write(map: &PerfMap, text: &str) {
        let mut file = OpenOptions::new().create(true).append(true).open(&map.path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    /// What is written after the first look is found, and a file that was written anew is read anew.
    #[test]
    fn growing_file() {
        let owner = std::fs::metadata("/proc/self").unwrap().uid();
        let mut map = map_of(owner);
        let name = |map: &mut PerfMap, at| {
            let _ = map.read_on();
            map.name(at)?.function
        };
        assert_eq!(name(&mut map, 0x1000), None);
        write(&map, "1000 10 one\n2000 10 tw");
        assert_eq!(name(&mut map, 0x1000).as_deref(), Some("one"));
        assert_eq!(name(&mut map, 0x2000), None);
        write(&map, "o\n");
        assert_eq!(name(&mut map, 0x2000).as_deref(), Some("two"));
        std::fs::remove_file(&map.path).unwrap();
        write(&map, "3000 10 a\n");
        assert_eq!(name(&mut map, 0x3000).as_deref(), Some("a"));
        assert_eq!(name(&mut map, 0x1000), None);
        std::fs::remove_file(&map.path).unwrap();
    }

    /// A file of somebody else's or that anybody may write, a link and a device tell nothing but why.
    #[test]
    fn untrusted_files() {
        let own = std::fs::metadata("/proc/self").unwrap().uid();
        let mut map = map_of(own);
        let refused = |map: &mut PerfMap, word: &str| {
            let why = map.read_on().unwrap_err();
            assert!(why.contains(word), "{why}");
            assert_eq!(map.name(0x1000), None);
        };
        refused(&mut map, "lists none");
        std::os::unix::fs::symlink("/proc/self/maps", &map.path).unwrap();
        refused(&mut map, "symbolic link");
        std::fs::remove_file(&map.path).unwrap();
        write(&map, "1000 10 one\n");
        assert!(map.read_on().is_ok() && map.name(0x1000).is_some());
        let mode = std::fs::Permissions::from_mode;
        std::fs::set_permissions(&map.path, mode(0o646)).unwrap();
        refused(&mut map, "written by every user");
        std::fs::set_permissions(&map.path, mode(0o664)).unwrap();
        assert!(map.read_on().is_ok() && map.name(0x1000).is_some());
        let file = OpenOptions::new().write(true).open(&map.path).unwrap();
        file.set_len(super::MAX_BYTES + 1).unwrap();
        assert!(map.read_on().unwrap_err().contains("only the first 64 MiB"));
        assert!(map.name(0x1000).is_some());
        std::fs::remove_file(&map.path).unwrap();
        map.path = "/dev/zero".into();
        refused(&mut map, "no regular file");
        if own == 0 {
            let mut map = map_of(7);
            write(&map, "1000 10 root's\n");
            assert!(map.read_on().is_ok());
            std::os::unix::fs::chown(&map.path, Some(8), None).unwrap();
            refused(&mut map, "belongs to user 8");
            std::fs::remove_file(&map.path).unwrap();
        }
    }
}
