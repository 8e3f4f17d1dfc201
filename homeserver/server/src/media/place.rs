//! Whether this replica keeps media where all others do.
//!
//! The place bears a mark, an object whose name is kept in the database. A replica that was given another folder or bucket does not find it there,
//! and does not start: half of all downloads would fail otherwise, and jobs would count as done that have discarded nothing.

use keystead_store::{Store, settings};

use super::{Media, objects::ObjectsError};
use crate::app::App;

/// The setting of the database that holds the name of the mark.
const MARK: &str = "media_mark";

/// Why this replica's place for media cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The place cannot be read or written to.
    #[error("the place of the media cannot be used (settings media.folder, media.s3_…)")]
    Objects(#[from] ObjectsError),
    /// The database cannot be asked.
    #[error("the database cannot tell where the media are")]
    Store(#[from] keystead_store::Error),
    /// It is another place than the one that the database's media are in.
    #[error(
        "the media of this database are in another place than the one that is configured here (settings media.folder, media.s3_…), \
         which lacks the object keystead-place/{0}: all replicas have to share one place. If the media have moved here, copy that object, too; \
         if they are lost and shall be given up, make an empty object of that name"
    )]
    Other(String),
}

/// Makes sure that the media of the database are in the place that is configured. The first replica to start on a new database decides.
///
/// # Errors
///
/// [`PlaceError`] says what to do.
pub async fn check(app: &App) -> Result<(), PlaceError> {
    let objects = &app.media.objects;
    let known = app.store.read("media_mark", |tx| async move { settings::find(&tx, MARK).await }).await?;
    let mark = match known {
        Some(mark) => mark,
        None => {
            // The mark is set before its name is known, so whoever knows the name finds the mark, whatever breaks in between.
            let own = app.entropy.token();
            objects.set_mark(&own).await?;
            let new = own.as_str();
            let mark = app
                .store
                .write("media_mark", |tx| async move { settings::find_or_insert(&tx, MARK, new).await })
                .await?;
            if mark != own {
                objects.remove_mark(&own).await?;
            }
            mark
        }
    };
    if objects.has_mark(&mark).await? { Ok(()) } else { Err(PlaceError::Other(mark)) }
}

/// Whether the media of the database are in this place; so they are if no replica has decided on one yet. Changes nothing.
///
/// # Errors
///
/// As [`check`].
pub(crate) async fn is_known(media: &Media, store: &Store) -> Result<bool, PlaceError> {
    let known = store.read("media_mark", |tx| async move { settings::find(&tx, MARK).await }).await?;
    match known {
        Some(mark) => Ok(media.objects.has_mark(&mark).await?),
        None => Ok(true),
    }
}

/// Makes an object in the place, looks for it, and removes it again.
///
/// # Errors
///
/// The place cannot be written to or read.
pub(crate) async fn try_out(media: &Media, name: &str) -> Result<(), ObjectsError> {
    media.objects.set_mark(name).await?;
    media.objects.has_mark(name).await?;
    media.objects.remove_mark(name).await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::{Settings, reader::Environment};

    async fn app(folder: &tempfile::TempDir, media: &str) -> Arc<App> {
        let database = format!("sqlite:{}/keystead.db", folder.path().display());
        let media = folder.path().join(media).display().to_string();
        let environment = Environment::from([
            ("KEYSTEAD_DATABASE_URL", database.as_str()),
            ("KEYSTEAD_MEDIA_FOLDER", media.as_str()),
            ("KEYSTEAD_AUTH_BCRYPT_COST", "4"),
        ]);
        App::start(Settings::from_environment(environment).unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn another_place_than_the_first_one_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let first = app(&folder, "one").await;
        check(&first).await.unwrap();
        check(&first).await.unwrap();
        let marks = || std::fs::read_dir(folder.path().join("one/keystead-place")).unwrap().count();
        assert_eq!(marks(), 1);
        let other = app(&folder, "two").await;
        let Err(PlaceError::Other(mark)) = check(&other).await else { panic!("not noticed") };
        // Whoever follows the advice of the error can start.
        other.media.objects.set_mark(&mark).await.unwrap();
        check(&other).await.unwrap();
        check(&first).await.unwrap();
    }
}
