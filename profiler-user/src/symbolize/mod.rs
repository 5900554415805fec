//! What code is called: addresses in modules and in the kernel to functions, files and lines.

pub mod debug_file;
pub mod native;
mod parts;
pub mod kernel;
