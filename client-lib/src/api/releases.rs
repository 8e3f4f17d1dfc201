//! The fingerprints of released programs, as the homeserver publishes them.

use super::http::Call;
use super::{Api, ApiError};

/// A program that was released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// SHA-256 of the file, 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// What it is called.
    pub name: String,
}

impl Api {
    /// The fingerprints that the homeserver publishes: lines of a SHA-256, white space, and a name, as `sha256sum` writes them. Other lines are
    /// left out.
    pub async fn releases(&self) -> Result<Vec<Release>, ApiError> {
        let path = "/_matrix/client/unstable/com.trustner.keybox/v1/releases";
        Ok(parse_releases(&self.text(Call::get(path)).await?))
    }
}

/// The releases in such a list.
pub fn parse_releases(text: &str) -> Vec<Release> {
    let release = |line: &str| {
        let (sha256, name) = line.trim().split_once(char::is_whitespace)?;
        let is_digest = sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
        // `sha256sum` writes one more character before the name: an asterisk for a file that was read as binary.
        let name = name.strip_prefix([' ', '*']).unwrap_or(name).trim_start().to_owned();
        is_digest.then(|| Release { sha256: sha256.to_ascii_lowercase(), name })
    };
    text.lines().filter_map(release).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_as_sha256sum_writes_them_are_read_and_others_left_out() {
        let digest = "AB".repeat(32);
        let text = format!(
            "# releases\n{digest}  keybox 1.0\n{digest} *keybox.exe\n{digest}  ** a\nabc  short\n\n{digest}\n"
        );
        let release = |name: &str| Release { sha256: digest.to_lowercase(), name: name.to_owned() };
        assert_eq!(parse_releases(&text), [release("keybox 1.0"), release("keybox.exe"), release("** a")]);
    }
}
