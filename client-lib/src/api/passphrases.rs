//! Passphrases that the homeserver keeps (`profiles/keybox/SPEC.md`, section 22).
//!
//! What holds one here is wiped: the request's body, the answer's, and what they are read from or into. Not in this crate's hands are the
//! buffers of the HTTP and TLS libraries.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use zeroize::Zeroizing;

use super::account::PasswordLogin;
use super::http::{Call, secret_json, segment, wipe};
use super::{Api, ApiError};

const KEYBOXES: &str = "/_matrix/client/unstable/com.trustner.keybox/v1/keyboxes";
const FEATURE: &str = "com.trustner.keybox.passphrases";

impl Api {
    /// Whether the homeserver keeps passphrases.
    ///
    /// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientversions>
    pub async fn keeps_passphrases(&self) -> Result<bool, ApiError> {
        let answer: Value = self.call(Call::get("/_matrix/client/versions")).await?;
        let feature = answer.get("unstable_features").and_then(|features| features.get(FEATURE));
        Ok(feature.and_then(Value::as_bool).unwrap_or_default())
    }

    /// Gives the homeserver the passphrase of this very KeyBox to keep; with `keep_previous`, besides the one before. Sent once: whoever does not
    /// hear the answer must not take it for done.
    pub async fn store_passphrase(
        &self,
        keybox_id: &str,
        passphrase: &str,
        keep_previous: bool,
    ) -> Result<(), ApiError> {
        #[derive(Serialize)]
        struct Body<'a> {
            passphrase: &'a str,
            keep_previous: bool,
        }
        let body = secret_json(&Body { passphrase, keep_previous })?;
        self.call::<Value>(Call::put_secret(path(keybox_id), body).once()).await.map(drop)
    }

    /// Has the homeserver destroy the passphrase of this very KeyBox. That it keeps none is no error.
    pub async fn destroy_passphrase(&self, keybox_id: &str) -> Result<(), ApiError> {
        self.call::<Value>(Call::delete(path(keybox_id))).await.map(drop)
    }

    /// The passphrases that the homeserver keeps for a KeyBox, the newest first, for the account's password. Begins no session; the account's log
    /// notes it.
    ///
    /// # Errors
    /// 403 `M_FORBIDDEN` for a wrong password; 404 `M_NOT_FOUND` if none is kept; 429 after failures or too many logins.
    pub async fn retrieve_passphrases(
        &self,
        user: &str,
        password: &str,
        keybox_id: &str,
    ) -> Result<Vec<Zeroizing<String>>, ApiError> {
        #[derive(Serialize)]
        struct Body<'a> {
            #[serde(flatten)]
            login: PasswordLogin<'a>,
            device_id: &'a str,
            #[serde(rename = "com.trustner.keybox.passphrase")]
            wants_passphrase: bool,
            #[serde(rename = "com.trustner.keybox.inhibit_login")]
            inhibit_login: bool,
        }
        #[derive(Deserialize)]
        struct Answer {
            #[serde(rename = "com.trustner.keybox.passphrases")]
            passphrases: Vec<String>,
        }
        let body = secret_json(&Body {
            login: PasswordLogin::new(user, password),
            device_id: keybox_id,
            wants_passphrase: true,
            inhibit_login: true,
        })?;
        let answer = self.answer(Call::post_secret("/_matrix/client/v3/login", body).once()).await?;
        let read = serde_json::from_slice::<Answer>(&answer);
        wipe(answer);
        let read = read.map_err(|error| ApiError::Malformed(error.into()))?;
        Ok(read.passphrases.into_iter().map(Zeroizing::new).collect())
    }
}

fn path(keybox_id: &str) -> String {
    format!("{KEYBOXES}/{}/passphrase", segment(keybox_id))
}
