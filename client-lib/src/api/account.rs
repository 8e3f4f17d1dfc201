//! Accounts: registering, logging in and out, key sets.

use keystead_keybox::identity::IdentityObjects;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::http::{Call, secret_json};
use super::{Api, ApiError};
use crate::engine::KeyQuery;

/// What a new account is to be.
#[derive(Clone)]
pub struct Registration<'a> {
    /// The local part of the user id.
    pub username: &'a str,
    /// The password.
    pub password: &'a str,
    /// A registration token, if the server asks for one.
    pub token: Option<&'a str>,
    /// What the KeyBox is called in the account's list of devices.
    pub display_name: &'a str,
}

/// A user and the password, as logins and the interactive authentication take them. Borrowed, so that nothing is left to be wiped.
///
/// <https://spec.matrix.org/v1.19/client-server-api/#password-based>
#[derive(Serialize)]
pub(super) struct PasswordLogin<'a> {
    r#type: &'static str,
    identifier: Value,
    password: &'a str,
}

impl<'a> PasswordLogin<'a> {
    pub(super) fn new(user: &str, password: &'a str) -> Self {
        let identifier = json!({ "type": "m.id.user", "user": user });
        Self { r#type: "m.login.password", identifier, password }
    }
}

/// A new session of an account.
#[derive(Deserialize)]
pub struct LoggedIn {
    /// The user id.
    pub user_id: String,
    /// The device id that the server made: the KeyBox id.
    pub device_id: String,
    /// The access token.
    pub access_token: String,
}

impl Api {
    /// Makes an account and a first session, through the stages `m.login.dummy` and `m.login.registration_token` of the
    /// interactive authentication.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3register>
    pub async fn register(&self, registration: &Registration<'_>) -> Result<LoggedIn, ApiError> {
        #[derive(Serialize)]
        struct Request<'a> {
            username: &'a str,
            password: &'a str,
            initial_device_display_name: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            auth: Option<Value>,
        }
        let mut request = Request {
            username: registration.username,
            password: registration.password,
            initial_device_display_name: registration.display_name,
            auth: None,
        };
        let mut tried: Vec<String> = Vec::new();
        loop {
            let body = secret_json(&request)?;
            let refusal = match self.call(Call::post_secret("/_matrix/client/v3/register", body).once()).await
            {
                Err(ApiError::Server(refusal)) if refusal.status == 401 => refusal,
                answer => return answer,
            };
            let Some(stage) = next_stage(&refusal.body, registration.token.is_some(), &tried) else {
                return Err(refusal.into());
            };
            let session = refusal.body.get("session");
            let auth = if stage == "m.login.registration_token" {
                json!({ "type": stage, "session": session, "token": registration.token })
            } else {
                json!({ "type": stage, "session": session })
            };
            request.auth = Some(auth);
            tried.push(stage);
        }
    }

    /// Logs in with a password: a new device, and so a new KeyBox.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3login>
    pub async fn login(&self, user: &str, password: &str, display_name: &str) -> Result<LoggedIn, ApiError> {
        #[derive(Serialize)]
        struct Request<'a> {
            #[serde(flatten)]
            login: PasswordLogin<'a>,
            initial_device_display_name: &'a str,
        }
        let login = PasswordLogin::new(user, password);
        let request = secret_json(&Request { login, initial_device_display_name: display_name })?;
        self.call(Call::post_secret("/_matrix/client/v3/login", request).once()).await
    }

    /// Ends the session; the server forgets the device and its keys.
    pub async fn logout(&self) -> Result<(), ApiError> {
        self.call::<Value>(Call::post("/_matrix/client/v3/logout", json!({}))).await.map(drop)
    }

    /// Publishes the key set of this device.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysupload>
    pub async fn upload_keys(&self, device_keys: &Map<String, Value>) -> Result<(), ApiError> {
        let call = Call::post("/_matrix/client/v3/keys/upload", json!({ "device_keys": device_keys }));
        self.call::<Value>(call.repeatable()).await.map(drop)
    }

    /// Publishes the cross-signing keys of the account. Only the first ones need no more than the session.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysdevice_signingupload>
    pub async fn upload_identity(&self, objects: &IdentityObjects) -> Result<(), ApiError> {
        let request = json!({
            "master_key": objects.master,
            "self_signing_key": objects.self_signing,
            "user_signing_key": objects.user_signing,
        });
        let call = Call::post("/_matrix/client/v3/keys/device_signing/upload", request);
        self.call::<Value>(call.repeatable()).await.map(drop)
    }

    /// Publishes signatures on keys: signed objects by user, by key or device.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keyssignaturesupload>
    pub async fn upload_signatures(&self, signatures: &Map<String, Value>) -> Result<(), ApiError> {
        let call = Call::post("/_matrix/client/v3/keys/signatures/upload", json!(signatures));
        self.call::<Value>(call.repeatable()).await.map(drop)
    }

    /// The key sets and cross-signing keys of users.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysquery>
    pub async fn query_keys(&self, users: &[String]) -> Result<KeyQuery, ApiError> {
        let users: Map<String, Value> = users.iter().map(|user_id| (user_id.clone(), json!([]))).collect();
        let call = Call::post("/_matrix/client/v3/keys/query", json!({ "device_keys": users }));
        self.call(call.repeatable()).await
    }

    /// The devices of the account, as the server lists them.
    pub async fn devices(&self) -> Result<Vec<Value>, ApiError> {
        #[derive(Deserialize)]
        struct Answer {
            devices: Vec<Value>,
        }
        Ok(self.call::<Answer>(Call::get("/_matrix/client/v3/devices")).await?.devices)
    }
}

impl std::fmt::Debug for LoggedIn {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("LoggedIn")
            .field("user_id", &self.user_id)
            .field("device_id", &self.device_id)
            .finish_non_exhaustive()
    }
}

impl LoggedIn {
    /// The access token in memory that is wiped.
    pub fn take_token(&mut self) -> Zeroizing<String> {
        Zeroizing::new(std::mem::take(&mut self.access_token))
    }
}

/// The next stage of the first flow that we can complete; `None` if there is none, or if it was tried in vain.
///
/// <https://spec.matrix.org/v1.19/client-server-api/#user-interactive-authentication-api>
fn next_stage(body: &Value, have_token: bool, tried: &[String]) -> Option<String> {
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
    };
    let completed = body.get("completed").map(strings).unwrap_or_default();
    let can = |stage: &String| match stage.as_str() {
        "m.login.dummy" => true,
        "m.login.registration_token" => have_token,
        _ => false,
    };
    let flows = body.get("flows")?.as_array()?;
    let stages = flows
        .iter()
        .filter_map(|flow| flow.get("stages"))
        .map(strings)
        .find(|stages| stages.iter().all(can))?;
    stages.into_iter().find(|stage| !completed.contains(stage)).filter(|stage| !tried.contains(stage))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_flow_that_can_be_completed_is_taken_stage_by_stage() {
        let body = json!({ "session": "s", "flows": [
            { "stages": ["m.login.recaptcha", "m.login.dummy"] },
            { "stages": ["m.login.registration_token", "m.login.dummy"] },
        ] });
        assert_eq!(next_stage(&body, false, &[]), None);
        assert_eq!(next_stage(&body, true, &[]).as_deref(), Some("m.login.registration_token"));
        let tried = ["m.login.registration_token".to_owned()];
        assert_eq!(next_stage(&body, true, &tried), None, "a refused stage is not tried for ever");
        let mut further = body.clone();
        further["completed"] = json!(["m.login.registration_token"]);
        assert_eq!(next_stage(&further, true, &tried).as_deref(), Some("m.login.dummy"));
        assert_eq!(next_stage(&json!({ "errcode": "M_FORBIDDEN" }), true, &[]), None);
    }
}
