//! `[url_preview]`: whether the server looks at pages on the web for its users.

use super::reader::Section;
use crate::http::client_address::IpNetwork;

/// Whether the server looks at pages on the web for its users.
#[derive(Clone, Debug, Default)]
pub struct UrlPreviewSettings {
    /// `url_preview.enabled`: default false.
    pub enabled: bool,
    /// `url_preview.allowed_networks`: addresses or networks that are looked at although they are not the public internet, or denied;
    /// none by default.
    pub allowed_networks: Vec<IpNetwork>,
    /// `url_preview.denied_networks`: addresses or networks of the public internet that are not looked at; none by default.
    pub denied_networks: Vec<IpNetwork>,
}

impl UrlPreviewSettings {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        Self {
            enabled: section.value("enabled", || false),
            allowed_networks: section.value("allowed_networks", Vec::new),
            denied_networks: section.value("denied_networks", Vec::new),
        }
    }
}
