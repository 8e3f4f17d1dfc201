//! Uploads: bytes come in part by part, and become a medium all at once or not at all.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use keystead_store::{
    jobs::{self as job_store, NewJob},
    media::{self as store, Content, care},
};
use ruma::{MilliSecondsSinceUnixEpoch, UInt, UserId};
use tokio::time::Instant;

use super::{Media, headers, objects, quota};
use crate::{
    app::App,
    context::{Ctx, Session},
    http::{body::IncomingBody, error::ApiError},
    jobs::{self, JobError},
    rate_limits::Limit,
};

/// The kind of job that discards the objects of an upload that came to nothing; its payload is their name, and,
/// behind a blank, the multipart upload that a bucket keeps.
pub(crate) const JOB: &str = "discard_media";
/// So long after its last sign of life an upload counts as broken off, whatever became of its replica.
const LEASE: Duration = Duration::from_secs(600);
/// How often an upload gives a sign of life.
const SIGN_OF_LIFE: Duration = Duration::from_secs(60);

/// Where an upload goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    /// To a new address.
    New(&'a str),
    /// To an address that was reserved.
    Reserved(&'a str),
}

/// What an uploader says about the bytes.
#[derive(Clone, Debug)]
pub(crate) struct Description {
    /// Their media type.
    pub(crate) content_type: Option<String>,
    /// The name of the file.
    pub(crate) file_name: Option<String>,
}

/// Receives a file and makes a medium of it.
///
/// # Errors
///
/// 413 `M_TOO_LARGE`, 403 as [`quota::exceeded`] says, 429 `M_LIMIT_EXCEEDED`, 409 `M_CANNOT_OVERWRITE_MEDIA` when the address has got its content meanwhile, and
/// what is wrong with the body. Nothing is left behind then.
pub(crate) async fn receive(
    ctx: &Ctx<Session>,
    target: Target<'_>,
    description: Description,
    body: IncomingBody,
) -> Result<(), ApiError> {
    let media = &ctx.app.media;
    if body.announced().is_some_and(|length| length > media.max_upload_bytes) {
        return Err(too_large(media));
    }
    ctx.app.rate_limits.take(Limit::Uploads, ctx.requester.user_id.as_str(), ctx.now)?;
    let left = quota::left(&ctx.app, &ctx.requester.user_id).await?.unwrap_or(u64::MAX);
    if body.announced().unwrap_or_default() > left {
        return Err(quota::exceeded(&ctx.app));
    }
    let _permit =
        media.uploads.try_acquire().map_err(|_| ApiError::limit_exceeded(Duration::from_secs(1)))?;

    let mut upload = Upload::begin(ctx).await?;
    let received = upload.receive(body, left).await;
    ctx.app.metrics.media_upload(received.is_ok());
    let size = match received {
        Ok(size) => size,
        Err(error) => {
            upload.give_up().await;
            return Err(error);
        }
    };
    let content = Content {
        object: upload.name().to_owned(),
        content_type: headers::clean_content_type(description.content_type.as_deref()),
        file_name: description.file_name.as_deref().and_then(headers::clean_file_name),
        size,
    };
    upload.finish(target, &ctx.requester.user_id, &content).await
}

/// An upload under way, and the job that discards its objects unless it is taken back.
struct Upload {
    app: Arc<App>,
    job: NewJob,
    last_sign: Instant,
}

impl Upload {
    async fn begin(ctx: &Ctx<Session>) -> Result<Self, ApiError> {
        let app = Arc::clone(&ctx.app);
        let job = new_job(&app, ctx.now);
        let new = &job;
        app.store.write("begin_upload", |tx| async move { job_store::insert(&tx, new).await }).await?;
        Ok(Self { app, job, last_sign: Instant::now() })
    }

    /// The name of the medium's objects.
    fn name(&self) -> &str {
        leftover(&self.job.payload).0
    }

    /// Receives all bytes, which may be `left` many, into the object and returns how many there were.
    async fn receive(&mut self, mut body: IncomingBody, left: u64) -> Result<u64, ApiError> {
        let app = Arc::clone(&self.app);
        let mut object = app.media.objects.create(self.name()).await?;
        let mut size = 0_u64;
        while let Some(part) = body.next().await? {
            size = size.saturating_add(part.len().try_into().unwrap_or(u64::MAX));
            if size > app.media.max_upload_bytes {
                return Err(too_large(&app.media));
            }
            if size > left {
                return Err(quota::exceeded(&app));
            }
            object.write(&part).await?;
            if let Some(multipart) = object.multipart() {
                self.note(multipart).await?;
            }
            app.metrics.media_received(part.len());
            if self.last_sign.elapsed() >= SIGN_OF_LIFE {
                self.give_sign_of_life().await?;
            }
        }
        object.finish().await?;
        Ok(size)
    }

    /// Adds to the job what has to be known to discard what was written, unless it is there already.
    async fn note(&mut self, multipart: &str) -> Result<(), ApiError> {
        if leftover(&self.job.payload).1.is_some() {
            return Ok(());
        }
        let payload = format!("{} {multipart}", self.name());
        let (job_id, new) = (&*self.job.job_id, &*payload);
        let noted = self
            .app
            .store
            .write("note_multipart", |tx| async move { job_store::amend(&tx, job_id, new).await })
            .await?;
        self.job.payload = payload;
        if noted { Ok(()) } else { Err(lease_lost()) }
    }

    async fn give_sign_of_life(&mut self) -> Result<(), ApiError> {
        let (job_id, until) = (&*self.job.job_id, end_of_lease(self.app.clock.now()));
        let put_off = self
            .app
            .store
            .write("upload_lives", |tx| async move { job_store::put_off(&tx, job_id, until).await })
            .await?;
        self.last_sign = Instant::now();
        if put_off { Ok(()) } else { Err(lease_lost()) }
    }

    /// Makes a medium of the object: takes the job back and writes the row, or neither.
    async fn finish(self, target: Target<'_>, user_id: &UserId, content: &Content) -> Result<(), ApiError> {
        let (app, job_id, now) = (&*self.app, &*self.job.job_id, self.app.clock.now());
        let written: Result<(), ApiError> = app
            .store
            .write("finish_upload", |tx| async move {
                if !job_store::withdraw(&tx, job_id).await? {
                    return Err(lease_lost());
                }
                if !care::lock_owner(&tx, user_id).await? {
                    return Err(ApiError::unknown_token(false));
                }
                quota::check(app, &tx, user_id, content.size).await?;
                match target {
                    Target::New(media_id) => store::insert(&tx, media_id, user_id, now, content).await?,
                    Target::Reserved(media_id) => {
                        if !store::fill(&tx, media_id, content).await? {
                            return Err(cannot_overwrite());
                        }
                    }
                }
                Ok(())
            })
            .await;
        // Where the database did not tell whether it committed, only the job knows whether the object is of use.
        if written.as_ref().is_err_and(|error| error.status().is_client_error()) {
            self.give_up().await;
        }
        written
    }

    /// Discards what has arrived. If that fails, the job will.
    async fn give_up(self) {
        let (app, job_id) = (&self.app, &*self.job.job_id);
        let withdraw =
            || app.store.write("give_up_upload", |tx| async move { job_store::withdraw(&tx, job_id).await });
        let given_up = match discard(app, &self.job.payload).await {
            Ok(()) => withdraw().await.map(drop).map_err(JobError::from),
            Err(error) => Err(error),
        };
        if let Err(error) = given_up {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "an upload is left to be discarded later"
            );
        }
    }
}

/// The job that will discard the objects of an upload that begins now, under a new name.
fn new_job(app: &App, now: MilliSecondsSinceUnixEpoch) -> NewJob {
    let mut job = jobs::new(app.entropy.as_ref(), JOB, &app.entropy.token(), now);
    // It is not overdue while the upload lives.
    (job.created_ts, job.run_at) = (end_of_lease(now), end_of_lease(now));
    job
}

/// Writes a small file of the server's own. The transaction that makes a medium of it has to withdraw the job that is returned, which discards
/// the file otherwise.
///
/// # Errors
///
/// When the database or the objects cannot be written to.
pub(crate) async fn put_own(
    app: &App,
    bytes: Bytes,
    content_type: &str,
) -> Result<(NewJob, Content), ApiError> {
    let job = new_job(app, app.clock.now());
    let new = &job;
    app.store.write("begin_upload", |tx| async move { job_store::insert(&tx, new).await }).await?;
    let size = bytes.len().try_into().unwrap_or(u64::MAX);
    app.media.objects.put(&job.payload, objects::CONTENT, bytes).await?;
    let object = job.payload.clone();
    Ok((job, Content { object, content_type: content_type.to_owned(), file_name: None, size }))
}

/// Discards the objects of an upload that came to nothing: the job [`JOB`] with this payload.
///
/// # Errors
///
/// When they cannot be removed; the job is tried again then.
pub(crate) async fn discard(app: &App, payload: &str) -> Result<(), JobError> {
    let (name, multipart) = leftover(payload);
    app.media.objects.discard(name, multipart).await.map_err(JobError::Media)
}

/// The name of the objects that a job is to discard, and of the multipart upload, if there is one.
fn leftover(payload: &str) -> (&str, Option<&str>) {
    payload.split_once(' ').map_or((payload, None), |(name, multipart)| (name, Some(multipart)))
}

/// 409 `M_CANNOT_OVERWRITE_MEDIA`.
pub(crate) fn cannot_overwrite() -> ApiError {
    let text = "This address has its content already";
    ApiError::new(http::StatusCode::CONFLICT, ruma::api::error::ErrorCode::CannotOverwriteMedia, text)
}

fn too_large(media: &Media) -> ApiError {
    ApiError::too_large(format!("A file must not be larger than {} bytes", media.max_upload_bytes))
}

/// The upload gave no sign of life for so long that its object counts as left behind.
fn lease_lost() -> ApiError {
    ApiError::unavailable("The upload was held up for so long that it was given up")
}

fn end_of_lease(now: MilliSecondsSinceUnixEpoch) -> MilliSecondsSinceUnixEpoch {
    let lease = UInt::try_from(LEASE.as_millis()).unwrap_or(UInt::MAX);
    MilliSecondsSinceUnixEpoch(now.0.saturating_add(lease))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::SettableClock,
        config::{Settings, reader::Environment},
        entropy::SystemEntropy,
    };

    fn is_empty(folder: &std::path::Path) -> bool {
        std::fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none())
    }

    #[tokio::test]
    async fn what_a_crashed_replica_leaves_of_an_upload_is_discarded_by_another_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let database = format!("sqlite:{}/keystead.db", folder.path().display());
        let media = folder.path().join("media");
        let environment = Environment::from([
            ("KEYSTEAD_DATABASE_URL", database.as_str()),
            ("KEYSTEAD_MEDIA_FOLDER", media.to_str().unwrap()),
            ("KEYSTEAD_AUTH_BCRYPT_COST", "4"),
        ]);
        let settings = Settings::from_environment(environment).unwrap();
        let clock = Arc::new(SettableClock::at(1_000_000));
        let app = App::start_with(settings, Arc::clone(&clock) as _, Arc::new(SystemEntropy)).await.unwrap();
        let ctx = Ctx {
            now: app.clock.now(),
            app: Arc::clone(&app),
            client_addr: [127, 0, 0, 1].into(),
            user_agent: None,
            requester: Session {
                user_id: ruma::owned_user_id!("@a:x"),
                device_id: "D".into(),
                is_admin: false,
                token_hash: String::new(),
            },
        };
        let upload = Upload::begin(&ctx).await.unwrap();
        let mut object = app.media.objects.create(upload.name()).await.unwrap();
        object.write(b"half of it").await.unwrap();
        // A crash drops nothing.
        std::mem::forget((upload, object));
        assert!(!is_empty(&media));

        clock.advance(LEASE - Duration::from_secs(1));
        let lease = |app: Arc<App>| async move {
            let now = app.clock.now();
            let taken = app.store.write("test", |tx| async move { job_store::lease(&tx, now, now, 9).await });
            taken.await.unwrap()
        };
        assert!(lease(Arc::clone(&app)).await.is_empty(), "it may still live");
        clock.advance(Duration::from_secs(2));
        let taken = lease(Arc::clone(&app)).await;
        assert_eq!(taken.iter().map(|job| &*job.kind).collect::<Vec<_>>(), [JOB]);
        discard(&app, &taken[0].payload).await.unwrap();
        let left = std::fs::read_dir(&media)
            .unwrap()
            .flat_map(|entry| std::fs::read_dir(entry.unwrap().path()).unwrap());
        assert_eq!(left.count(), 0);
    }
}
