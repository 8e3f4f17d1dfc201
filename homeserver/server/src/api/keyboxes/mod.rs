//! What the KeyBox profile asks of a server beyond Matrix's own endpoints.
//!
//! Specification: `profiles/keybox/SPEC.md`, from section 20 on.

mod log;

use http::Method;
use ruma::api::auth_scheme::AccessToken;

use crate::http::router::{Options, Router};

/// Registers the endpoints.
pub(super) fn routes(router: &mut Router) {
    router
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
