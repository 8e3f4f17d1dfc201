//! `/keys/query`: what users have published.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use keystead_store::{
    Error, ReadTx,
    cross_signing::{self, Signatures},
    keys,
};
use ruma::{OwnedUserId, UserId, api::client::keys::get_keys::v3 as get_keys};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    published::{Known, Published},
    unreachable_servers,
};
use crate::{
    app::App,
    context::{Ctx, Session},
    http::{error::ApiError, reply::RawJson},
};

/// How many signatures of others are remembered with a user's keys. Of who has more, the database is asked for the viewer's.
const MOST_SIGNATURES: u32 = 100;

type Shown<'a> = BTreeMap<&'a UserId, Cow<'a, RawValue>>;

/// [`get_keys::Response`], which would have to own what it shows.
#[derive(Default, Serialize)]
struct Answer<'a> {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    failures: BTreeMap<String, serde_json::Value>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    device_keys: BTreeMap<&'a UserId, BTreeMap<&'a str, Cow<'a, RawValue>>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    master_keys: Shown<'a>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    self_signing_keys: Shown<'a>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    user_signing_keys: Shown<'a>,
}

/// `POST /_matrix/client/v3/keys/query`.
pub(in crate::api) async fn get_keys(
    ctx: Ctx<Session>,
    request: get_keys::Request,
) -> Result<RawJson, ApiError> {
    let viewer = &*ctx.requester.user_id;
    let own_server = &ctx.app.settings.server.name;
    let is_local = |user_id: &&OwnedUserId| user_id.server_name() == own_server;
    let remote = request.device_keys.keys().filter(|user_id| !is_local(user_id));
    let local = request.device_keys.keys().filter(is_local);
    let (users, signatures) = published(&ctx.app, local.map(AsRef::as_ref), viewer).await?;

    let mut answer = Answer { failures: unreachable_servers(remote), ..Answer::default() };
    for (user_id, published) in &users {
        let show = |key| published.show(key, viewer, &signatures);
        let wanted = request.device_keys.get(*user_id).map(Vec::as_slice).unwrap_or_default();
        let devices = published.devices.iter().filter(|device| {
            wanted.is_empty() || wanted.iter().any(|device_id| device_id.as_str() == device.id)
        });
        let devices = devices.map(|device| Ok((&*device.id, show(device)?)));
        answer.device_keys.insert(user_id, devices.collect::<Result<_, Error>>()?);
        let user_signing = published.user_signing.as_ref().filter(|_| *user_id == viewer);
        let places = [
            (&mut answer.master_keys, published.master.as_ref()),
            (&mut answer.self_signing_keys, published.self_signing.as_ref()),
            (&mut answer.user_signing_keys, user_signing),
        ];
        for (place, key) in places {
            if let Some(key) = key {
                place.insert(user_id, show(key)?);
            }
        }
    }
    Ok(RawJson(serde_json::to_vec(&answer).map_err(ApiError::internal)?.into()))
}

/// What these users have published, from memory or the database, and such signatures of the viewer as are not remembered.
async fn published<'a>(
    app: &App,
    user_ids: impl Iterator<Item = &'a UserId>,
    viewer: &UserId,
) -> Result<(Known<'a>, Signatures), Error> {
    let (mut known, missing) = app.published_keys.begin(user_ids);
    let crowded: Vec<&UserId> =
        known.iter().filter(|(_, published)| published.is_crowded()).map(|(user_id, _)| *user_id).collect();
    if missing.is_empty() && crowded.is_empty() {
        return Ok((known, Signatures::new()));
    }
    let users: Vec<&UserId> = missing.iter().map(|(user_id, _)| *user_id).collect();
    let (users, crowded) = (&users, &crowded);
    let rows = app
        .store
        .read("query_keys", |tx| async move { Rows::read(&tx, users, crowded, viewer).await })
        .await?;
    for (user_id, load) in missing {
        let published = Arc::new(rows.published(user_id)?);
        app.published_keys.finish(load, published.clone());
        known.insert(user_id, published);
    }
    Ok((known, rows.by_viewer))
}

/// What the database says of users that nothing is remembered of.
struct Rows {
    devices: Vec<keys::DeviceKeys>,
    cross_signing: Vec<cross_signing::CrossSigningKey>,
    signatures: Signatures,
    /// Those of them with more signatures of others than are remembered: these are not in `signatures`.
    crowded: BTreeSet<OwnedUserId>,
    /// What the viewer, and the owner, signed of the keys of those with too many signatures.
    by_viewer: Signatures,
}

impl Rows {
    async fn read(
        tx: &ReadTx,
        users: &[&UserId],
        known_crowded: &[&UserId],
        viewer: &UserId,
    ) -> Result<Self, Error> {
        let wanted = users.iter().map(|user_id| ((*user_id).to_owned(), Vec::new())).collect();
        let crowded = cross_signing::signed_by_many(tx, users, MOST_SIGNATURES).await?;
        let few: Vec<&UserId> = users.iter().copied().filter(|user_id| !crowded.contains(*user_id)).collect();
        let many: Vec<&UserId> =
            crowded.iter().map(AsRef::as_ref).chain(known_crowded.iter().copied()).collect();
        let by_viewer = cross_signing::visible_signatures(tx, &many, viewer).await?;
        let mut signatures = cross_signing::signatures_on(tx, &few).await?;
        signatures.extend(by_viewer.clone());
        Ok(Self {
            devices: keys::query(tx, &wanted).await?,
            cross_signing: cross_signing::keys_of(tx, users).await?,
            signatures,
            crowded,
            by_viewer,
        })
    }

    fn published(&self, user_id: &UserId) -> Result<Published, Error> {
        let is_crowded = self.crowded.contains(user_id);
        Published::new(user_id, &self.devices, &self.cross_signing, &self.signatures, is_crowded)
    }
}
