//! `keystead`, the server's binary.

use std::process::ExitCode;

/// Requests allocate much and hold it for microseconds, on all cores: the C library's allocator took a sixth of the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // A page of 2 MiB is in memory as a whole once a byte of it is written, and of the buffers of thousands of waiting connections most bytes never are: a third of
    // the server's memory. Where the kernel refuses, it costs only that.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    keystead_server::cli::run()
}
