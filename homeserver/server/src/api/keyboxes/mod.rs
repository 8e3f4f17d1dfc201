//! What the KeyBox profile asks of a server beyond Matrix's own endpoints.
//!
//! Specification: `profiles/keybox/SPEC.md`, from section 20 on.

mod log;
mod passphrase;
mod registry;

use http::Method;
use ruma::api::auth_scheme::AccessToken;

use crate::http::router::{Options, Router};

/// The passphrase of one KeyBox.
const PASSPHRASE: &str = "/_matrix/client/unstable/com.trustner.keybox/v1/keyboxes/{keybox_id}/passphrase";

/// Registers the endpoints.
pub(super) fn routes(router: &mut Router) {
    router
        .route_own::<AccessToken, _, _, _>(
            Method::GET,
            "/_matrix/client/unstable/com.trustner.keybox/v1/keyboxes",
            Options::NORMAL,
            registry::list,
        )
        .route_own::<AccessToken, _, _, _>(Method::PUT, PASSPHRASE, Options::NORMAL, passphrase::store)
        .route_own::<AccessToken, _, _, _>(Method::DELETE, PASSPHRASE, Options::NORMAL, passphrase::destroy)
        .route_own::<AccessToken, _, _, _>(
            Method::GET,
            "/_matrix/client/unstable/com.trustner.keybox/v1/log",
            Options::NORMAL,
            log::page,
        )
        .route_own::<AccessToken, _, _, _>(
            Method::GET,
            "/_matrix/client/unstable/com.trustner.keybox/v1/log/export",
            Options::NORMAL,
            log::export,
        )
        .route_own::<AccessToken, _, _, _>(
            Method::GET,
            "/_matrix/client/unstable/com.trustner.keybox/v1/log/head",
            Options::NORMAL,
            log::head,
        );
}
