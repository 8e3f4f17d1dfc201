//! Accounts and sessions: registration, login, logout, passwords, devices.

mod admin_register;
mod devices;
mod login;
mod manage;
mod register;
mod third_party_ids;
mod whois;

use http::Method;
use ruma::api::auth_scheme::NoAuthentication;

use crate::http::router::{Options, Router};

/// Where tools of this ecosystem register accounts with a shared secret.
const ADMIN_REGISTER: &str = "/_synapse/admin/v1/register";

/// Registers the endpoints.
pub(super) fn routes(router: &mut Router) {
    router
        .route(devices::delete_device)
        .route(devices::delete_devices)
        .route(devices::get_device)
        .route(devices::get_devices)
        .route(devices::update_device)
        .route(login::get_login_types)
        .route(login::logout)
        .route(login::logout_all)
        .route(login::refresh_token)
        .route(manage::change_password)
        .route(manage::deactivate)
        .route(manage::whoami)
        .route(register::check_registration_token_validity)
        .route(register::get_username_availability)
        .route(register::register)
        .route(whois::get_user_info);
    third_party_ids::routes(router);
    for path in ["/_matrix/client/r0/login", "/_matrix/client/v3/login"] {
        router.route_own::<NoAuthentication, _, _, _>(Method::POST, path, Options::NORMAL, login::login);
    }
    router
        .route_own::<NoAuthentication, _, _, _>(
            Method::GET,
            ADMIN_REGISTER,
            Options::NORMAL,
            admin_register::nonce,
        )
        .route_own::<NoAuthentication, _, _, _>(
            Method::POST,
            ADMIN_REGISTER,
            Options::NORMAL,
            admin_register::register,
        );
}

#[cfg(test)]
mod tests;
