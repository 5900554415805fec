//! Looks at the freezers of a process's control groups, to for how long the process was seen frozen.

use std::path::PathBuf;

use super::counter::Counter;
use super::history::History;
use super::machine::is_frozen;
use super::place::{GroupPlace, HierarchyVersion};
use crate::environment::Growth;

/// Two looks so far apart say nothing about the time between them.
const SAME_FREEZE_NS: u64 = 50_000_000;

/// Of the first version and of the second: where both are mounted, each can freeze.
#[derive(Debug, Default)]
pub struct Freezers {
    groups: Vec<(HierarchyVersion, Counter)>,
    looked_ns: u64,
    was_frozen: bool,
    frozen_ns: u64,
    frozen: History,
}

impl Freezers {
    /// The root cannot be frozen and has no such file.
    pub fn of(places: impl IntoIterator<Item = GroupPlace>) -> Self {
        let open = |place: GroupPlace| {
            let folder: &PathBuf = place.folders.first()?;
            let name = match place.version {
                HierarchyVersion::V1 => "freezer.state",
                // Says so as well where a group above is frozen.
                HierarchyVersion::V2 => "cgroup.events",
            };
            Some((place.version, Counter::open(&folder.join(name))?))
        };
        let mut freezers = Self::default();
        freezers.groups.extend(places.into_iter().filter_map(open));
        // It is looked at only inside stalls.
        freezers.frozen.read(0, 0);
        freezers
    }

    /// Whether one freezes it.
    pub fn look(&mut self, now_ns: u64) -> bool {
        let is_frozen = self.groups.iter().any(|(version, state)| {
            state.read(|text| Some(is_frozen(text, *version))).unwrap_or_default()
        });
        let passed_ns = now_ns.saturating_sub(self.looked_ns);
        if is_frozen && self.was_frozen && passed_ns <= SAME_FREEZE_NS {
            self.frozen_ns += passed_ns;
        }
        (self.looked_ns, self.was_frozen) = (now_ns, is_frozen);
        self.frozen.read(now_ns, self.frozen_ns);
        is_frozen
    }

    /// For how long between two moments.
    pub fn between(&self, from_ns: u64, until_ns: u64) -> Option<Growth> {
        self.frozen.growth(from_ns, until_ns)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::super::place::{GroupPlace, HierarchyVersion};
    use super::Freezers;

    const MS: u64 = 1_000_000;

    /// Either freezer counts, and both together only once.
    #[test]
    fn two_freezers() {
        let folder =
            std::env::temp_dir().join(format!("stalltrace-freezers-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let put = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
        let place = |version, folder: &Path| GroupPlace {
            version,
            path: "/a".to_owned(),
            folders: vec![folder.to_owned()],
        };
        put("freezer.state", "THAWED\n");
        put("cgroup.events", "populated 1\nfrozen 1\n");
        let mut freezers = Freezers::of(
            [HierarchyVersion::V1, HierarchyVersion::V2].map(|version| place(version, &folder)),
        );
        let none = Freezers::of([place(HierarchyVersion::V2, Path::new("/nonexistent"))]);
        assert!(none.groups.is_empty() && !freezers.groups.is_empty());
        for now_ms in [100, 110] {
            freezers.look(now_ms * MS);
        }
        put("freezer.state", "FROZEN\n");
        freezers.look(130 * MS);
        put("cgroup.events", "populated 1\nfrozen 0\n");
        freezers.look(140 * MS);
        put("freezer.state", "THAWED\n");
        freezers.look(150 * MS);
        fs::remove_dir_all(&folder).unwrap();
        let frozen = freezers.between(50 * MS, 160 * MS).unwrap();
        assert_eq!(frozen.at_most_ns, 40 * MS);
    }
}
