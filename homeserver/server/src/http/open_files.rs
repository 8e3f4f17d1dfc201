//! The process's limit of open files: each connection is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

/// How many files the server may need besides its clients' connections: connections to the database, to push gateways and to S3,
/// and media on their way.
const OTHER_FILES: usize = 1_024;

/// How many connections may be open, of `wanted` ones; `more` of them are always kept free. The limit of open files is raised as far as
/// it may be: many systems begin with 1,024, for the sake of programs that use `select`, and allow many times as much.
pub(super) fn most_connections(wanted: usize, more: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    let files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let files = files.and_then(|files| u32::try_from(files).ok()).unwrap_or(u32::MAX) as usize;
    let most = allowed(wanted, more, files);
    if most < wanted {
        warn!(
            files,
            most,
            wanted,
            "the limit of open files (ulimit -n) allows fewer connections than limits.max_connections"
        );
    }
    most
}

fn allowed(wanted: usize, more: usize, files: usize) -> usize {
    let others = (OTHER_FILES + more).min(files / 2);
    wanted.min(files - others)
}

#[cfg(test)]
mod tests {
    use super::allowed;

    #[test]
    fn files_that_are_needed_for_other_things_are_kept_free() {
        assert_eq!(allowed(30_000, 256, 1_048_576), 30_000);
        assert_eq!(allowed(30_000, 256, 20_000), 18_720);
        assert_eq!(allowed(10_000, 256, 20_000), 10_000);
        assert_eq!(allowed(30_000, 256, 1_024), 512);
    }
}
