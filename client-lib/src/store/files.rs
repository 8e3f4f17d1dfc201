//! Files and folders: readable by their owner only, replaced as a whole.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::StoreError;

const TEMPORARY: &str = "tmp";

fn io(path: &Path) -> impl Fn(std::io::Error) -> StoreError {
    move |source| StoreError::Io { path: path.to_owned(), source }
}

/// A name for a folder that any file system takes: letters, digits, `.`, `-` and `_` as they are, others as `=` and two hexadecimal
/// digits.
pub(super) fn folder_name(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    for (index, byte) in text.bytes().enumerate() {
        let plain = byte.is_ascii_alphanumeric() || b"-_".contains(&byte) || (byte == b'.' && index > 0);
        if plain {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("={byte:02x}"));
        }
    }
    name
}

/// Makes a folder, with those above it.
pub(super) fn create_folder(path: &Path) -> Result<(), StoreError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io(path))
}

/// The folders in a folder; none if it does not exist.
pub(super) fn folders(path: &Path) -> Result<Vec<PathBuf>, StoreError> {
    entries(path, |kind| kind.is_dir())
}

/// The finished files in a folder; none if it does not exist.
pub(super) fn regular_files(path: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let files = entries(path, |kind| kind.is_file())?;
    Ok(files.into_iter().filter(|file| file.extension().is_none()).collect())
}

fn entries(path: &Path, wanted: impl Fn(std::fs::FileType) -> bool) -> Result<Vec<PathBuf>, StoreError> {
    let listing = match std::fs::read_dir(path) {
        Ok(listing) => listing,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io(path)(error)),
    };
    let mut found = Vec::new();
    for entry in listing {
        let entry = entry.map_err(io(path))?;
        if wanted(entry.file_type().map_err(io(path))?) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// The bytes of a file; `None` if it does not exist.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io(path)(error)),
    }
}

/// Replaces a file: whoever reads it, now or after a crash, sees the old bytes or the new ones.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let temporary = path.with_extension(TEMPORARY);
    let written = || {
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
        step("made", &temporary)?;
        file.write_all(bytes)?;
        step("written", &temporary)?;
        file.sync_all()?;
        step("flushed", &temporary)?;
        std::fs::rename(&temporary, path)?;
        step("renamed", path)
    };
    written().map_err(io(path))
}

/// Makes renames in a folder survive a crash.
pub(super) fn flush_folder(path: &Path) -> Result<(), StoreError> {
    let flushed = || {
        File::open(path)?.sync_all()?;
        step("folder flushed", path)
    };
    flushed().map_err(io(path))
}

/// What has just been done to a file. Here the machine may stop; tests make it.
#[cfg(not(test))]
fn step(_done: &str, _path: &Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
use crash::step;

/// The machine stops after a step: in tests.
#[cfg(test)]
pub(crate) mod crash {
    use std::cell::RefCell;
    use std::io;
    use std::path::Path;

    type Hook = Box<dyn FnMut(&str, &Path) -> io::Result<()>>;

    thread_local! {
        static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
    }

    /// Calls `hook` after each step of this thread's file accesses; an error that it returns is a crash there.
    pub(crate) fn at(hook: impl FnMut(&str, &Path) -> io::Result<()> + 'static) {
        HOOK.set(Some(Box::new(hook)));
    }

    pub(crate) fn nowhere() {
        HOOK.set(None);
    }

    pub(super) fn step(done: &str, path: &Path) -> io::Result<()> {
        HOOK.with_borrow_mut(|hook| hook.as_mut().map_or(Ok(()), |hook| hook(done, path)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_names_are_harmless_and_different() {
        assert_eq!(folder_name("@alice:localhost:8008"), "=40alice=3alocalhost=3a8008");
        assert_eq!(folder_name(".."), "=2e.");
        assert_eq!(folder_name("../x"), "=2e.=2fx");
        assert_ne!(folder_name("a=40"), folder_name("a@"));
    }
}
