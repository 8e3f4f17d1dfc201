//! A user's own devices.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#device-management>.

use keystead_core::keybox::audit_log::LogEvent;
use keystead_store::{Error, devices, keys};
use ruma::{
    DeviceId, OwnedDeviceId,
    api::client::device::{self, delete_device, delete_devices, get_device, get_devices, update_device},
};

use crate::{
    accounts::{interactive_auth, sessions},
    context::{Ctx, Session},
    http::error::ApiError,
    keyboxes::{self, Actor},
};

/// `GET /_matrix/client/v3/devices`.
pub(super) async fn get_devices(
    ctx: Ctx<Session>,
    _request: get_devices::v3::Request,
) -> Result<get_devices::v3::Response, ApiError> {
    let user_id = &*ctx.requester.user_id;
    let devices =
        ctx.app.store.read("devices", |tx| async move { devices::of_user(&tx, user_id).await }).await?;
    Ok(get_devices::v3::Response::new(devices.into_iter().map(shown).collect()))
}

/// `GET /_matrix/client/v3/devices/{deviceId}`.
pub(super) async fn get_device(
    ctx: Ctx<Session>,
    request: get_device::v3::Request,
) -> Result<get_device::v3::Response, ApiError> {
    let (user_id, device_id) = (&*ctx.requester.user_id, &*request.device_id);
    let device = ctx
        .app
        .store
        .read("device", |tx| async move { devices::find(&tx, user_id, device_id).await })
        .await?;
    device.map(|device| get_device::v3::Response::new(shown(device))).ok_or_else(unknown)
}

/// `PUT /_matrix/client/v3/devices/{deviceId}`. Others see the name, too, so their device lists change.
pub(super) async fn update_device(
    ctx: Ctx<Session>,
    request: update_device::v3::Request,
) -> Result<update_device::v3::Response, ApiError> {
    let (user_id, device_id) = (&*ctx.requester.user_id, &*request.device_id);
    if let Some(name) = request.display_name.as_deref() {
        sessions::check_display_name(name)?;
    }
    let name = request.display_name.as_deref();
    let actor = Actor::of(&ctx);
    let is_known = ctx
        .app
        .store
        .write("device_rename", |tx| async move {
            tx.lock_shards(&keys::device_list_shards(&tx, user_id).await?).await?;
            if name.is_none() {
                // Nothing is to be changed.
                return Ok(devices::find(&tx, user_id, device_id).await?.is_some());
            }
            let is_known = devices::rename(&tx, user_id, device_id, name).await?;
            if is_known && keys::device_keys(&tx, user_id, device_id).await?.is_some() {
                keys::note_device_list_change(&tx, user_id).await?;
                if keyboxes::of_user(&tx, user_id).await?.contains_key(device_id) {
                    let event = LogEvent::KeyboxRenamed(actor.on(device_id, name.map(str::to_owned)));
                    actor.note(&tx, user_id, event).await?;
                }
            }
            Ok::<_, Error>(is_known)
        })
        .await?;
    if is_known { Ok(update_device::v3::Response::new()) } else { Err(unknown()) }
}

/// `DELETE /_matrix/client/v3/devices/{deviceId}`.
pub(super) async fn delete_device(
    ctx: Ctx<Session>,
    request: delete_device::v3::Request,
) -> Result<delete_device::v3::Response, ApiError> {
    let operation = operation(std::slice::from_ref(&request.device_id));
    interactive_auth::require_password(&ctx, &operation, request.auth.as_ref()).await?;
    let ends = |device: &DeviceId| *device == request.device_id;
    sessions::end(&ctx.app, &ctx.requester.user_id, Actor::of(&ctx), ends).await?;
    Ok(delete_device::v3::Response::new())
}

/// `POST /_matrix/client/v3/delete_devices`.
pub(super) async fn delete_devices(
    ctx: Ctx<Session>,
    request: delete_devices::v3::Request,
) -> Result<delete_devices::v3::Response, ApiError> {
    let operation = operation(&request.devices);
    interactive_auth::require_password(&ctx, &operation, request.auth.as_ref()).await?;
    let ends = |device: &DeviceId| request.devices.iter().any(|deleted| deleted == device);
    sessions::end(&ctx.app, &ctx.requester.user_id, Actor::of(&ctx), ends).await?;
    Ok(delete_devices::v3::Response::new())
}

/// Names the devices by their hash, so that what was agreed to for one is not done to another.
fn operation(devices: &[OwnedDeviceId]) -> String {
    let mut hash = openssl::sha::Sha256::new();
    for device in devices {
        hash.update(device.as_bytes());
        hash.update(b"\0");
    }
    let hash = hash.finish();
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("delete_devices {hex}")
}

fn shown(stored: devices::Device) -> device::Device {
    let mut device = device::Device::new(stored.device_id);
    device.display_name = stored.display_name;
    device.last_seen_ip = Some(stored.last_seen_ip);
    device.last_seen_ts = Some(stored.last_seen_ts);
    device
}

fn unknown() -> ApiError {
    ApiError::not_found("You have no such device")
}
