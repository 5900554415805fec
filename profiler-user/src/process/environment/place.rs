//! The texts of `/proc/PID/cgroup` and `/proc/self/mountinfo` to the folders of a process's control group and all above it.

use std::path::{Path, PathBuf};

/// Folders on the way to the root at most; groups of containers in containers have about ten.
const MAX_DEPTH: usize = 32;

/// Which kind of hierarchy a group is in: the names of its files differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HierarchyVersion {
    V1,
    V2,
}

/// Where a process stands in the hierarchy of one controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupPlace {
    pub version: HierarchyVersion,
    /// The group as the kernel names it.
    pub path: String,
    /// Its folder, then that of each group above as far as they are mounted.
    pub folders: Vec<PathBuf>,
}

/// Finds the place of one controller (`cpu`, `memory`, `freezer`). `root` is put before the mount
/// points: `/`, or the root of whoever the mounts belong to. An error is the reason.
pub fn find(
    cgroup: &str,
    mounts: &str,
    root: &Path,
    controller: &str,
) -> Result<GroupPlace, String> {
    let lines = || {
        cgroup.lines().filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            Some((fields.next()?, fields.next()?))
        })
    };
    let named = |list: &str| list.split(',').any(|name| name == controller);
    let first = lines().find(|(controllers, _)| named(controllers));
    let unified = lines().find(|(controllers, _)| controllers.is_empty());
    let version = if first.is_some() { HierarchyVersion::V1 } else { HierarchyVersion::V2 };
    let (_, path) = first.or(unified).ok_or("its control groups could not be read")?;
    let mount = mounts.lines().filter_map(Mount::parse).find_map(|mount| {
        let is_it = match version {
            HierarchyVersion::V1 => mount.kind == "cgroup" && named(mount.options),
            HierarchyVersion::V2 => mount.kind == "cgroup2",
        };
        Some((mount.folder(root), below(path, &mount.root)?)).filter(|_| is_it)
    });
    let (mount, below) = mount.ok_or_else(|| {
        format!(
            "the {controller} controller's group {path} is not mounted where stalltrace sees it"
        )
    })?;
    let below = Path::new(below.trim_start_matches('/'));
    let folders = below.ancestors().map(|part| mount.join(part)).take(MAX_DEPTH).collect();
    Ok(GroupPlace { version, path: path.to_owned(), folders })
}

/// The rest of a group's path below the group that is mounted. A path that leads out of it is none.
fn below<'a>(path: &'a str, root: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(root.trim_end_matches('/'))?;
    let is_below = rest.is_empty() || rest.starts_with('/');
    (is_below && !rest.split('/').any(|part| part == "..")).then_some(rest)
}

/// One line of `/proc/PID/mountinfo` (proc(5)).
struct Mount<'a> {
    /// What of the hierarchy is mounted.
    root: String,
    point: String,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (own, rest) = line.split_once(" - ")?;
        let mut own = own.split(' ').skip(3);
        let (root, point) = (unescaped(own.next()?), unescaped(own.next()?));
        let mut rest = rest.split(' ');
        let (kind, _, options) = (rest.next()?, rest.next()?, rest.next()?);
        Some(Self { root, point, kind, options })
    }

    fn folder(&self, root: &Path) -> PathBuf {
        root.join(self.point.trim_start_matches('/'))
    }
}

/// Blanks and backslashes stand as octal numbers.
fn unescaped(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{HierarchyVersion, find};

    const V1: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const V2: &str =
        "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    fn folders(cgroup: &str, mounts: &str, controller: &str) -> Vec<String> {
        let place = find(cgroup, mounts, Path::new("/"), controller).unwrap();
        place.folders.iter().map(|folder| folder.display().to_string()).collect()
    }

    /// In a hybrid hierarchy each controller is where it is mounted; in the unified one all are together.
    #[test]
    fn places() {
        let hybrid = "4:memory:/m\n1:cpu,cpuacct:/pods/pod 1/app\n0::/x\n";
        let cpu = "/sys/fs/cgroup/cpu,cpuacct";
        let expected =
            ["/pods/pod 1/app", "/pods/pod 1", "/pods", "/"].map(|it| format!("{cpu}{it}"));
        assert_eq!(folders(hybrid, V1, "cpu"), expected);
        let memory = ["/sys/fs/cgroup/memory/m", "/sys/fs/cgroup/memory/"];
        assert_eq!(folders(hybrid, V1, "memory"), memory);
        let unified = "0::/system.slice/app.service\n";
        let place = find(unified, V2, Path::new("/"), "cpu").unwrap();
        assert_eq!((place.version, place.folders.len()), (HierarchyVersion::V2, 3));
        // No line of version 1 names it, so it is the unified hierarchy's.
        assert_eq!(folders("1:cpu:/a\n0::/b\n", V1, "io").len(), 2);
    }

    /// In a container whose control groups begin at its own, and for a target outside of it.
    #[test]
    fn namespaces() {
        let own = "30 24 0:26 /docker/1 /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        assert_eq!(folders("0::/docker/1/app\n", own, "cpu").len(), 2);
        let reason = find("0::/docker/12\n", own, Path::new("/"), "cpu").unwrap_err();
        assert!(reason.contains("/docker/12 is not mounted"), "{reason}");
        assert!(find("0::/../other\n", V2, Path::new("/"), "cpu").is_err());
        // The host's mounts, seen from a container with a namespace of its own.
        let host = "30 24 0:26 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let place = find("0::/../../pods/1\n", host, Path::new("/proc/1/root"), "cpu").unwrap();
        assert_eq!(place.folders[0], Path::new("/proc/1/root/sys/fs/cgroup/pods/1"));
    }

    /// A process that is gone has no groups.
    #[test]
    fn nothing_to_read() {
        assert!(find("", V2, Path::new("/"), "cpu").is_err());
        assert!(find("0::/a\n", "", Path::new("/"), "cpu").is_err());
    }
}
