//! Accounts.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use openssl::{hash::MessageDigest, pkey::PKey, sign::Signer};
use serde_json::{Value, json};

use crate::{
    Error,
    api::{Api, Call, Failure, encode, unique},
};

/// How many accounts are made at once.
const AT_ONCE: usize = 8;
/// All accounts have it.
pub const PASSWORD: &str = "Load-generat0r!";

/// A device of an account. Its requests go to one replica, as through a load balancer that keeps clients where they are.
#[derive(Clone, Debug)]
pub struct User {
    /// `@name:server`.
    pub id: String,
    /// The device.
    pub device: String,
    /// The access token.
    pub token: String,
    /// The number of the replica.
    pub replica: usize,
    api: ApiHandle,
}

#[derive(Clone)]
struct ApiHandle(Api);

impl std::fmt::Debug for ApiHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.urls()).finish()
    }
}

impl User {
    /// Sends a request and gives the body of a 200.
    ///
    /// # Errors
    /// There was no answer, or another one.
    pub async fn ok(&self, call: &Call) -> Result<Value, Failure> {
        self.api.0.ok(self.replica, Some(&self.token), call).await
    }

    /// The same for what a run rests on.
    ///
    /// # Errors
    /// [`Error::Server`].
    pub async fn need(&self, what: &str, call: &Call) -> Result<Value, Error> {
        self.ok(call).await.map_err(|failure| Error::server(format!("{what} as {}", self.id), failure))
    }

    /// The same device, talking to another replica.
    pub fn at(&self, replica: usize) -> Self {
        Self { replica, ..self.clone() }
    }

    /// The servers.
    pub fn api(&self) -> &Api {
        &self.api.0
    }
}

/// Registers `count` accounts, spread over the replicas.
///
/// With `secret` (a registration shared secret) they are made at `/_synapse/admin/v1/register`, else by open registration.
///
/// # Errors
/// The server refuses one.
pub async fn register(api: &Api, secret: Option<&str>, count: usize) -> Result<Vec<User>, Error> {
    let run = unique();
    let run = &run;
    stream::iter(0..count)
        .map(|number| async move {
            let name = format!("load-{run}-{number}");
            let answer = match secret {
                Some(secret) => with_secret(api, number, secret, &name).await?,
                None => openly(api, number, &name).await?,
            };
            let text = |field: &str| answer[field].as_str().unwrap_or_default().to_owned();
            let (id, device, token) = (text("user_id"), text("device_id"), text("access_token"));
            Ok(User { id, device, token, replica: number, api: ApiHandle(api.clone()) })
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await
}

async fn openly(api: &Api, replica: usize, name: &str) -> Result<Value, Error> {
    let body = json!({ "username": name, "password": PASSWORD, "auth": { "type": "m.login.dummy" } });
    let registered = api.ok(replica, None, &Call::post("/register", body)).await;
    registered.map_err(|failure| Error::server("open registration (or give --shared-secret)", failure))
}

async fn with_secret(api: &Api, replica: usize, secret: &str, name: &str) -> Result<Value, Error> {
    let path = "/_synapse/admin/v1/register";
    let failed = |failure| Error::server("registration with the shared secret", failure);
    let answer = api.ok(replica, None, &Call::get(path)).await.map_err(failed)?;
    let nonce = answer["nonce"].as_str().unwrap_or_default();
    let mac = mac(secret, &[nonce, name, PASSWORD, "notadmin"])
        .map_err(|error| Error::server("HMAC of the registration", error))?;
    let body = json!({ "nonce": nonce, "username": name, "password": PASSWORD, "admin": false, "mac": mac });
    api.ok(replica, None, &Call::post(path, body)).await.map_err(failed)
}

/// HMAC-SHA-1 over the parts with zero bytes between, in hex.
fn mac(secret: &str, parts: &[&str]) -> Result<String, openssl::error::ErrorStack> {
    let key = PKey::hmac(secret.as_bytes())?;
    let mut signer = Signer::new(MessageDigest::sha1(), &key)?;
    signer.update(parts.join("\0").as_bytes())?;
    Ok(signer.sign_to_vec()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Logs in to an account with a new device.
///
/// # Errors
/// There was no answer, or a refusal.
pub async fn log_in(user: &User) -> Result<(), Failure> {
    let body = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": user.id },
        "password": PASSWORD,
    });
    user.api().ok(user.replica, None, &Call::post("/login", body)).await.map(drop)
}

/// A path below a room.
pub fn in_room(room: &str, rest: &str) -> String {
    format!("/rooms/{}{rest}", encode(room))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mac_is_what_openssl_gives() {
        // printf 'nonce\0name\0pass\0notadmin' | openssl dgst -sha1 -hmac secret
        let mac = mac("secret", &["nonce", "name", "pass", "notadmin"]).unwrap();
        assert_eq!(mac, "28547ffe073366dd7a8bcaa944dfb81f7c360936");
    }
}
