//! `[rooms]`: rooms.

use ruma::RoomVersionId;

use super::reader::Section;

/// The room versions that the server can make.
const KNOWN_VERSIONS: [RoomVersionId; 3] = [RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12];

/// Rooms.
#[derive(Clone, Debug)]
pub struct RoomSettings {
    /// `rooms.default_version`: the version of a room whose creator asks for none; `10`, `11` or `12` (default).
    pub default_version: RoomVersionId,
}

impl RoomSettings {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let default_version = section.value("default_version", || RoomVersionId::V12);
        if !KNOWN_VERSIONS.contains(&default_version) {
            section.problem("default_version", "must be 10, 11 or 12");
        }
        Self { default_version }
    }
}
