//! The password rules of the KeyBox profile (section 10 of its specification).

/// From this many characters on, a password may be accepted if it is varied enough.
pub const MIN_CHARS: usize = 8;
/// A password of more than this many characters is accepted whatever it is made of.
pub const LONG_ENOUGH_CHARS: usize = 20;

/// What a password lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lack {
    /// Fewer than [`MIN_CHARS`] characters.
    #[error("at least 8 characters")]
    Characters,
    /// No digit.
    #[error("a digit")]
    Digit,
    /// No lower-case letter.
    #[error("a lower-case letter")]
    LowerCase,
    /// Nothing that is neither a letter nor a digit.
    #[error("a special character")]
    Special,
    /// No upper-case letter.
    #[error("an upper-case letter")]
    UpperCase,
}

/// A password that the rules refuse: all that it lacks, as a list in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", describe(.0))]
pub struct WeakPassword(pub Vec<Lack>);

/// Checks a password at registration and at change.
///
/// Accepted is what has at least [`MIN_CHARS`] characters with a lower-case letter, an upper-case letter, a
/// digit and a special character, or more than [`LONG_ENOUGH_CHARS`] characters. Characters are counted, not
/// bytes.
///
/// # Errors
///
/// [`WeakPassword`] with everything that is missing, fit to be shown to the user.
pub fn check(password: &str) -> Result<(), WeakPassword> {
    let length = password.chars().count();
    if length > LONG_ENOUGH_CHARS {
        return Ok(());
    }
    let has = |test: fn(char) -> bool| password.chars().any(test);
    let lacks: Vec<Lack> = [
        (length >= MIN_CHARS, Lack::Characters),
        (has(char::is_lowercase), Lack::LowerCase),
        (has(char::is_uppercase), Lack::UpperCase),
        (has(char::is_numeric), Lack::Digit),
        (has(|c| !c.is_alphanumeric()), Lack::Special),
    ]
    .into_iter()
    .filter_map(|(present, lack)| (!present).then_some(lack))
    .collect();
    if lacks.is_empty() { Ok(()) } else { Err(WeakPassword(lacks)) }
}

fn describe(lacks: &[Lack]) -> String {
    let list: Vec<String> = lacks.iter().map(Lack::to_string).collect();
    list.join(", ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_everything_that_is_missing() {
        let table: &[(&str, &[Lack])] = &[
            ("Aa1!aaaa", &[]),
            ("Ää1 ääää", &[]),
            ("Aa1!aaa", &[Lack::Characters]),
            ("AA1!AAAA", &[Lack::LowerCase]),
            ("aa1!aaaa", &[Lack::UpperCase]),
            ("Aaa!aaaa", &[Lack::Digit]),
            ("Aa1aaaaa", &[Lack::Special]),
            ("aaaaaaaaaaaaaaaaaaaaa", &[]),
            ("aaaaaaaaaaaaaaaaaaaa", &[Lack::UpperCase, Lack::Digit, Lack::Special]),
            ("", &[Lack::Characters, Lack::LowerCase, Lack::UpperCase, Lack::Digit, Lack::Special]),
        ];
        for (password, lacks) in table {
            let found = check(password).err().map(|weak| weak.0).unwrap_or_default();
            assert_eq!(&found, lacks, "{password}");
        }
    }

    #[test]
    fn says_what_is_missing_in_words() {
        let text = check("aaaaaaaa").unwrap_err().to_string();
        assert!(text.contains("an upper-case letter, a digit, a special character"), "{text}");
    }

    proptest! {
        #[test]
        fn longer_than_twenty_characters_is_enough(password in ".{21,90}") {
            prop_assert_eq!(check(&password), Ok(()));
        }

        #[test]
        fn shorter_than_eight_is_never_enough(password in ".{0,7}") {
            prop_assert!(check(&password).unwrap_err().0.contains(&Lack::Characters));
        }
    }
}
