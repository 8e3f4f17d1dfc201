//! Contacts: showing one's own code, scanning that of others, accepting changed keys.

use std::io::Write as _;
use std::path::Path;

use serde_json::json;

use keystead_keybox::contact_code::ContactCode;
use keystead_keybox::fingerprint::fingerprint;

use super::failure::Failure;
use super::output::{Output, plain};
use super::people::{state_of, value_of};
use crate::client::Client;
use crate::qr;

/// Where the code goes; neither is the terminal.
pub(super) struct CodeFile<'a> {
    pub(super) png: Option<&'a Path>,
    pub(super) svg: Option<&'a Path>,
    pub(super) light: bool,
}

pub(super) fn show_code(client: &Client, output: &Output, file: &CodeFile<'_>) -> Result<(), Failure> {
    let code = client.contact_code().to_string();
    if let Some(path) = file.png {
        write(path, &qr::png(&code)?)?;
    }
    if let Some(path) = file.svg {
        write(path, qr::svg(&code)?.as_bytes())?;
    }
    let account = client.account();
    let text = match file.png.or(file.svg) {
        Some(path) => format!("The contact code of {} is in {}.", account.user_id, path.display()),
        None => format!(
            "{}\n{}\nFor those who compare by voice:\n{}",
            qr::terminal(&code, !file.light)?,
            code,
            client.fingerprint()
        ),
    };
    let value = json!({
        "user_id": account.user_id, "keybox_id": account.keybox_id, "code": code,
        "fingerprint": client.fingerprint(), "png": file.png, "svg": file.svg,
    });
    output.lines(&text, &value);
    Ok(())
}

pub(super) async fn scan(client: &mut Client, output: &Output, image: &Path) -> Result<(), Failure> {
    let file = std::fs::read(image).map_err(|source| Failure::File { path: image.to_owned(), source })?;
    let code = ContactCode::parse(&qr::read(&file)?)?;
    let (keybox, added) = client.verify_contact(&code).await?;
    let text = format!("{keybox} is verified{}.", if added { ", and a new contact" } else { "" });
    let value = json!({
        "user_id": keybox.user_id, "keybox_id": keybox.keybox_id, "verified": true, "added": added,
    });
    output.result(&text, &value);
    Ok(())
}

pub(super) async fn list(client: &mut Client, output: &Output) -> Result<(), Failure> {
    client.sync(std::time::Duration::ZERO).await?;
    for contact in client.contacts().await? {
        let present: Vec<_> = contact.keyboxes.iter().filter(|known| !known.gone).collect();
        let state = match (contact.keys_changed(), contact.is_verified()) {
            (true, _) => "KEYS HAVE CHANGED",
            (false, true) => "verified",
            (false, false) => "not verified",
        };
        let keyboxes =
            present.iter().map(|known| format!("{} {}", known.keys.keybox_id, state_of(known, false)));
        let text = format!("{}  {state}  [{}]", contact.user_id, keyboxes.collect::<Vec<_>>().join("; "));
        let value = json!({
            "user_id": contact.user_id, "verified": contact.is_verified(), "changed_keys": contact.keys_changed(),
            "keyboxes": present.iter().map(|known| value_of(known, false)).collect::<Vec<_>>(),
        });
        output.result(&text, &value);
    }
    Ok(())
}

pub(super) async fn accept(client: &mut Client, output: &Output, user_id: &str) -> Result<(), Failure> {
    let accepted = client.accept(user_id).await?;
    if !accepted.identity && accepted.keyboxes.is_empty() {
        return Err(Failure::NothingToAccept(user_id.to_owned()));
    }
    if accepted.identity {
        let text = format!("Accepted the other identity of {user_id}, not verified.");
        output.result(&text, &json!({ "user_id": user_id, "identity": "accepted" }));
    }
    for known in &accepted.keyboxes {
        let keybox = plain(&format!("{user_id}/{}", known.keys.keybox_id));
        let text = format!("Accepted for {keybox}, not verified:\n{}", fingerprint(&known.keys));
        output.lines(&text, &value_of(known, false));
    }
    output.progress("Compare the digits with the owner, and verify: keybox verify, or keybox scan.");
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let written = || std::fs::File::create(path)?.write_all(bytes);
    written().map_err(|source| Failure::File { path: path.to_owned(), source })
}
