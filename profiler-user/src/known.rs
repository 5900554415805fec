//! What the descriptors stood for that threads blocked on in one turn: to find out may cost a look at the whole machine.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::call::{Descriptor, Peer};
use crate::gap::Gap;

/// Descriptors described in one turn: each may cost a look through the socket tables.
const MAX_DESCRIPTORS: usize = 8;

/// Connections remembered in one turn.
const MAX_CONNECTIONS: usize = 64;

/// Sockets looked up in one turn that no thread is blocked in any more: each costs a look through the tables.
const MAX_LOOKUPS: usize = 16;

/// Who has the other end of something, if anybody on this machine has; or why that is not known.
pub type OtherEnd = Result<Option<Peer>, String>;

/// As far as it was found out.
#[derive(Debug, Default)]
pub struct Known {
    /// What the descriptors that were blocked on stood for at that time; none where one number stood
    /// for several in the same turn.
    descriptors: BTreeMap<u32, Option<String>>,
    /// Connections that were blocked on, by their links.
    connections: BTreeMap<String, Descriptor>,
    /// Who has the other ends of pipes and connections, by their links.
    ends: BTreeMap<String, OtherEnd>,
    /// The connection behind gRPC's completion queue, or why it cannot be told.
    connection: Option<Result<Descriptor, String>>,
    lookups: usize,
}

impl Known {
    /// What each number stood for that stood for one thing only.
    pub fn texts(&self) -> BTreeMap<u32, String> {
        let known = |(fd, text): (&u32, &Option<String>)| Some((*fd, text.clone()?));
        self.descriptors.iter().filter_map(known).collect()
    }

    /// Whether the number stood for several things in turn.
    pub fn is_ambiguous(&self, number: u32) -> bool {
        self.descriptors.get(&number) == Some(&None)
    }

    /// Remembers what a descriptor was when the thread blocked on it.
    pub fn note(&mut self, number: u32, text: &str) {
        if self.descriptors.len() >= MAX_DESCRIPTORS && !self.descriptors.contains_key(&number) {
            return;
        }
        match self.descriptors.entry(number) {
            Entry::Vacant(entry) => {
                entry.insert(Some(text.to_owned()));
            }
            Entry::Occupied(mut entry) => {
                if entry.get().as_deref() != Some(text) {
                    entry.insert(None);
                }
            }
        }
    }

    /// Remembers what a connection is: to find out, all of the machine's may have to be read.
    pub fn connected(&mut self, descriptor: &Descriptor) {
        if descriptor.is_settled() && self.connections.len() < MAX_CONNECTIONS {
            self.connections.insert(descriptor.link.clone(), descriptor.clone());
        }
    }

    /// Whether one more socket may be looked up in the tables, or why not.
    pub fn look_up(&mut self) -> Result<(), Gap> {
        self.lookups += 1;
        if self.lookups <= MAX_LOOKUPS {
            return Ok(());
        }
        let why = format!("{MAX_LOOKUPS} sockets were looked up in this turn already");
        Err(Gap::new("target of the call", why))
    }

    /// The connection with this link, if it is remembered.
    pub fn connection(&self, link: &str) -> Option<&Descriptor> {
        self.connections.get(link)
    }

    /// The connection behind gRPC's completion queue: searched for once in a turn.
    pub fn connection_behind(
        &mut self,
        search: impl FnOnce() -> Result<Descriptor, String>,
    ) -> Result<Descriptor, String> {
        self.connection.get_or_insert_with(search).clone()
    }

    /// Who has the other end of the thing with this link. Searched for once in a turn, and for the first
    /// few only: a search looks through all processes.
    pub fn end_of(&mut self, link: &str, search: impl FnOnce() -> OtherEnd) -> OtherEnd {
        if let Some(known) = self.ends.get(link) {
            return known.clone();
        }
        if self.ends.len() >= MAX_DESCRIPTORS {
            return Err("it waited for many others in the same turn".to_owned());
        }
        let found = search();
        self.ends.insert(link.to_owned(), found.clone());
        found
    }
}

#[cfg(test)]
mod tests {
    use super::{Known, MAX_DESCRIPTORS, MAX_LOOKUPS};

    /// A number tells what it stood for until it stands for something else; ends are searched for once each,
    /// and for the first few only.
    #[test]
    fn what_is_known() {
        let mut known = Known::default();
        known.note(7, "pipe");
        known.note(8, "tcp a:1");
        known.note(8, "tcp b:1");
        assert_eq!(known.texts().into_iter().collect::<Vec<_>>(), [(7, "pipe".to_owned())]);
        assert!(known.is_ambiguous(8) && !known.is_ambiguous(7) && !known.is_ambiguous(9));
        for link in 0..MAX_DESCRIPTORS {
            assert_eq!(known.end_of(&link.to_string(), || Ok(None)), Ok(None));
        }
        assert_eq!(known.end_of("0", || panic!("it is known")), Ok(None));
        assert!(known.end_of("more", || panic!("one too many")).is_err());
    }

    /// So many sockets are looked up in a turn, and no more.
    #[test]
    fn lookups_are_bounded() {
        let mut known = Known::default();
        assert!((0..MAX_LOOKUPS).all(|_| known.look_up().is_ok()));
        assert!(known.look_up().is_err());
    }
}
