//! Where clients find this server, and its administrators.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#well-known-uris>.

use ruma::api::client::discovery::{
    discover_homeserver::{self, HomeserverInfo},
    discover_support::{self, Contact, ContactRole},
};

use crate::{context::Ctx, http::error::ApiError};

/// `GET /.well-known/matrix/client`.
pub(super) async fn discover_homeserver(
    ctx: Ctx<()>,
    _request: discover_homeserver::Request,
) -> Result<discover_homeserver::Response, ApiError> {
    let base_url = ctx.app.settings.server.public_base_url.clone();
    Ok(discover_homeserver::Response::new(HomeserverInfo::new(base_url)))
}

/// `GET /.well-known/matrix/support`; 404 if the configuration names nobody.
pub(super) async fn discover_support(
    ctx: Ctx<()>,
    _request: discover_support::Request,
) -> Result<discover_support::Response, ApiError> {
    let support = &ctx.app.settings.support;
    let contact = match (&support.email, &support.matrix_id) {
        (None, None) => None,
        (Some(email), matrix_id) => {
            let mut contact = Contact::with_email_address(ContactRole::Admin, email.clone());
            contact.matrix_id.clone_from(matrix_id);
            Some(contact)
        }
        (None, Some(matrix_id)) => Some(Contact::with_matrix_id(ContactRole::Admin, matrix_id.clone())),
    };
    let mut response = match (&support.page, contact.is_some()) {
        (Some(page), _) => discover_support::Response::with_support_page(page.clone()),
        (None, true) => discover_support::Response::with_contacts(Vec::new()),
        (None, false) => return Err(ApiError::not_found("This server names no contact for support")),
    };
    response.contacts.extend(contact);
    Ok(response)
}
