//! CPython 3.8 to 3.15: from a process to the functions, files and lines of its Python frames.
//!
//! Python frames replace `_PyEval_EvalFrameDefault` in the native stack. One call of that C function
//! runs one or more Python frames, so whoever puts both stacks together needs to know where the
//! frames of one call end. The rule, seen from the innermost frame outwards:
//!
//! - To 3.10, a call runs one frame: every frame ends its call.
//! - 3.11: Python functions that call each other stay within one call. The frame with which the call
//!   began is marked as its entry, and ends it.
//! - From 3.12, a call has a shim frame of its own, outside of the frames that it runs. It comes as a
//!   [`FrameKind::CallBoundary`], which ends the call and is not to be shown.
//!
//! So in every version: all frames up to and including the one with
//! [`ends_eval`](NamedFrame::ends_eval) belong to one native frame of `_PyEval_EvalFrameDefault`, the
//! frames after it to the next one outwards. A thread's outermost frame ends a call as well.
//!
//! The shim frame lies in the native frame of its call, which proves that they belong together. There
//! is one exception to the rule before 3.12, generators that `throw()` passes over: see
//! [`pairs`](crate::unwind::pairs).

mod attributes;
pub mod capture;
mod collecting;
mod detect;
mod dict;
mod frames;
mod gil;
mod interpreter;
mod layout;
mod lines;
mod modules;
mod names;
mod object;
mod offsets;
pub mod pools;
mod published;
mod rlock;
mod runtime;
mod spans;
mod strings;
mod tasks;
mod threading;
mod threads;
mod version;
#[cfg(test)]
mod pages;
#[cfg(test)]
mod fuzz;

pub use interpreter::Python;
pub use names::{FrameKind, NamedFrame};
pub use runtime::PythonRow;
pub use spans::python_stack;
