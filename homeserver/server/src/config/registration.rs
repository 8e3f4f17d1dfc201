//! `[registration]`: who may register, and how.

use std::str::FromStr;

use super::{reader::Section, secret::Secret};

/// Who may register, and how.
#[derive(Clone, Debug)]
pub struct RegistrationSettings {
    /// `registration.open`: whether anybody may register, without a registration token; default false.
    pub open: bool,
    /// `registration.shared_secret` or `registration.shared_secret_file`: lets tools that know it register accounts,
    /// administrators too; none by default.
    pub shared_secret: Option<Secret>,
    /// `registration.password_policy`: `bsi` (default) or `none`.
    pub password_policy: PasswordPolicy,
}

/// What a password must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasswordPolicy {
    /// At least 8 characters with lower case, upper case, digit and special character, or more than 20 characters.
    Bsi,
    /// Anything but empty.
    None,
}

impl FromStr for PasswordPolicy {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "bsi" => Ok(Self::Bsi),
            "none" => Ok(Self::None),
            _ => Err("must be bsi or none"),
        }
    }
}

impl RegistrationSettings {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        Self {
            open: section.value("open", || false),
            shared_secret: section.secret("shared_secret"),
            password_policy: section.value("password_policy", || PasswordPolicy::Bsi),
        }
    }
}
