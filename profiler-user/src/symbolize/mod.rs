//! What code is called: addresses in modules and in the kernel to functions, files and lines.

mod nesting;
mod snapshot;
pub mod native;
pub mod kernel;
pub mod missing;
#[cfg(test)]
mod fuzz;
