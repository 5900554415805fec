//! Language runtimes: from a target's memory to frames that only the runtime can name.
//!
//! A runtime is asked three things, in this order. *Detect*, once per process: does it run this
//! runtime? There are three legal answers: no; yes, and this is how to read it; yes, but it cannot
//! be read, with the reason. *Walk*, for a thread that stands still: which frames, raw. Mostly the
//! probes have done that already, in the thread's own context. *Decode*, as soon as raw frames
//! arrive, because the target may free what they point to: one named frame for each raw one, in the
//! same order, and a gap where the name could not be had.
//!
//! A runtime sees the target only through [`crate::process::TargetMemory`] and the files that it is
//! handed. Its frames also say where one call of the interpreter's own evaluation function ends,
//! because that is what ties them to the native stack.

pub mod collector;
pub mod cpython;
pub mod go;
pub mod loops;
pub mod names;
pub mod park;
pub mod ruby;
pub mod table;
pub mod tokio;
pub mod v8;
pub mod worker_threads;
