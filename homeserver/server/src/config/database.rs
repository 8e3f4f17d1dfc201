//! `[database]`: where everything is kept.

use super::{reader::Section, secret::Secret};

/// Where everything is kept.
#[derive(Clone, Debug)]
pub struct DatabaseSettings {
    /// `database.url` or `database.url_file`: `sqlite:PATH` or `postgres://USER:PASSWORD@HOST/NAME`; default
    /// `sqlite:data/keystead.db`. A secret, as it holds a password.
    pub url: Secret,
}

impl DatabaseSettings {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let url = section.secret("url").unwrap_or_else(|| Secret::new("sqlite:data/keystead.db"));
        let known = ["sqlite:", "postgres://", "postgresql://"];
        if !known.iter().any(|scheme| url.expose().starts_with(scheme)) {
            section.problem("url", "must begin with sqlite: or postgres://");
        }
        Self { url }
    }
}
