//! The endpoints. [`routes`] registers each in one line; paths, method and authentication follow from its request
//! type.

mod operations;
mod sync;
mod versions;
mod well_known;

use http::Method;
use ruma::api::auth_scheme::NoAuthentication;

use crate::http::router::{Options, Router};

/// All endpoints of the server.
#[must_use]
pub fn routes() -> Router {
    let mut router = Router::default();
    discovery(&mut router);
    operations(&mut router);
    router.route_with(Options::LONG_POLL, sync::sync_events);
    router
}

fn discovery(router: &mut Router) {
    router
        .route(versions::get_supported_versions)
        .route(well_known::discover_homeserver)
        .route(well_known::discover_support);
}

fn operations(router: &mut Router) {
    router
        .route_own::<NoAuthentication, _, _, _>(Method::GET, "/live", Options::UNFENCED, operations::live)
        .route_own::<NoAuthentication, _, _, _>(
            Method::GET,
            "/metrics",
            Options::UNFENCED,
            operations::metrics,
        )
        .route_own::<NoAuthentication, _, _, _>(Method::GET, "/ready", Options::UNFENCED, operations::ready);
}
