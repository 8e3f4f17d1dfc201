//! Getting rid of media: first nobody finds them any more, then their objects are discarded.
//!
//! The transaction that removes the rows writes a job for each object. So whatever breaks off, a medium is there whole or not at all, and no object is
//! left behind that no row points at.

use std::sync::Arc;

use keystead_store::{
    Error, jobs as job_store,
    media::care::{self, Selection},
};
use ruma::UserId;

use super::upload;
use crate::{
    app::App,
    jobs::{self, JobError},
};

/// The kind of job that removes all media of a user; its payload is the user's id.
pub(crate) const JOB: &str = "erase_media";
/// How many media are removed in one transaction.
const BATCH: u32 = 100;

/// Removes media by their ids, and returns how many had been uploaded. Their objects are gone when this returns, or, if some could not be
/// discarded now, will be discarded by a replica.
///
/// # Errors
///
/// When the database cannot be reached; then nothing was removed.
pub(crate) async fn remove(app: &Arc<App>, media_ids: &[String]) -> Result<usize, Error> {
    let now = app.clock.now();
    let discarding = app
        .store
        .write("remove_media", |tx| async move {
            let mut discarding = Vec::new();
            for object in care::remove(&tx, media_ids).await? {
                let job = jobs::new(&*app.entropy, upload::JOB, &object, now);
                job_store::insert(&tx, &job).await?;
                discarding.push(job);
            }
            Ok::<_, Error>(discarding)
        })
        .await?;
    let count = discarding.len();
    for job in discarding {
        // Boxed, because removing media may be a job itself.
        Box::pin(jobs::finish_new(app, job)).await;
    }
    Ok(count)
}

/// Removes all media of a selection, the oldest first, and returns how many had been uploaded.
///
/// # Errors
///
/// When the database cannot be reached; it can be called again then.
pub(crate) async fn remove_all(app: &Arc<App>, selection: Selection<'_>) -> Result<usize, Error> {
    let mut count = 0_usize;
    loop {
        let batch = app
            .store
            .read("list_media", |tx| async move { care::list(&tx, selection, None, BATCH).await })
            .await?;
        if batch.is_empty() {
            return Ok(count);
        }
        let media_ids: Vec<_> = batch.into_iter().map(|listed| listed.media_id).collect();
        count = count.saturating_add(remove(app, &media_ids).await?);
    }
}

/// Removes all media of a user: the job [`JOB`].
///
/// # Errors
///
/// What kept it from being finished; it can be done again.
pub(crate) async fn erase(app: &Arc<App>, user_id: &str) -> Result<(), JobError> {
    let user_id = &*UserId::parse(user_id).map_err(|_| JobError::Payload)?;
    remove_all(app, Selection { user_id: Some(user_id), before: None }).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use keystead_store::media::{self as store, Content};
    use ruma::user_id;

    use super::*;
    use crate::config::{Settings, reader::Environment};

    #[tokio::test]
    async fn an_object_that_cannot_be_discarded_now_is_discarded_later() {
        let folder = tempfile::tempdir().unwrap();
        let database = format!("sqlite:{}/keystead.db", folder.path().display());
        let media = folder.path().join("media");
        let environment = Environment::from([
            ("KEYSTEAD_DATABASE_URL", database.as_str()),
            ("KEYSTEAD_MEDIA_FOLDER", media.to_str().unwrap()),
            ("KEYSTEAD_AUTH_BCRYPT_COST", "4"),
        ]);
        let app = App::start(Settings::from_environment(environment).unwrap()).await.unwrap();
        let (user_id, now) = (user_id!("@a:localhost:8008"), app.clock.now());
        for name in ["AAone", "BBtwo"] {
            let mut object = app.media.objects.create(name).await.unwrap();
            object.write(b"content").await.unwrap();
            object.finish().await.unwrap();
            let content = &Content {
                object: name.to_owned(),
                content_type: "text/plain".to_owned(),
                file_name: None,
                size: 7,
            };
            let write = |tx| async move { store::insert(&tx, name, user_id, now, content).await };
            app.store.write("test", write).await.unwrap();
        }
        // Where the folder of the first one was, something is in the way.
        std::fs::rename(media.join("AA"), media.join("moved")).unwrap();
        std::fs::write(media.join("AA"), "no folder").unwrap();
        assert_eq!(remove(&app, &["AAone".to_owned(), "BBtwo".to_owned()]).await.unwrap(), 2);
        assert!(!media.join("BB/BBtwo").exists());

        std::fs::remove_file(media.join("AA")).unwrap();
        std::fs::rename(media.join("moved"), media.join("AA")).unwrap();
        let later = ruma::MilliSecondsSinceUnixEpoch(now.0 + ruma::UInt::from(3_600_000_u32));
        let left = app.store.write("test", |tx| async move { job_store::lease(&tx, later, later, 9).await });
        let left = left.await.unwrap();
        assert_eq!(
            left.iter().map(|job| (&*job.kind, &*job.payload)).collect::<Vec<_>>(),
            [(upload::JOB, "AAone")]
        );
        upload::discard(&app, &left[0].payload).await.unwrap();
        assert!(!media.join("AA/AAone").exists());
    }
}
