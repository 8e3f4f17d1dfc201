//! What a password must be: section 10 of the KeyBox profile.

use http::StatusCode;
use ruma::api::error::ErrorCode;

use crate::{config::registration::PasswordPolicy, http::error::ApiError};

/// The most characters that a password may have: enough for any passphrase, little enough to hash.
const MAX_CHARACTERS: usize = 512;
/// A password with all four kinds of characters must have this many.
const MIN_CHARACTERS: usize = 8;
/// A password with more than this many may have any kinds of characters.
const LONG: usize = 20;

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
    let missing = match policy {
        PasswordPolicy::None if length == 0 => vec!["at least one character"],
        PasswordPolicy::None => Vec::new(),
        PasswordPolicy::Bsi if length > LONG => Vec::new(),
        PasswordPolicy::Bsi => missing(password, length),
    };
    if missing.is_empty() {
        return Ok(());
    }
    let text = format!(
        "The password lacks {}; or it must have more than {LONG} characters of any kind",
        missing.join(", ")
    );
    Err(ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::WeakPassword, text))
}

fn missing(password: &str, length: usize) -> Vec<&'static str> {
    let has = |kind: fn(char) -> bool| password.chars().any(kind);
    let rules = [
        (length >= MIN_CHARACTERS, "at least 8 characters"),
        (has(char::is_lowercase), "a lower-case letter"),
        (has(char::is_uppercase), "an upper-case letter"),
        (has(char::is_numeric), "a digit"),
        (has(|c| !c.is_alphanumeric()), "a special character"),
    ];
    rules.into_iter().filter(|(met, _)| !met).map(|(_, rule)| rule).collect()
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
