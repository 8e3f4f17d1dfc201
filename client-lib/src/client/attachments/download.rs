//! From the ciphertext at the homeserver to a file.
//!
//! The ciphertext goes to a file beside the output first. Only when all of it is here and its hash is right it is decrypted, to another
//! file beside the output, which gets the output's name last.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use keystead_keybox::attachment::EncryptedFile;
use keystead_keybox::encoding::hex;

use super::{Attachment, FileError, PART, Progress, SavedFile, Transfer, io};
use crate::api::{Api, ApiError};
use crate::client::ClientError;

/// How often a transfer that breaks off goes on by itself, if it does not come further meanwhile.
const ATTEMPTS: u32 = 4;
/// The pause before the second attempt; it grows from there.
const PAUSE: Duration = Duration::from_secs(1);
/// The largest file of which the message does not tell the size: 16 GiB.
const MAX_UNTOLD: u64 = 16 << 30;

/// Receives, checks and decrypts a file.
pub(super) async fn save(
    api: &Api,
    attachment: &Attachment,
    output: &Path,
    progress: &Progress,
) -> Result<SavedFile, ClientError> {
    let place = Place::beside(output, &attachment.file)?;
    place.refuse_existing()?;
    let part = place.open()?;
    let mut resumed_at = part.metadata().map_err(io(&place.ciphertext))?.len();
    let mut transfer = Reception { api, attachment, place: &place, progress };
    transfer.receive(&part).await?;
    let mut decrypted = decrypt(&part, &attachment.file, &place).await?;
    if decrypted.is_none() && resumed_at > 0 {
        // What an earlier call has left may be bad, and the server not to blame.
        resumed_at = 0;
        part.set_len(0).map_err(io(&place.ciphertext))?;
        transfer.receive(&part).await?;
        decrypted = decrypt(&part, &attachment.file, &place).await?;
    }
    let size = decrypted.ok_or_else(|| discard(&part, &place))?;
    Ok(SavedFile { path: output.to_owned(), size, resumed_at })
}

/// The files of one reception.
#[derive(Clone)]
struct Place {
    output: PathBuf,
    folder: PathBuf,
    /// The ciphertext as far as it is here.
    ciphertext: PathBuf,
    /// The plaintext until it is whole.
    plaintext: PathBuf,
}

impl Place {
    /// Beside the output, under a name that only this ciphertext has.
    fn beside(output: &Path, file: &EncryptedFile) -> Result<Self, FileError> {
        let folder = match output.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        let mut name = hex(&file.sha256()?);
        name.truncate(32);
        Ok(Self {
            output: output.to_owned(),
            ciphertext: folder.join(format!(".keybox-{name}.part")),
            plaintext: folder.join(format!(".keybox-{name}.plain")),
            folder,
        })
    }

    fn refuse_existing(&self) -> Result<(), FileError> {
        match std::fs::symlink_metadata(&self.output) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io(&self.output)(error)),
            Ok(_) => Err(FileError::Exists(self.output.clone())),
        }
    }

    /// The file of the ciphertext, for this process alone.
    fn open(&self) -> Result<File, FileError> {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).read(true).write(true).mode(0o600);
        let file = options.open(&self.ciphertext).map_err(io(&self.ciphertext))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(FileError::Busy(self.output.clone())),
            Err(TryLockError::Error(error)) => Err(io(&self.ciphertext)(error)),
        }
    }
}

struct Reception<'a> {
    api: &'a Api,
    attachment: &'a Attachment,
    place: &'a Place,
    progress: &'a Progress,
}

impl Reception<'_> {
    /// Receives what is missing of the ciphertext. Goes on where the connection breaks off.
    async fn receive(&mut self, part: &File) -> Result<(), ClientError> {
        let mut attempt = 1;
        loop {
            let before = self.length(part)?;
            if self.attachment.size == Some(before) {
                return Ok(());
            }
            match self.once(part, before).await {
                Ok(()) => return Ok(()),
                Err(ClientError::Api(error)) if error.is_temporary() => {
                    attempt = if self.length(part)? > before { 1 } else { attempt + 1 };
                    if attempt > ATTEMPTS {
                        return Err(error.into());
                    }
                    tokio::time::sleep(PAUSE * attempt).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Receives from byte `from` on.
    async fn once(&self, part: &File, from: u64) -> Result<(), ClientError> {
        let address = self.attachment.address()?;
        let mut download = match self.api.download(address, from).await {
            // Nothing follows what is here. Whether it is right, its hash will tell.
            Err(ApiError::Server(error)) if error.status == 416 => return Ok(()),
            download => download?,
        };
        if download.begin != from && download.begin != 0 {
            return Err(ApiError::Malformed("another part of the file than was asked for".into()).into());
        }
        let failed = io(&self.place.ciphertext);
        part.set_len(download.begin).map_err(&failed)?;
        let mut file = part.try_clone().map_err(&failed)?;
        file.seek(std::io::SeekFrom::Start(download.begin)).map_err(&failed)?;
        let mut file = tokio::fs::File::from_std(file);
        let limit = self.attachment.size.unwrap_or(MAX_UNTOLD);
        let total = self.attachment.size.or(download.total);
        let mut done = download.begin;
        let received = loop {
            match download.next().await {
                Ok(Some(bytes)) => {
                    done += bytes.len() as u64;
                    if done > limit {
                        break Err(self.tampered(part).into());
                    }
                    file.write_all(&bytes).await.map_err(&failed)?;
                    (self.progress)(Transfer { done, total });
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error.into()),
            }
        };
        // What has come counts, also if no more does.
        file.flush().await.map_err(&failed)?;
        received
    }

    fn length(&self, part: &File) -> Result<u64, FileError> {
        Ok(part.metadata().map_err(io(&self.place.ciphertext))?.len())
    }

    /// More than the file has: nothing of it can be trusted.
    fn tampered(&self, part: &File) -> FileError {
        discard(part, self.place)
    }
}

/// Removes a ciphertext that is not what was sent.
fn discard(part: &File, place: &Place) -> FileError {
    // If it stays, its hash is wrong the next time as well.
    part.set_len(0).ok();
    std::fs::remove_file(&place.ciphertext).ok();
    FileError::Tampered
}

/// Decrypts the ciphertext to the output and removes it. Returns the file's size; nothing if it is not the one that was sent.
async fn decrypt(part: &File, file: &EncryptedFile, place: &Place) -> Result<Option<u64>, FileError> {
    let mut part = part.try_clone().map_err(io(&place.ciphertext))?;
    let (file, its_place) = (file.clone(), place.clone());
    let work = tokio::task::spawn_blocking(move || {
        if !verify(&mut part, &file, &its_place)? {
            return Ok(None);
        }
        let written = write_plaintext(&mut part, &file, &its_place);
        if written.is_err() {
            std::fs::remove_file(&its_place.plaintext).ok();
        }
        let size = written?;
        // It has served; and if it stays, the next call for this file begins with it.
        std::fs::remove_file(&its_place.ciphertext).ok();
        Ok(Some(size))
    });
    work.await.map_err(|error| io(&place.output)(std::io::Error::other(error)))?
}

/// Whether the ciphertext is the one that was sent.
fn verify(part: &mut File, file: &EncryptedFile, place: &Place) -> Result<bool, FileError> {
    let mut verifier = file.verifier()?;
    each_part(part, &place.ciphertext, |bytes| {
        verifier.update(bytes);
        Ok(())
    })?;
    Ok(verifier.is_right())
}

fn write_plaintext(part: &mut File, file: &EncryptedFile, place: &Place) -> Result<u64, FileError> {
    let failed = io(&place.plaintext);
    // Such as a crash leaves; the lock of the ciphertext says that nobody is at it.
    std::fs::remove_file(&place.plaintext).ok();
    let mut plaintext = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&place.plaintext)
        .map_err(&failed)?;
    let (mut decryptor, mut verifier) = (file.decryptor()?, file.verifier()?);
    let mut size = 0;
    each_part(part, &place.ciphertext, |bytes| {
        verifier.update(bytes);
        size += bytes.len() as u64;
        plaintext.write_all(&decryptor.update(bytes)?).map_err(&failed)
    })?;
    // Somebody may have changed it since it was verified.
    if !verifier.is_right() {
        return Err(FileError::Tampered);
    }
    plaintext.sync_all().map_err(&failed)?;
    place.refuse_existing()?;
    std::fs::rename(&place.plaintext, &place.output).map_err(io(&place.output))?;
    File::open(&place.folder).and_then(|folder| folder.sync_all()).map_err(io(&place.folder))?;
    Ok(size)
}

fn each_part(
    file: &mut File,
    path: &Path,
    mut work: impl FnMut(&[u8]) -> Result<(), FileError>,
) -> Result<(), FileError> {
    file.rewind().map_err(io(path))?;
    let mut buffer = vec![0; PART];
    loop {
        let length = file.read(&mut buffer).map_err(io(path))?;
        match buffer.get(..length) {
            Some([]) | None => return Ok(()),
            Some(bytes) => work(bytes)?,
        }
    }
}
