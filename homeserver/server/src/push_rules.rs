//! The push rules of a user. They are kept as the account data `m.push_rules`, so that a sync tells the user's other
//! clients of each change.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#push-rules>.

use keystead_core::push;
use keystead_store::{Error, ReadTx, account_data, streams::AccountData};
use ruma::{UserId, push::Ruleset};
use serde::{Deserialize, Serialize};

/// The type of account data that holds push rules.
pub(crate) const ACCOUNT_DATA_TYPE: &str = "m.push_rules";

/// The content of `m.push_rules`.
#[derive(Deserialize, Serialize)]
struct Content {
    global: Ruleset,
}

/// The push rules of a user: the server's defaults as of this version, with what the user has changed.
///
/// # Errors
///
/// The database's own, or rules that cannot be read.
pub(crate) async fn load(tx: &ReadTx, user_id: &UserId) -> Result<Ruleset, Error> {
    read(user_id, account_data::find(tx, user_id, None, ACCOUNT_DATA_TYPE).await?.as_deref())
}

/// [`load`], from the content of the account data, if there is any.
///
/// # Errors
///
/// The rules cannot be read.
pub(crate) fn read(user_id: &UserId, stored: Option<&str>) -> Result<Ruleset, Error> {
    let defaults = push::default_rules(user_id);
    let Some(content) = stored else { return Ok(defaults) };
    let content: Content = serde_json::from_str(content).map_err(|error| corrupt(user_id, &error))?;
    let mut rules = content.global;
    rules.update_with_server_default(defaults);
    Ok(rules)
}

/// The account data that holds these rules: what a sync shows, also to a user who has never changed one.
///
/// # Errors
///
/// The rules cannot be written down.
pub(crate) fn account_data_of(user_id: &UserId, global: Ruleset) -> Result<AccountData, Error> {
    let content = serde_json::to_string(&Content { global }).map_err(|error| corrupt(user_id, &error))?;
    Ok(AccountData {
        user_id: user_id.to_owned(),
        room_id: None,
        data_type: ACCOUNT_DATA_TYPE.to_owned(),
        content,
    })
}

fn corrupt(user_id: &UserId, error: &serde_json::Error) -> Error {
    Error::corrupt("account_data", "content", user_id.as_str(), error)
}
