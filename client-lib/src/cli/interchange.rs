//! Interchange files of resource keys.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde_json::json;

use super::failure::Failure;
use super::output::Output;
use super::rooms::find_room;
use super::secrets::given_or_asked;
use crate::client::Client;
use crate::engine::Imported;

const PROMPT: &str = "Passphrase of the interchange file";

pub(super) async fn export(
    client: &mut Client,
    output: &Output,
    path: &Path,
    rooms: &[String],
    passphrase: Option<&str>,
) -> Result<(), Failure> {
    let mut ids = Vec::new();
    for room in rooms {
        ids.push(find_room(client, room).await?);
    }
    let passphrase = given_or_asked(passphrase, PROMPT)?;
    let rooms = (!ids.is_empty()).then_some(ids.as_slice());
    let (file, count) = client.export_keys(rooms, &passphrase).await?;
    // Never over a file that is there: it may be the only copy of other keys.
    let written = || {
        let mut target = std::fs::File::options().create_new(true).write(true).mode(0o600).open(path)?;
        target.write_all(file.as_bytes())?;
        target.sync_all()
    };
    written().map_err(|source| Failure::File { path: path.to_owned(), source })?;
    let text = format!(
        "{count} resource key(s) are in {}. Who has the file and its passphrase reads everything that they sealed.",
        path.display()
    );
    output.result(&text, &json!({ "file": path, "keys": count }));
    Ok(())
}

pub(super) async fn import(
    client: &mut Client,
    output: &Output,
    path: &Path,
    passphrase: Option<&str>,
) -> Result<(), Failure> {
    let file =
        std::fs::read_to_string(path).map_err(|source| Failure::File { path: path.to_owned(), source })?;
    let passphrase = given_or_asked(passphrase, PROMPT)?;
    let imported = client.import_keys(&file, &passphrase).await?;
    report(output, &imported);
    Ok(())
}

pub(super) fn report(output: &Output, imported: &Imported) {
    let text = format!(
        "{} new resource key(s), {} known before, {} in conflict with what is here, {} refused.",
        imported.new.len(),
        imported.known.len(),
        imported.conflicts.len(),
        imported.refused.len()
    );
    let refused: Vec<_> =
        imported.refused.iter().map(|(key, reason)| json!({ "key": key, "reason": reason })).collect();
    let value = json!({
        "new": imported.new.len(), "known": imported.known.len(), "conflicts": imported.conflicts, "refused": refused,
    });
    output.result(&text, &value);
    for key in &imported.conflicts {
        output.progress(&format!("In conflict, kept as it was here: {} of {}", key.key_id, key.room_id));
    }
    for (key, reason) in &imported.refused {
        output.progress(&format!("Refused: {} of {}: {reason}", key.key_id, key.room_id));
    }
}
