//! The account's own KeyBoxes: list, rename, revoke.

use serde_json::{Value, json};

use super::failure::Failure;
use super::output::{Output, date_time, plain};
use super::secrets::given_or_asked;
use crate::client::{Client, ClientError};

pub(super) async fn list(client: &mut Client, output: &Output) -> Result<(), Failure> {
    let own = client.account().clone();
    // What this KeyBox itself knows of the others counts, not what the server says of their signatures.
    let known = client.keyboxes(&own.user_id).await?;
    for listed in client.api().keyboxes().await? {
        let this_one = listed.keybox_id == own.keybox_id;
        let is_verified = |id: &str| known.iter().any(|known| known.keys.keybox_id == id && known.verified);
        let verified = this_one || is_verified(&listed.keybox_id);
        let state = match (this_one, verified) {
            (true, _) => "this one",
            (false, true) => "verified",
            (false, false) => "not verified",
        };
        let text = format!(
            "{}  {}  {state}\n    made {}, last seen {} at {}\n    {}",
            plain(&listed.keybox_id),
            plain(listed.name.as_deref().unwrap_or("(no name)")),
            date_time(listed.created_ts),
            date_time(listed.last_seen_ts),
            plain(&listed.last_seen_ip),
            listed.suites.iter().map(|suite| plain(suite)).collect::<Vec<_>>().join("\n    "),
        );
        let mut value = json!(listed);
        if let Some(object) = value.as_object_mut() {
            let signed = object.insert("verified".to_owned(), verified.into()).unwrap_or(Value::Null);
            object.insert("signed_by_owner".to_owned(), signed);
            object.insert("this_one".to_owned(), this_one.into());
        }
        output.lines(&text, &value);
    }
    Ok(())
}

pub(super) async fn rename(
    client: &mut Client,
    output: &Output,
    keybox_id: &str,
    name: &str,
) -> Result<(), Failure> {
    client.api().rename_device(keybox_id, name).await.map_err(|error| unknown(error.into(), keybox_id))?;
    output.result(
        &format!("{keybox_id} is called {name} now."),
        &json!({ "keybox_id": keybox_id, "name": name }),
    );
    Ok(())
}

pub(super) async fn revoke(
    client: &mut Client,
    output: &Output,
    keybox_id: &str,
    password: Option<&str>,
) -> Result<(), Failure> {
    let own = client.account().clone();
    if keybox_id == own.keybox_id {
        return Err(Failure::OwnKeyBox);
    }
    let listed = client.api().keyboxes().await?;
    if !listed.iter().any(|listed| listed.keybox_id == keybox_id) {
        return Err(Failure::NoSuchKeyBox(keybox_id.to_owned()));
    }
    let password = given_or_asked(password, "Password of the account")?;
    client.api().delete_device(keybox_id, &own.user_id, &password).await.map_err(refused)?;
    // Whoever sends next makes a resource key that the revoked one does not get.
    client.keyboxes(&own.user_id).await?;
    let text = format!("{keybox_id} is revoked: its session, its keys and all that waited for it are gone.");
    output.result(&text, &json!({ "keybox_id": keybox_id, "revoked": true }));
    Ok(())
}

fn unknown(error: ClientError, keybox_id: &str) -> Failure {
    match error.errcode() {
        Some("M_NOT_FOUND") => Failure::NoSuchKeyBox(keybox_id.to_owned()),
        _ => error.into(),
    }
}

/// A wrong password is answered with the stages that remain, and what was wrong.
fn refused(error: crate::api::ApiError) -> Failure {
    match error.errcode() {
        Some("M_FORBIDDEN") => Failure::LoginRefused(error.into()),
        _ => error.into(),
    }
}
