//! Files as messages: encrypted here, kept at the homeserver as ciphertext, their keys inside the message.
//!
//! Neither way holds a file in memory: it passes in parts.

mod download;
mod names;
mod picture;
mod upload;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use keystead_keybox::CryptoError;
use keystead_keybox::attachment::{AttachmentError, DecryptorError, EncryptedFile};

use super::{Client, ClientError};
use crate::api::Api;
use crate::engine::Message;

pub use names::harmless as safe_file_name;
pub use picture::look_at_picture;

/// How much of a file is worked on at once.
const PART: usize = 64 * 1024;

/// Hears how far a transfer has come.
pub type Progress = Arc<dyn Fn(Transfer) + Send + Sync>;

/// How far a transfer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Bytes that are done.
    pub done: u64,
    /// Bytes in all, if that is known.
    pub total: Option<u64>,
}

/// A file that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentFile {
    /// The event of the message.
    pub event_id: String,
    /// The address of the ciphertext: `mxc://…`.
    pub url: String,
    /// The name that receivers see.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
}

/// A file that was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its length in bytes.
    pub size: u64,
    /// How many bytes were here already, from a transfer that broke off.
    pub resumed_at: u64,
}

/// Why a file could not be sent or saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The message's address of the file is none.
    #[error("the message has no usable address of its file")]
    Address,
    /// Another process is receiving the same file to the same place.
    #[error("another process is receiving {}", .0.display())]
    Busy(PathBuf),
    /// The file changed while it was read.
    #[error("{} changed while it was sent", .0.display())]
    Changed(PathBuf),
    /// OpenSSL failed.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    /// The message describes its file in a way that cannot be used.
    #[error(transparent)]
    Description(#[from] AttachmentError),
    /// Nothing is overwritten.
    #[error("{} is there already; name another file", .0.display())]
    Exists(PathBuf),
    /// A file cannot be read or written.
    #[error("{} cannot be used", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The message is no encrypted file.
    #[error("the message has no encrypted file")]
    NotAFile,
    /// The message brings no small version of a picture, or none that is encrypted.
    #[error("the message has no encrypted thumbnail")]
    NoThumbnail,
    /// What the homeserver gave is not what was sent. Nothing of it was decrypted.
    #[error("what the homeserver gave is not the file that was sent; nothing of it was kept")]
    Tampered,
    /// The homeserver does not take files of this size.
    #[error("the file has {size} bytes, and the homeserver takes {limit} at most")]
    TooLarge {
        /// The file's size in bytes.
        size: u64,
        /// The homeserver's limit in bytes.
        limit: u64,
    },
}

impl From<DecryptorError> for FileError {
    fn from(error: DecryptorError) -> Self {
        match error {
            DecryptorError::Description(error) => Self::Description(error),
            DecryptorError::Crypto(error) => Self::Crypto(error),
        }
    }
}

/// Tells an error of a file with its path.
fn io(path: &Path) -> impl Fn(std::io::Error) -> FileError {
    move |source| FileError::Io { path: path.to_owned(), source }
}

/// The file in a message.
struct Attachment {
    file: EncryptedFile,
    /// As the sender gave it: not to be trusted with a place in a folder.
    name: String,
    /// As the sender gave it.
    size: Option<u64>,
}

impl Attachment {
    fn of(message: &Message) -> Result<Self, FileError> {
        if !message.encrypted {
            return Err(FileError::NotAFile);
        }
        let file = message.content.get("file").ok_or(FileError::NotAFile)?;
        Ok(Self { file: described(file)?, name: Self::name_in(message), size: number(message, "/info/size") })
    }

    /// The small version of the picture in a message: a file like any other, with a key of its own.
    fn thumbnail_of(message: &Message) -> Result<Self, FileError> {
        let file = message.content.pointer("/info/thumbnail_file").filter(|_| message.encrypted);
        let file = described(file.ok_or(FileError::NoThumbnail)?)?;
        let media_type = message.content.pointer("/info/thumbnail_info/mimetype").and_then(Value::as_str);
        let extension = match media_type {
            Some("image/png") => ".png",
            Some("image/jpeg") => ".jpg",
            _ => "",
        };
        let name = names::harmless(&format!("thumbnail of {}{extension}", Self::name_in(message)));
        Ok(Self { file, name, size: number(message, "/info/thumbnail_info/size") })
    }

    fn name_in(message: &Message) -> String {
        let named = message.content.get("filename").and_then(Value::as_str);
        names::harmless(named.or(message.body()).unwrap_or_default())
    }

    /// The server and the id in the address of the ciphertext.
    fn address(&self) -> Result<(&str, &str), FileError> {
        let (server, id) = self
            .file
            .url
            .strip_prefix("mxc://")
            .and_then(|rest| rest.split_once('/'))
            .ok_or(FileError::Address)?;
        let is_id = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let is_address = !server.is_empty() && !id.is_empty() && id.chars().all(is_id);
        if is_address { Ok((server, id)) } else { Err(FileError::Address) }
    }
}

fn described(file: &Value) -> Result<EncryptedFile, FileError> {
    Ok(EncryptedFile::deserialize(file).map_err(|_| AttachmentError::Unknown)?)
}

fn number(message: &Message, pointer: &str) -> Option<u64> {
    message.content.pointer(pointer).and_then(Value::as_u64)
}

impl Client {
    /// Encrypts a file for everybody in a room now, uploads the ciphertext and sends the message with its key.
    ///
    /// An upload that breaks off begins anew, with a new key, a few times: Matrix has no way to go on with one.
    pub async fn send_file(
        &mut self,
        room_id: &str,
        path: &Path,
        progress: &Progress,
    ) -> Result<SentFile, ClientError> {
        // Before anything is uploaded for a room that would not take the message.
        self.check_sending(room_id).await?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = names::harmless(&name);
        let (file, size) = upload::upload(&self.api, path, progress).await?;
        let (message_type, media_type) = names::types_of(&name);
        let mut info = json!({ "size": size, "mimetype": media_type });
        if message_type == "m.image" {
            describe_picture(&self.api, path, &mut info).await;
        }
        let url = file.url.clone();
        let content = json!({
            "msgtype": message_type,
            "body": name,
            "filename": name,
            "info": info,
            "file": file,
        });
        let event_id = self.send(room_id, "m.room.message", content).await?;
        Ok(SentFile { event_id, url, name, size })
    }

    /// Receives the file of a message and decrypts it, once all of the ciphertext is here and its hash is right.
    ///
    /// `output` is the file to write, or a folder for a file of the sender's name; by default the working folder. An existing file
    /// is never overwritten. When the transfer breaks off, the ciphertext stays beside the output as `.keybox-….part`, and the
    /// next call goes on from there. A missing resource key is waited for up to `wait`.
    pub async fn save_file(
        &mut self,
        room_id: &str,
        event_id: &str,
        output: Option<&Path>,
        wait: Duration,
        progress: &Progress,
    ) -> Result<SavedFile, ClientError> {
        let message = self.message(room_id, event_id, wait).await?;
        self.save(&Attachment::of(&message)?, output, progress).await
    }

    /// The same for the small version of a picture that a message brings, if it does.
    pub async fn save_thumbnail(
        &mut self,
        room_id: &str,
        event_id: &str,
        output: Option<&Path>,
        wait: Duration,
        progress: &Progress,
    ) -> Result<SavedFile, ClientError> {
        let message = self.message(room_id, event_id, wait).await?;
        self.save(&Attachment::thumbnail_of(&message)?, output, progress).await
    }

    async fn save(
        &self,
        attachment: &Attachment,
        output: Option<&Path>,
        progress: &Progress,
    ) -> Result<SavedFile, ClientError> {
        let output = match output {
            None => PathBuf::from(&attachment.name),
            Some(path) if path.is_dir() => path.join(&attachment.name),
            Some(path) => path.to_owned(),
        };
        download::save(&self.api, attachment, &output, progress).await
    }
}

/// Adds to the description of a picture what the picture itself tells, and uploads a small version, encrypted under a key of its own. What
/// cannot be had is left out: the picture itself is at the homeserver already.
///
/// <https://spec.matrix.org/v1.19/client-server-api/#mimage>
async fn describe_picture(api: &Api, path: &Path, info: &mut Value) {
    let path = path.to_owned();
    let looking = tokio::task::spawn_blocking(move || picture::look_at(&path)).await;
    let Some(picture) = looking.ok().flatten() else { return };
    info["w"] = picture.width.into();
    info["h"] = picture.height.into();
    info["mimetype"] = picture.media_type.into();
    let Some(thumbnail) = picture.thumbnail else { return };
    let Ok(file) = upload::upload_small(api, &thumbnail.bytes).await else { return };
    info["thumbnail_file"] = json!(file);
    info["thumbnail_info"] = json!({
        "w": thumbnail.width,
        "h": thumbnail.height,
        "mimetype": thumbnail.media_type,
        "size": thumbnail.bytes.len(),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(content: Value, encrypted: bool) -> Message {
        Message {
            room_id: "!r".to_owned(),
            event_id: "$e".to_owned(),
            sender: "@a:x".to_owned(),
            sender_keybox: None,
            sent_at: 0,
            event_type: "m.room.message".to_owned(),
            content,
            encrypted,
            verified: false,
            key_id: None,
            counter: None,
        }
    }

    fn content(url: &str) -> Value {
        let encryptor = keystead_keybox::attachment::Encryptor::new(&mut keystead_keybox::OpensslEntropy);
        json!({ "body": "../a", "info": { "size": 5 }, "file": encryptor.unwrap().finish(url.to_owned()) })
    }

    #[test]
    fn a_file_comes_in_an_encrypted_message_only() {
        let content = content("mxc://x:1/abc");
        let attachment = Attachment::of(&message(content.clone(), true)).unwrap();
        assert_eq!(attachment.address().unwrap(), ("x:1", "abc"));
        assert_eq!((attachment.name.as_str(), attachment.size), ("a", Some(5)));
        assert!(matches!(Attachment::of(&message(content, false)), Err(FileError::NotAFile)));
        assert!(matches!(Attachment::of(&message(json!({ "body": "x" }), true)), Err(FileError::NotAFile)));
        let unknown = message(json!({ "body": "x", "file": { "url": "mxc://x/y" } }), true);
        assert!(matches!(Attachment::of(&unknown), Err(FileError::Description(_))));
    }

    #[test]
    fn a_thumbnail_has_a_name_a_size_and_a_key_of_its_own() {
        let mut content = content("mxc://x/abc");
        assert!(matches!(
            Attachment::thumbnail_of(&message(content.clone(), true)),
            Err(FileError::NoThumbnail)
        ));
        let encryptor = keystead_keybox::attachment::Encryptor::new(&mut keystead_keybox::OpensslEntropy);
        content["info"]["thumbnail_file"] = json!(encryptor.unwrap().finish("mxc://x/small".to_owned()));
        content["info"]["thumbnail_info"] = json!({ "size": 3, "mimetype": "image/jpeg" });
        let thumbnail = Attachment::thumbnail_of(&message(content.clone(), true)).unwrap();
        assert_eq!(thumbnail.address().unwrap(), ("x", "small"));
        assert_eq!((thumbnail.name.as_str(), thumbnail.size), ("thumbnail of a.jpg", Some(3)));
        assert!(Attachment::thumbnail_of(&message(content, false)).is_err(), "it came in the clear");
    }

    #[test]
    fn an_address_is_an_address() {
        for wrong in
            ["", "mxc://", "mxc://x", "mxc://x/", "mxc:///y", "https://x/y", "mxc://x/../y", "mxc://x/y?z"]
        {
            let attachment = Attachment::of(&message(content(wrong), true)).unwrap();
            assert!(matches!(attachment.address(), Err(FileError::Address)), "{wrong}");
        }
    }
}
