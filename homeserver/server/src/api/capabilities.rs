//! What this server lets clients do.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#capabilities-negotiation>.

use ruma::{
    RoomVersionId,
    api::client::discovery::get_capabilities::{
        self,
        v3::{
            Capabilities, ProfileFieldsCapability, RoomVersionStability, RoomVersionsCapability,
            ThirdPartyIdChangesCapability,
        },
    },
};

use crate::{
    context::{Ctx, Session},
    http::error::ApiError,
};

/// `GET /_matrix/client/v3/capabilities`.
pub(super) async fn get_capabilities(
    ctx: Ctx<Session>,
    _request: get_capabilities::v3::Request,
) -> Result<get_capabilities::v3::Response, ApiError> {
    let versions = [RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12];
    let mut capabilities = Capabilities::new();
    capabilities.room_versions = RoomVersionsCapability::new(
        ctx.app.settings.rooms.default_version.clone(),
        versions.map(|version| (version, RoomVersionStability::Stable)).into(),
    );
    capabilities.profile_fields = Some(ProfileFieldsCapability::new(true));
    // There is no identity server and no mail: addresses cannot be bound to an account.
    capabilities.thirdparty_id_changes = ThirdPartyIdChangesCapability::new(false);
    Ok(get_capabilities::v3::Response::new(capabilities))
}
