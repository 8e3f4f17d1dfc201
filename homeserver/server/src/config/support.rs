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
}
