//! To whom this KeyBox gives resource keys: policies, and the decisions that they ask for.

use std::time::Duration;

use serde_json::json;

use super::failure::Failure;
use super::output::{Output, date_time};
use super::rooms::find_room;
use crate::client::Client;
use crate::engine::{Approval, Decision, Policy};

/// `keybox policy`, `keybox policy ROOM`, `keybox policy POLICY`, `keybox policy ROOM POLICY`.
pub(super) async fn policy(client: &mut Client, output: &Output, words: &[String]) -> Result<(), Failure> {
    match words {
        [] => {
            show(client, output, None);
            let rooms: Vec<_> = client.room_policies().keys().cloned().collect();
            for room_id in rooms {
                show(client, output, Some(&room_id));
            }
        }
        [word] => match Policy::parse(word) {
            Some(policy) => {
                client.set_policy(policy).await?;
                show(client, output, None);
            }
            None => {
                let room_id = find_room(client, word).await?;
                show(client, output, Some(&room_id));
            }
        },
        [room, word, ..] => {
            let policy = match (word.as_str(), Policy::parse(word)) {
                ("default", _) => None,
                (_, Some(policy)) => Some(policy),
                (_, None) => return Err(Failure::NoSuchPolicy(word.clone())),
            };
            let room_id = find_room(client, room).await?;
            client.set_room_policy(&room_id, policy).await?;
            show(client, output, Some(&room_id));
        }
    }
    Ok(())
}

fn show(client: &Client, output: &Output, room_id: Option<&str>) {
    let policy = client.policy(room_id).name();
    let text = format!("{}  {policy}", room_id.unwrap_or("account"));
    output.result(&text, &json!({ "room_id": room_id, "policy": policy }));
}

pub(super) async fn approvals(client: &mut Client, output: &Output, all: bool) -> Result<(), Failure> {
    client.sync(Duration::ZERO).await?;
    for approval in client.approvals().await? {
        if all || !approval.waiting.is_empty() {
            print(output, &approval);
        }
    }
    Ok(())
}

pub(super) async fn decide(
    client: &mut Client,
    output: &Output,
    ids: &[u64],
    decision: Option<Decision>,
) -> Result<(), Failure> {
    client.sync(Duration::ZERO).await?;
    for id in ids {
        let known = match decision {
            Some(Decision::Refused) => client.refuse(*id).await?,
            Some(Decision::Approved) => client.approve(*id, true).await?,
            None => client.approve(*id, false).await?,
        };
        let approval = client.approvals().await?.into_iter().find(|approval| approval.id == *id);
        match approval.filter(|_| known) {
            Some(approval) => print(output, &approval),
            None => return Err(Failure::NoSuchApproval(*id)),
        }
    }
    Ok(())
}

fn print(output: &Output, approval: &Approval) {
    let state = match (approval.decided, approval.waiting.is_empty()) {
        (Some(Decision::Approved), _) => "approved, always",
        (Some(Decision::Refused), _) => "refused",
        (None, false) => "waiting",
        (None, true) => "approved",
    };
    let text = format!(
        "{}  {state}  {} for {} key(s) of {}, since {}",
        approval.id,
        approval.keybox,
        approval.waiting.len().max(approval.approved.len()),
        approval.room_id,
        date_time(approval.since)
    );
    let mut value = json!(approval);
    if let Some(object) = value.as_object_mut() {
        object.insert("state".to_owned(), state.into());
    }
    output.result(&text, &value);
}
