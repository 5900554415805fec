//! Packs files into the archive that a booting kernel unpacks as its first file system.
//!
//! The format is the kernel's `newc` cpio (Documentation/driver-api/early-userspace/buffer-format.rst).

/// What an entry is, as the type bits of its mode.
const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// An archive under construction.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a folder; its own folder must have been added before.
    pub fn folder(&mut self, path: &str) {
        self.entry(path, FOLDER, &[]);
    }

    /// Adds a file that may be executed.
    pub fn program(&mut self, path: &str, content: &[u8]) {
        self.entry(path, PROGRAM, content);
    }

    /// Closes the archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let (links, name_bytes) = (1, path.len() + 1);
        // inode, mode, uid, gid, links, mtime, size, device (2), device node (2), name, checksum
        let fields = [self.entries, mode, 0, 0, links, 0, content.len() as u32, 0, 0, 0, 0];
        self.bytes.extend(b"070701");
        for field in fields.into_iter().chain([name_bytes as u32, 0]) {
            self.bytes.extend(format!("{field:08x}").into_bytes());
        }
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;

    /// The layout of an archive: headers of 110 digits, names and contents padded to four bytes.
    #[test]
    fn layout() {
        let mut archive = Archive::default();
        archive.folder("m");
        archive.program("m/init", b"12345");
        let bytes = archive.finish();

        let text = String::from_utf8_lossy(&bytes);
        //          110 digits + "m\0"  = 112
        //          110 + "m/init\0"    = 117 -> 120, + 5 -> 128
        assert!(text[112..].starts_with("070701"));
        assert_eq!(&text[112 + 110..112 + 117], "m/init\0");
        assert_eq!(&text[112 + 120..112 + 128], "12345\0\0\0");
        assert!(text[240..].starts_with("070701") && text.contains("TRAILER!!!"));
        assert_eq!(bytes.len() % 4, 0);
    }
}
