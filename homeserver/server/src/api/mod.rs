//! The endpoints. [`routes`] registers each in one line; paths, method and authentication follow from its request
//! type.

mod account_data;
mod accounts;
mod capabilities;
mod cross_signing;
pub(crate) mod filter;
mod guard;
mod key_backup;
mod keyboxes;
mod keys;
mod media;
mod notifications;
mod openid;
mod operations;
mod presence;
mod profile;
mod push_rules;
mod pushers;
mod receipts;
pub(crate) mod releases;
mod reporting;
mod room_aliases;
mod room_directory;
mod rooms;
mod server_keys;
mod spaces;
mod sync;
mod third_party;
mod to_device;
mod typing;
mod user_directory;
mod versions;
mod voip;
mod well_known;

use http::Method;
use ruma::api::{
    auth_scheme::{AccessToken, NoAuthentication},
    client::media::{get_content, get_content_as_filename, get_content_thumbnail},
};

pub use self::{
    filter::FilterCache,
    keys::{KeyClaims, KeyUploads, PublishedKeys},
    to_device::{InboxCounts, ToDeviceMessages},
};
use crate::http::router::{Options, Router};

/// All endpoints of the server.
#[must_use]
pub fn routes() -> Router {
    let mut router = Router::default();
    accounts::routes(&mut router);
    directories(&mut router);
    discovery(&mut router);
    keyboxes::routes(&mut router);
    keys(&mut router);
    content_repository(&mut router);
    notifications(&mut router);
    operations(&mut router);
    rooms::routes(&mut router);
    router.route_with(Options::LONG_POLL, sync::sync_events);
    reading(&mut router);
    reports(&mut router);
    user_data(&mut router);
    router
}

#[expect(deprecated, reason = "clients that know no others get a proper refusal")]
fn content_repository(router: &mut Router) {
    router
        .route(media::create_mxc_uri)
        .route(media::frozen::<get_content::v3::Request>)
        .route(media::frozen::<get_content_as_filename::v3::Request>)
        .route(media::frozen::<get_content_thumbnail::v3::Request>)
        .route(media::get_media_config)
        .route(media::get_media_config_legacy)
        .route(media::get_media_preview)
        .route(media::get_media_preview_legacy)
        .route_streaming(Options::NORMAL, media::create_content)
        .route_streaming(Options::NORMAL, media::create_content_async)
        .route_streaming(Options::LONG_POLL, media::get_content)
        .route_streaming(Options::LONG_POLL, media::get_content_as_filename)
        .route_streaming(Options::LONG_POLL, media::get_content_thumbnail);
}

fn directories(router: &mut Router) {
    router
        .route(room_aliases::aliases)
        .route(room_aliases::create_alias)
        .route(room_aliases::delete_alias)
        .route(room_aliases::get_alias)
        .route(room_directory::get_public_rooms)
        .route(room_directory::get_public_rooms_filtered)
        .route(room_directory::get_room_visibility)
        .route(room_directory::set_room_visibility)
        .route(spaces::get_hierarchy)
        .route(spaces::get_summary)
        .route(third_party::get_location_for_protocol)
        .route(third_party::get_location_for_room_alias)
        .route(third_party::get_protocol)
        .route(third_party::get_protocols)
        .route(third_party::get_user_for_protocol)
        .route(third_party::get_user_for_user_id)
        .route(user_directory::search_users);
}

fn discovery(router: &mut Router) {
    router
        .route(capabilities::get_capabilities)
        .route(versions::get_supported_versions)
        .route(well_known::discover_homeserver)
        .route(well_known::discover_support)
        .route_own::<NoAuthentication, _, _, _>(
            Method::GET,
            releases::PATH,
            Options::UNFENCED,
            releases::releases,
        )
        .route_own::<NoAuthentication, _, _, _>(
            Method::GET,
            server_keys::PATH,
            Options::UNFENCED,
            server_keys::server_keys,
        );
}

fn keys(router: &mut Router) {
    router
        .route(cross_signing::upload_signatures)
        .route(cross_signing::upload_signing_keys)
        .route(key_backup::add_backup_keys)
        .route(key_backup::add_backup_keys_for_room)
        .route(key_backup::add_backup_keys_for_session)
        .route(key_backup::create_backup_version)
        .route(key_backup::delete_backup_keys)
        .route(key_backup::delete_backup_keys_for_room)
        .route(key_backup::delete_backup_keys_for_session)
        .route(key_backup::delete_backup_version)
        .route(key_backup::get_backup_info)
        .route(key_backup::get_backup_keys)
        .route(key_backup::get_backup_keys_for_room)
        .route(key_backup::get_backup_keys_for_session)
        .route(key_backup::get_latest_backup_info)
        .route(key_backup::update_backup_version)
        .route(keys::claim_keys)
        .route(keys::get_key_changes)
        .route(keys::get_keys)
        .route(keys::upload_keys)
        .route(to_device::send_event_to_device);
}

fn notifications(router: &mut Router) {
    router
        .route(notifications::get_notifications)
        .route(push_rules::delete_pushrule)
        .route(push_rules::get_pushrule)
        .route(push_rules::get_pushrule_actions)
        .route(push_rules::get_pushrule_enabled)
        .route(push_rules::get_pushrules_all)
        .route(push_rules::get_pushrules_global_scope)
        .route(push_rules::set_pushrule)
        .route(push_rules::set_pushrule_actions)
        .route(push_rules::set_pushrule_enabled)
        .route(pushers::get_pushers)
        .route(pushers::set_pusher);
}

fn operations(router: &mut Router) {
    router
        .route_own::<NoAuthentication, _, _, _>(Method::GET, "/live", Options::PROBE, operations::live)
        .route_own::<NoAuthentication, _, _, _>(Method::GET, "/metrics", Options::PROBE, operations::metrics)
        .route_own::<NoAuthentication, _, _, _>(Method::GET, "/ready", Options::PROBE, operations::ready);
}

fn reading(router: &mut Router) {
    router.route(receipts::create_receipt).route(receipts::set_read_marker);
    for path in typing::PATHS {
        router.route_own::<AccessToken, _, _, _>(Method::PUT, path, Options::NORMAL, typing::set_typing);
    }
}

fn reports(router: &mut Router) {
    router.route(reporting::report_content).route(reporting::report_room).route(reporting::report_user);
}

fn user_data(router: &mut Router) {
    router
        .route(account_data::create_tag)
        .route(account_data::delete_tag)
        .route(account_data::get_global_account_data)
        .route(account_data::get_room_account_data)
        .route(account_data::get_tags)
        .route(account_data::set_global_account_data)
        .route(account_data::set_room_account_data)
        .route(filter::create_filter)
        .route(filter::get_filter)
        .route(openid::request_openid_token)
        .route(presence::get_presence)
        .route(presence::set_presence)
        .route(profile::delete_profile_field)
        .route(profile::get_profile)
        .route(profile::get_profile_field)
        .route(profile::set_profile_field)
        .route_own::<NoAuthentication, _, _, _>(
            Method::GET,
            openid::USERINFO_PATH,
            Options::NORMAL,
            openid::userinfo,
        );
    for path in voip::PATHS {
        router.route_own::<AccessToken, _, _, _>(Method::GET, path, Options::UNFENCED, voip::get_turn_server);
    }
}
