//! What code is called: addresses in modules and in the kernel to functions, files and lines.

mod nesting;
mod snapshot;
pub mod debug_file;
mod opened;
mod parts;
pub mod native;
pub mod perf_map;
pub mod kernel;
#[cfg(test)]
mod fuzz;
