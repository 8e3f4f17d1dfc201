//! What this server lets clients do.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#capabilities-negotiation>.

use ruma::{
    RoomVersionId,
    api::client::discovery::get_capabilities::v3::{
        Capabilities, ProfileFieldsCapability, Request, RoomVersionStability, RoomVersionsCapability,
        ThirdPartyIdChangesCapability,
    },
};

use serde_json::json;

use crate::{
    context::{Ctx, Session},
    http::{error::ApiError, reply::RawJson},
};

/// `GET /_matrix/client/v3/capabilities`.
pub(super) async fn get_capabilities(ctx: Ctx<Session>, _request: Request) -> Result<RawJson, ApiError> {
    let versions = [RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12];
    let mut capabilities = Capabilities::new();
    capabilities.room_versions = RoomVersionsCapability::new(
        ctx.app.settings.rooms.default_version.clone(),
        versions.map(|version| (version, RoomVersionStability::Stable)).into(),
    );
    capabilities.profile_fields = Some(ProfileFieldsCapability::new(true));
    // There is no identity server and no mail: addresses cannot be bound to an account.
    capabilities.thirdparty_id_changes = ThirdPartyIdChangesCapability::new(false);
    let mut capabilities = serde_json::to_value(capabilities).map_err(ApiError::internal)?;
    // ruma leaves out what is so by default.
    if let Some(named) = capabilities.as_object_mut() {
        named.insert("m.change_password".to_owned(), json!({ "enabled": true }));
    }
    Ok(RawJson(json!({ "capabilities": capabilities }).to_string().into()))
}
