//! User-interactive authentication: before something important, the user proves once more who they are.
//!
//! Its state lies in the database, so each stage may go to another replica.
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#user-interactive-authentication-api>.

use std::{net::IpAddr, time::Duration};

use keystead_store::interactive_auth::{self, InteractiveAuth};
use ruma::{
    MilliSecondsSinceUnixEpoch, UInt, UserId,
    api::{
        client::uiaa::{AuthData, AuthFlow, AuthType, UiaaInfo},
        error::{ErrorKind, StandardErrorBody},
    },
};

use crate::{
    accounts::{login, registration},
    app::App,
    context::{Ctx, Session},
    http::error::ApiError,
};

/// How long a user may take for all stages.
const LIFETIME: Duration = Duration::from_secs(15 * 60);

/// What has to be authenticated.
#[derive(Clone, Copy, Debug)]
pub struct Challenge<'a> {
    /// The operation; a session is good for one. Two operations on different things have different names.
    pub operation: &'a str,
    /// Who has to authenticate; nobody yet while registering.
    pub user_id: Option<&'a UserId>,
    /// The ways to do so; each stage of one of them has to be done.
    pub flows: &'a [&'a [AuthType]],
    /// When the request came.
    pub now: MilliSecondsSinceUnixEpoch,
    /// Where it came from.
    pub address: IpAddr,
}

/// What a finished authentication told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authenticated {
    /// The session that led to it.
    pub session_id: String,
    /// The registration token, if one was given.
    pub registration_token: Option<String>,
}

/// Makes sure that the user has just given the password of the account.
///
/// `operation` names what it is for; a user who began to authenticate for one thing cannot finish with another.
///
/// # Errors
///
/// 401 with what remains to be done; 429 after too many wrong passwords.
pub async fn require_password(
    ctx: &Ctx<Session>,
    operation: &str,
    auth: Option<&AuthData>,
) -> Result<(), ApiError> {
    let challenge = Challenge {
        operation,
        user_id: Some(&ctx.requester.user_id),
        flows: &[&[AuthType::Password]],
        now: ctx.now,
        address: ctx.client_addr,
    };
    require(&ctx.app, challenge, auth).await.map(drop)
}

/// Makes sure that one of the flows has been gone through.
///
/// # Errors
///
/// 401 with what remains to be done; 400 `M_UNKNOWN` for a session that does not exist or is for something else.
pub async fn require(
    app: &App,
    challenge: Challenge<'_>,
    auth: Option<&AuthData>,
) -> Result<Authenticated, ApiError> {
    let Some(auth) = auth else {
        let session = challenge.begin(app);
        save(app, &session).await?;
        return Err(challenge.remaining(&session, None));
    };
    let mut session = match auth.session() {
        Some(id) => find(app, challenge, id).await?,
        // Clients that know what will be asked for begin with the answer.
        None => challenge.begin(app),
    };
    if challenge.is_met_by(&session) {
        return challenge.require_again(app, auth, &session).await;
    }
    // An acknowledgement that a stage was done in the browser does nothing by itself.
    if let Some(stage) = auth.auth_type() {
        if let Err(error) = challenge.check_stage(app, auth, &mut session).await? {
            save(app, &session).await?;
            return Err(challenge.remaining(&session, Some(error)));
        }
        if !session.completed.iter().any(|done| *done == stage.as_str()) {
            session.completed.push(stage.to_string());
        }
    }
    if challenge.is_met_by(&session) {
        finish(app, auth.session().map(|_| &session), challenge.now).await?;
        return Ok(session.into());
    }
    save(app, &session).await?;
    Err(challenge.remaining(&session, None))
}

/// The session that these answers belong to, if that has made an account already.
///
/// # Errors
///
/// The database's own.
pub async fn finished_registration(
    app: &App,
    challenge: Challenge<'_>,
    auth: Option<&AuthData>,
) -> Result<Option<InteractiveAuth>, ApiError> {
    let Some(id) = auth.and_then(AuthData::session) else { return Ok(None) };
    let (operation, now) = (challenge.operation, challenge.now);
    let found =
        app.store
            .read_one("interactive_auth", |tx| async move {
                interactive_auth::find(&tx, id, operation, now).await
            })
            .await?;
    Ok(found.filter(|session| session.user_id.is_some()))
}

impl From<InteractiveAuth> for Authenticated {
    fn from(session: InteractiveAuth) -> Self {
        Self { session_id: session.session_id, registration_token: session.registration_token }
    }
}

impl Challenge<'_> {
    fn begin(&self, app: &App) -> InteractiveAuth {
        let lifetime = u64::try_from(LIFETIME.as_millis()).unwrap_or(u64::MAX);
        let expiry = u64::from(self.now.get()).saturating_add(lifetime);
        InteractiveAuth {
            session_id: app.entropy.token(),
            user_id: self.user_id.map(ToOwned::to_owned),
            operation: self.operation.to_owned(),
            completed: Vec::new(),
            registration_token: None,
            expires_ts: MilliSecondsSinceUnixEpoch(UInt::new_saturating(expiry)),
        }
    }

    /// Checks one stage. The inner error is the user's: another try is possible.
    async fn check_stage(
        &self,
        app: &App,
        auth: &AuthData,
        session: &mut InteractiveAuth,
    ) -> Result<Result<(), StandardErrorBody>, ApiError> {
        let refused = |kind, text: &str| Ok(Err(StandardErrorBody::new(kind, text.to_owned())));
        let stage = auth.auth_type();
        if !self.flows.iter().any(|flow| flow.iter().any(|known| Some(known) == stage.as_ref())) {
            return refused(ErrorKind::Unrecognized, "This stage is not part of any flow");
        }
        match auth {
            AuthData::Dummy(_) => Ok(Ok(())),
            AuthData::Password(given) => {
                let named = login::identified_user(app, &given.identifier);
                let user_id = match (named, self.user_id) {
                    (Ok(named), Some(user_id)) if named == user_id => named,
                    // Not 401, which invites to try again: no password of somebody else will do.
                    _ => return Err(ApiError::forbidden("This is not the account that is logged in")),
                };
                match login::check_password(app, &user_id, &given.password, self.now, self.address).await {
                    Ok(_) => Ok(Ok(())),
                    Err(error) if error.status() == http::StatusCode::FORBIDDEN => {
                        refused(ErrorKind::Forbidden, "Invalid password")
                    }
                    Err(error) => Err(error),
                }
            }
            AuthData::RegistrationToken(given) => {
                let (token, now) = (&given.token, self.now);
                let is_valid = app
                    .store
                    .read("registration_token", |tx| async move {
                        registration::is_token_valid(&tx, token, now).await
                    })
                    .await?;
                if !is_valid {
                    return refused(ErrorKind::Unauthorized, "Invalid registration token");
                }
                session.registration_token = Some(given.token.clone());
                Ok(Ok(()))
            }
            _ => refused(ErrorKind::Unrecognized, "This stage is not supported"),
        }
    }

    /// A session in which all stages are done has had its call, whose answer may have been lost. The call is made again for those who
    /// prove again in this very request who they are.
    ///
    /// > Completed stages cannot be retried by clients, therefore servers must return either a 401 response with the completed stages,
    /// > or the result of the API call if all stages were completed when a client retries a stage.
    async fn require_again(
        &self,
        app: &App,
        auth: &AuthData,
        session: &InteractiveAuth,
    ) -> Result<Authenticated, ApiError> {
        let Some(stage) = auth.auth_type() else { return Err(self.remaining(session, None)) };
        let completed = vec![stage.to_string()];
        let mut again = InteractiveAuth { completed, registration_token: None, ..session.clone() };
        let error = match self.check_stage(app, auth, &mut again).await? {
            Ok(()) if self.is_met_by(&again) => return Ok(again.into()),
            checked => checked.err(),
        };
        Err(self.remaining(session, error))
    }

    fn is_met_by(&self, session: &InteractiveAuth) -> bool {
        let is_done = |stage: &AuthType| session.completed.iter().any(|done| *done == stage.as_str());
        self.flows.iter().any(|flow| flow.iter().all(is_done))
    }

    /// 401 with what is done and what remains.
    pub fn remaining(&self, session: &InteractiveAuth, error: Option<StandardErrorBody>) -> ApiError {
        let flows = self.flows.iter().map(|stages| AuthFlow::new(stages.to_vec())).collect();
        let mut info = UiaaInfo::new(flows);
        info.completed = session.completed.iter().map(|stage| AuthType::from(stage.as_str())).collect();
        info.params = serde_json::value::to_raw_value(&serde_json::Map::new()).ok();
        info.session = Some(session.session_id.clone());
        info.auth_error = error.map(Box::new);
        ApiError::uiaa(&info)
    }
}

async fn find(app: &App, challenge: Challenge<'_>, id: &str) -> Result<InteractiveAuth, ApiError> {
    let Challenge { operation, user_id, now, .. } = challenge;
    let found = app
        .store
        .read("interactive_auth", |tx| async move { interactive_auth::find(&tx, id, operation, now).await })
        .await?;
    found
        .filter(|session| session.user_id.as_deref() == user_id)
        .ok_or_else(|| ApiError::unknown_request("Unknown session of interactive authentication"))
}

async fn save(app: &App, session: &InteractiveAuth) -> Result<(), ApiError> {
    app.store
        .write("interactive_auth_save", |tx| async move { interactive_auth::put(&tx, session).await })
        .await?;
    Ok(())
}

/// Keeps a session whose stages are all done, if the client knows it, for the case that it asks again.
async fn finish(
    app: &App,
    session: Option<&InteractiveAuth>,
    now: MilliSecondsSinceUnixEpoch,
) -> Result<(), ApiError> {
    app.store
        .write("interactive_auth_finish", |tx| async move {
            if let Some(session) = session {
                interactive_auth::put(&tx, session).await?;
            }
            interactive_auth::delete_over(&tx, now).await
        })
        .await?;
    Ok(())
}
