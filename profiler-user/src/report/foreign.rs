//! A native frame's name and source to whether it was compiled into a program from elsewhere: of a standard
//! library, of a crate, of headers.

use super::qualified::Qualified;
use crate::frame::Frame;

/// Namespaces of what is compiled into a program and not its own, whatever the language.
const NAMESPACES: [&str; 3] = ["std::", "core::", "alloc::"];

/// Of C++ alone: its runtime, and the libraries that are headers for the most part.
const CPP_NAMESPACES: [&str; 22] = [
    "__gnu_cxx::",
    "__cxxabiv1::",
    "__gnu_debug::",
    "__gnu_parallel::",
    "boost::",
    "asio::",
    "absl::",
    "folly::",
    "fmt::",
    "spdlog::",
    "nlohmann::",
    "rapidjson::",
    "simdjson::",
    "Eigen::",
    "tbb::",
    "oneapi::",
    "google::protobuf::",
    "grpc::",
    "grpc_core::",
    "httplib::",
    "uWS::",
    "seastar::",
];

/// The crates that most servers in Rust stand on, for where no file tells.
const CRATES: [&str; 37] = [
    "tokio::",
    "tokio_util::",
    "tokio_stream::",
    "mio::",
    "hyper::",
    "hyper_util::",
    "h2::",
    "http::",
    "axum::",
    "axum_core::",
    "actix_rt::",
    "actix_server::",
    "actix_http::",
    "actix_web::",
    "warp::",
    "tower::",
    "tower_service::",
    "tonic::",
    "futures::",
    "futures_util::",
    "futures_core::",
    "futures_executor::",
    "async_std::",
    "async_io::",
    "async_executor::",
    "smol::",
    "crossbeam_channel::",
    "crossbeam_deque::",
    "parking::",
    "parking_lot::",
    "parking_lot_core::",
    "rayon::",
    "rayon_core::",
    "rustls::",
    "tracing::",
    "hashbrown::",
    "compiler_builtins::",
];

/// Folders of source files that are not the program's: where compilers, distributions and package managers
/// put those of others. The first is what rustc writes for its own, the second where it has their source
/// installed.
const FOLDERS: [&str; 15] = [
    "/rustc/",
    "/rustlib/src/rust/",
    "cargo/registry/",
    "cargo/git/checkouts/",
    "/usr/include/",
    "/usr/local/include/",
    "/usr/lib/gcc/",
    "/usr/lib/llvm",
    "/lib/clang/",
    "/include/c++/",
    "libstdc++-v3/",
    "/.conan/",
    "/.conan2/",
    "/vcpkg_installed/",
    "/vcpkg/",
];

/// Functions that only wait on behalf of their callers, without the paths before them.
const WAITERS: [&str; 18] = [
    "syscall",
    "park",
    "park_internal",
    "park_timeout",
    "park_condvar",
    "futex_wait",
    "futex_wait_internal",
    "__futex_abstimed_wait",
    "__futex_abstimed_wait64",
    "__futex_abstimed_wait_common",
    "__futex_abstimed_wait_common64",
    "__futex_abstimed_wait_cancelable64",
    "__internal_syscall_cancel",
    "__syscall_cancel",
    "__syscall_cancel_arch",
    "__libc_read",
    "wait_until_cold",
    "_start",
];

/// Namespaces in which those of the above that have common names do only that.
const PARKING: [&str; 8] = [
    "std::",
    "tokio::",
    "parking_lot_core::",
    "parking_lot::",
    "parking::",
    "rayon_core::",
    "crossbeam_utils::",
    "async_io::",
];

/// Whether a frame of the program's own file comes from somebody else's source.
pub fn is_compiled_in(frame: &Frame) -> bool {
    frame.file.as_deref().is_some_and(is_foreign_file)
        || frame.function.as_deref().is_some_and(is_foreign_name)
}

fn is_foreign_file(file: &str) -> bool {
    FOLDERS.iter().any(|folder| file.contains(folder)) || is_header_of_release(file)
}

/// Headers of a C++ library by release: `c++/12/bits/stl_algo.h`, `c++/v1/algorithm`.
fn is_header_of_release(file: &str) -> bool {
    let below = file.split_once("c++/").map(|(_, below)| below.trim_start_matches('v'));
    below.is_some_and(|below| below.starts_with(|first: char| first.is_ascii_digit()))
}

fn is_foreign_name(text: &str) -> bool {
    let Qualified { name, is_cpp, .. } = Qualified::of(text);
    // `<std::thread::Thread as …>::park` and `<&mut std::fs::File as …>::read` are the library's as well.
    let name = name.trim_start_matches(['<', '&', '*']);
    let name = name.trim_start_matches("mut ").trim_start_matches("dyn ");
    let of_any = |known: &[&str]| known.iter().any(|known| name.starts_with(known));
    // One program's `http::` is another's crate: what has parameters in its name is C++.
    of_any(&NAMESPACES) || of_any(&CPP_NAMESPACES) || (!is_cpp && of_any(&CRATES))
}

/// Whether a function only waits on behalf of its callers, wherever it was linked into.
pub fn is_waiter(frame: &Frame) -> bool {
    let Some(function) = frame.function.as_deref() else { return false };
    let name = Qualified::of(function).name;
    let last = name.rsplit("::").next().unwrap_or(name);
    let is_bare = last.len() == name.len();
    let is_common =
        last.starts_with("park") || last.starts_with("futex") || last.starts_with("wait");
    WAITERS.contains(&last)
        && match is_common {
            true => !is_bare && PARKING.iter().any(|known| name.contains(known)),
            false => is_bare,
        }
}

#[cfg(test)]
mod tests {
    use super::{is_compiled_in, is_waiter};
    use crate::frame::Frame;
    use crate::report::sample::native;

    /// Names of others are others', whatever they return; a program's own are not, whatever they return.
    #[test]
    fn names_of_others() {
        for name in [
            "void std::__introsort_loop<int*, long>(int*, int*, long)",
            "std::enable_if<true, void>::type std::swap<int>(int&, int&)",
            "decltype(auto) boost::asio::post<f>(f&&)",
            "std::_Function_handler<void (), shop::main()::{lambda()#1}>::_M_invoke(std::_Any_data const&)",
            "bool __gnu_cxx::__ops::_Iter_less_iter::operator()<int*, int*>(int*, int*) const",
            "tokio::runtime::park::CachedParkThread::park",
        ] {
            assert!(is_compiled_in(&native(name, "/srv/shop")), "{name}");
        }
        for name in [
            "std::vector<int> shop::load<int>(int)",
            "std::enable_if<true, void>::type rank<int>(int)",
            "rank(std::vector<int>&)",
            "http::Server::handle(int)",
            "stdx::sort(int*)",
            "shop::http::get",
        ] {
            assert!(!is_compiled_in(&native(name, "/srv/shop")), "{name}");
        }
    }

    /// A header of the standard library, or of a package, is nobody's here; one of the program's own is.
    #[test]
    fn sources_of_others() {
        let of = |file: &str| {
            let file = Some(file.into());
            is_compiled_in(&Frame { file, ..native("sort<int*>", "/srv/shop") })
        };
        for file in [
            "/usr/include/c++/12/bits/stl_algo.h",
            "/opt/gcc-13/include/c++/13/bits/stl_algo.h",
            "/usr/include/x86_64-linux-gnu/bits/stdio2.h",
            "/usr/lib/gcc/x86_64-linux-gnu/12/include/emmintrin.h",
            "/usr/lib/llvm-16/include/c++/v1/algorithm",
            "/usr/local/include/fmt/format.h",
        ] {
            assert!(of(file), "{file}");
        }
        for file in ["/srv/shop/include/rank.h", "/usr/src/app/main.cpp", "/build/src/c++/rank.cpp"]
        {
            assert!(!of(file), "{file}");
        }
    }

    /// What only waits for its caller is known by its name where that can be nothing else.
    #[test]
    fn waiters() {
        for name in [
            "syscall",
            "__futex_abstimed_wait_common64",
            "tokio::runtime::scheduler::multi_thread::park::Inner::park_internal",
            "std::thread::park",
            "std::sys::pal::unix::futex::futex_wait",
            "rayon_core::latch::LockLatch::park",
        ] {
            assert!(is_waiter(&native(name, "/srv/shop")), "{name}");
        }
        for name in ["park", "shop::garage::park", "shop::syscall", "wait_for_replica()"] {
            assert!(!is_waiter(&native(name, "/srv/shop")), "{name}");
        }
    }
}
