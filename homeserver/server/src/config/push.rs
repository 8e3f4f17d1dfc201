//! `[push]`: how the server tells push gateways of events.

use super::reader::Section;
use crate::http::client_address::IpNetwork;

/// How the server tells push gateways of events.
#[derive(Clone, Debug)]
pub struct PushSettings {
    /// `push.enabled`: default true.
    pub enabled: bool,
    /// `push.include_content`: whether a notification says more than the ids of the event and its room, if the pusher has not asked for the ids alone;
    /// default false.
    pub include_content: bool,
    /// `push.allowed_networks`: addresses or networks of gateways that are not the public internet, or denied; none by default.
    pub allowed_networks: Vec<IpNetwork>,
    /// `push.denied_networks`: addresses or networks of the public internet where no gateway is; none by default.
    pub denied_networks: Vec<IpNetwork>,
}

impl PushSettings {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        Self {
            enabled: section.value("enabled", || true),
            include_content: section.value("include_content", || false),
            allowed_networks: section.value("allowed_networks", Vec::new),
            denied_networks: section.value("denied_networks", Vec::new),
        }
    }
}
