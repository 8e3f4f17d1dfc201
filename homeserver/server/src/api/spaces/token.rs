//! Where a page of a hierarchy goes on.

use std::{fmt, str::FromStr};

/// How many rooms were shown already, and what of the tree they were taken from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Token {
    /// How many rooms were shown.
    pub(super) shown: u32,
    /// How far below the first room the walk goes.
    pub(super) max_depth: u32,
    /// Whether the walk takes only children that are suggested.
    pub(super) suggested_only: bool,
}

/// A text that is no token of this server.
#[derive(Debug)]
pub(super) struct NoToken;

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shown, max_depth, suggested_only } = self;
        write!(f, "h{shown}_{max_depth}_{}", u8::from(*suggested_only))
    }
}

impl FromStr for Token {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Self, NoToken> {
        let fields: Vec<&str> = text.strip_prefix('h').ok_or(NoToken)?.split('_').collect();
        let [shown, max_depth, suggested_only] = *fields else { return Err(NoToken) };
        Ok(Self {
            shown: shown.parse().map_err(|_| NoToken)?,
            max_depth: max_depth.parse().map_err(|_| NoToken)?,
            suggested_only: match suggested_only {
                "0" => false,
                "1" => true,
                _ => return Err(NoToken),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_leads_back_to_its_place() {
        let token = Token { shown: 50, max_depth: 3, suggested_only: true };
        assert_eq!(token.to_string().parse::<Token>().unwrap(), token);
        for odd in ["", "h", "h1_2", "h1_2_2", "h1_2_0_0", "h-1_2_0", "1_2_0", "hä_1_0"] {
            assert!(odd.parse::<Token>().is_err(), "{odd}");
        }
    }
}
