//! The text of `/proc/PID/cgroup` to the process's control group and the container that it names.

/// Characters of a container's id as Docker, containerd, CRI-O and Podman write it.
const ID_LENGTH: usize = 64;

/// The unified hierarchy's path, or the first other one that is not the root.
pub fn path(text: &str) -> Option<String> {
    let mut paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let unified = text.lines().find_map(|line| line.strip_prefix("0::"));
    match unified {
        Some(path) if path != "/" => Some(path.to_owned()),
        _ => paths.find(|path| *path != "/").or(unified).map(str::to_owned),
    }
}

/// The last 64 hexadecimal digits in a row on any line: whatever runtime, that is the container.
pub fn container_id(text: &str) -> Option<String> {
    text.lines().find_map(|line| {
        line.rsplit(['/', '-', ':', '.'])
            .find(|part| {
                part.len() == ID_LENGTH && part.bytes().all(|byte| byte.is_ascii_hexdigit())
            })
            .map(str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use super::{container_id, path};

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    /// Docker under systemd and cgroupfs, Kubernetes with containerd: the same id.
    #[test]
    fn containers() {
        for line in [
            format!("0::/system.slice/docker-{ID}.scope"),
            format!("12:cpu:/docker/{ID}"),
            format!("0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope"),
            format!("0::/machine.slice/libpod-{ID}.scope/container"),
        ] {
            assert_eq!(container_id(&line).as_deref(), Some(ID), "{line}");
        }
        assert_eq!(container_id("0::/user.slice/session-1.scope\n"), None);
    }

    /// The unified path where it says something, else a hierarchy that does.
    #[test]
    fn paths() {
        assert_eq!(path("0::/a/b\n").as_deref(), Some("/a/b"));
        assert_eq!(path("4:cpu:/x\n0::/\n").as_deref(), Some("/x"));
        assert_eq!(path("4:cpu:/\n0::/\n").as_deref(), Some("/"));
        assert_eq!(path(""), None);
    }
}
