//! What code is called: addresses in modules and in the kernel to functions, files and lines.

pub mod native;
pub mod kernel;
#[cfg(test)]
mod fuzz;
