//! Who is behind a call that neither its arguments nor its descriptor tell: a process that checks files, a connection.
//!
//! Both outlast the call: what is found is told of one that is over, too.

use super::calls::Caller;
use super::programs::Starting;
use crate::call::{Call, Descriptor};
use crate::gap::Gap;
use crate::known::Known;
use crate::process::descriptors::other_end;
use crate::process::{fanotify, grpc};
use crate::report::purpose::{self, Purpose};

impl Caller<'_> {
    pub fn behind(self, call: &mut Call, known: &mut Known) {
        match purpose::of(self.registers, self.stack) {
            Some(Purpose::AccessCheck) => {
                let of_descriptor = call.descriptor.as_ref().and_then(|it| it.path.clone());
                let path = call.path.clone().or(of_descriptor);
                self.checker(self.pid, path.as_deref(), call, known);
            }
            Some(Purpose::CompletionQueue) => self.connection(call, known),
            _ => {}
        }
    }

    /// Who checks the program that a child is to become.
    pub fn checker_of_program(self, start: &Starting, call: &mut Call, known: &mut Known) {
        if start.is_checked {
            self.checker(start.child.pid, start.path.as_deref(), call, known);
        }
    }

    fn checker(self, pid: u32, path: Option<&str>, call: &mut Call, known: &mut Known) {
        let link = format!("{} {}", fanotify::LINK, path.unwrap_or_default());
        match known.end_of(&link, || fanotify::checker(pid, path).map(Some)) {
            Ok(checker) => call.held_by.extend(checker),
            Err(why) => call.gaps.push(Gap::new("held_by", why)),
        }
    }

    fn connection(self, call: &mut Call, known: &mut Known) {
        let found = known.connection_behind(|| grpc::connection(self.pid));
        let end = |descriptor: &Descriptor| other_end(self.pid, descriptor, true);
        match found {
            Ok(mut found) => {
                match known.end_of(&found.link, || end(&found)) {
                    Ok(process) => found.process = process,
                    Err(why) => call.gaps.push(Gap::new("process at the other end", why)),
                }
                call.connection = Some(found);
            }
            Err(why) => call.gaps.push(Gap::new("connection", why)),
        }
    }
}
