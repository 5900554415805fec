//! Which peers have stalled this process before, and how often: from some number on that is advice of its own.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::fields::fields;
use super::table::TABLE;
use crate::report::Report;

/// Peers told apart in one session. Of those that come later nothing is said.
const MAX_PEERS: usize = 256;

/// How many stalls each peer has caused, by the cause's target.
#[derive(Debug, Default)]
pub struct Peers(BTreeMap<String, u64>);

impl Peers {
    /// Counts the end of a stall; other lines are about stalls that are still to end.
    pub fn observe(&mut self, report: &Report) {
        let Report::StallEnd(line) = report else { return };
        let cause = fields(&line.cause);
        let Some(peer) = peer(&cause) else { return };
        if let Some(stalls) = self.0.get_mut(peer) {
            *stalls += 1;
        } else if self.0.len() < MAX_PEERS {
            self.0.insert(peer.to_owned(), 1);
        }
    }

    /// What is to be added for one more stall of this cause.
    pub fn again(&self, cause: &Map<String, Value>) -> Option<String> {
        let peer = peer(cause)?;
        let stalls = self.0.get(peer)? + 1;
        let repeated = TABLE.repeated(cause).find(|repeated| stalls >= repeated.stalls)?;
        Some(repeated.advice.replace("{target}", peer).replace("{stalls}", &stalls.to_string()))
    }
}

/// Whom a stall waited for, where that may happen again.
fn peer(cause: &Map<String, Value>) -> Option<&str> {
    TABLE.repeated(cause).next()?;
    cause.get("target")?.as_str()
}

#[cfg(test)]
mod tests {
    use super::{MAX_PEERS, Peers};
    use crate::report::schema::stall::CauseKind;
    use crate::report::{Report, sample};
    use crate::turn::Moment;

    /// The end of a stall that waited for this target.
    fn ended(target: &str) -> Report {
        let mut report = sample::report(Moment::End, &sample::stall());
        if let Report::StallEnd(line) = &mut report
            && let CauseKind::Syscall { target: of_cause, .. } = &mut line.cause.kind
        {
            *of_cause = Some(target.to_owned());
        }
        report
    }

    fn again(peers: &Peers, report: &Report) -> Option<String> {
        let Report::StallEnd(line) = report else { return None };
        peers.again(&super::fields(&line.cause))
    }

    /// The third stall by the same peer is told; another peer, a file, and lines before the end do not count.
    #[test]
    fn third_time() {
        let mut peers = Peers::default();
        let (slow, other) = (ended("tcp 10.0.0.5:443"), ended("tcp 10.0.0.6:443"));
        peers.observe(&slow);
        peers.observe(&other);
        peers.observe(&sample::report(Moment::Open, &sample::open_stall()));
        assert_eq!(again(&peers, &slow), None);
        peers.observe(&slow);
        let told = again(&peers, &slow).unwrap();
        assert!(told.starts_with("tcp 10.0.0.5:443 was waited for in 3 stalls: "), "{told}");
        assert_eq!(again(&peers, &other), None);
        for _ in 0..5 {
            peers.observe(&ended("/var/lib/x.json"));
        }
        assert_eq!(again(&peers, &ended("/var/lib/x.json")), None);
    }

    /// However many peers there are, memory is bounded, and known ones are counted on.
    #[test]
    fn bounded() {
        let mut peers = Peers::default();
        for number in 0..MAX_PEERS + 9 {
            peers.observe(&ended(&format!("tcp 10.0.0.1:{number}")));
        }
        assert_eq!(peers.0.len(), MAX_PEERS);
        peers.observe(&ended("tcp 10.0.0.1:0"));
        assert!(again(&peers, &ended("tcp 10.0.0.1:0")).is_some());
    }
}
