//! What a password must be: section 10 of the KeyBox profile.

use http::StatusCode;
use keystead_core::password::{self, LONG_ENOUGH_CHARS};
use ruma::api::error::ErrorCode;

use crate::{config::registration::PasswordPolicy, http::error::ApiError};

/// The most characters that a password may have: enough for any passphrase, little enough to hash.
const MAX_CHARACTERS: usize = 512;
/// Checks a new password.
///
/// # Errors
///
/// 400 `M_WEAK_PASSWORD`, saying all that is missing; 400 `M_INVALID_PARAM` beyond 512 characters.
pub fn check(policy: PasswordPolicy, password: &str) -> Result<(), ApiError> {
    let length = password.chars().count();
    if length > MAX_CHARACTERS {
        let text = format!("A password must not have more than {MAX_CHARACTERS} characters");
        return Err(ApiError::invalid_param(text));
    }
    let lacks = match policy {
        PasswordPolicy::None if length == 0 => "at least one character".to_owned(),
        PasswordPolicy::None => return Ok(()),
        PasswordPolicy::Bsi => match password::check(password) {
            Ok(()) => return Ok(()),
            Err(weak) => weak.to_string(),
        },
    };
    let text = format!(
        "The password lacks {lacks}; or it must have more than {LONG_ENOUGH_CHARS} characters of any kind"
    );
    Err(ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::WeakPassword, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(password: &str) -> Option<String> {
        check(PasswordPolicy::Bsi, password).err().map(|error| error.to_string())
    }

    #[test]
    fn the_refusal_names_all_that_is_missing() {
        assert_eq!(refusal("Aa1!aaaa"), None);
        assert_eq!(refusal("Ärger-über-9"), None);
        assert!(refusal("Aa1!aaa").unwrap().contains("at least 8 characters;"));
        let text = refusal("aaaaaaaa").unwrap();
        for rule in ["an upper-case letter", "a digit", "a special character"] {
            assert!(text.contains(rule), "{text}");
        }
        assert!(!text.contains("lower-case"));
    }

    #[test]
    fn length_makes_up_for_kinds() {
        assert_eq!(refusal(&"a".repeat(21)), None);
        assert!(refusal(&"a".repeat(20)).is_some());
        assert!(refusal(&"a".repeat(513)).unwrap().contains("512"));
    }

    #[test]
    fn without_a_policy_only_nothing_is_too_little() {
        assert!(check(PasswordPolicy::None, "a").is_ok());
        assert!(check(PasswordPolicy::None, "").is_err());
    }
}
