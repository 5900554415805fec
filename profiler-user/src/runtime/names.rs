//! A symbol to the function's own name in it.

use crate::frame::Frame;

/// A function's own name: of `<a::B as c::D>::park::<T>` it is `park`.
pub fn last_segment(frame: &Frame) -> Option<&str> {
    let name = frame.function.as_deref()?;
    let name = name.find('(').filter(|at| *at > 0).map_or(name, |at| &name[..at]);
    let plain = name.trim_start_matches('<').split(['<', '>']).next()?;
    match name.rsplit_once(">::") {
        Some((_, method)) if name.starts_with('<') => method.split(['<', ':']).next(),
        _ => plain.trim_end_matches("::").rsplit("::").next(),
    }
}
