//! `[auth]`: password hashing.

use super::reader::Section;

/// The lowest and the highest cost that bcrypt knows.
const BCRYPT_COSTS: std::ops::RangeInclusive<u32> = 4..=31;

/// Password hashing.
#[derive(Clone, Debug)]
pub struct AuthSettings {
    /// `auth.bcrypt_cost`: the work of one password hash doubles with each step; default 12.
    pub bcrypt_cost: u32,
}

impl AuthSettings {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let bcrypt_cost = section.value("bcrypt_cost", || 12);
        if !BCRYPT_COSTS.contains(&bcrypt_cost) {
            section.problem("bcrypt_cost", "must be between 4 and 31");
        }
        Self { bcrypt_cost }
    }
}
