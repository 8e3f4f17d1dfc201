//! `[presence]`: whether users see who is there.

use super::reader::Section;

/// Whether users see who is there.
#[derive(Clone, Debug, Default)]
pub struct PresenceSettings {
    /// `presence.enabled`: default false.
    pub enabled: bool,
}

impl PresenceSettings {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        Self { enabled: section.value("enabled", || false) }
    }
}
