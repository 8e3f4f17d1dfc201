//! What this server speaks.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientversions>.

use std::collections::BTreeMap;

use ruma::api::client::discovery::get_supported_versions;

use crate::{context::Ctx, http::error::ApiError};

/// The versions of the client-server API whose endpoints are served, with the old paths where they differ.
const VERSIONS: [&str; 15] = [
    "r0.6.1", "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11",
    "v1.12", "v1.13", "v1.14",
];

/// Features outside of those versions.
const FEATURES: [&str; 1] = ["com.trustner.keybox"];

/// `GET /_matrix/client/versions`.
pub(super) async fn get_supported_versions(
    ctx: Ctx<Option<crate::context::Session>>,
    _request: get_supported_versions::Request,
) -> Result<get_supported_versions::Response, ApiError> {
    let mut response = get_supported_versions::Response::new(VERSIONS.map(str::to_owned).to_vec());
    response.unstable_features = BTreeMap::from(FEATURES.map(|feature| (feature.to_owned(), true)));
    if ctx.app.settings.keybox.master_keys.is_some() {
        response.unstable_features.insert("com.trustner.keybox.passphrases".to_owned(), true);
    }
    Ok(response)
}
