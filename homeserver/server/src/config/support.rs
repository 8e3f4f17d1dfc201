//! `[support]`: whom to ask for help; published at `/.well-known/matrix/support`.

use ruma::OwnedUserId;

use super::reader::Section;

/// Whom to ask for help. Published only if something is set.
#[derive(Clone, Debug, Default)]
pub struct SupportSettings {
    /// `support.email`: the administrators' address.
    pub email: Option<String>,
    /// `support.matrix_id`: an administrator's user id.
    pub matrix_id: Option<OwnedUserId>,
    /// `support.page`: the URL of a page about getting help.
    pub page: Option<String>,
}

impl SupportSettings {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        Self {
            email: section.optional("email"),
            matrix_id: section.optional("matrix_id"),
            page: section.optional("page"),
        }
    }

    /// A URI under which the administrators can be reached: the page for help, or their address, or the account of one; if
    /// there is none of these, `fallback`.
    #[must_use]
    pub fn contact(&self, fallback: &str) -> String {
        let address = || self.email.as_ref().map(|email| format!("mailto:{email}"));
        let account = || self.matrix_id.as_ref().map(|id| id.matrix_to_uri().to_string());
        self.page.clone().or_else(address).or_else(account).unwrap_or_else(|| fallback.to_owned())
    }
}
