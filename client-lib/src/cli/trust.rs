//! What there is to trust besides people: the server's certificate, and this program itself.

use serde_json::json;

use keystead_keybox::encoding::hex;
use keystead_keybox::sha256;

use super::Arguments;
use super::account::address;
use super::failure::Failure;
use super::output::Output;
use crate::api::Api;

/// `keybox server-fingerprint`: also of a server that is not trusted, so that it can be compared.
pub(super) async fn server_fingerprint(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let api = Api::new(&address(arguments)?)?;
    let answered = api.reach().await;
    let Some(shown) = api.server_fingerprint() else {
        answered?;
        return Err(Failure::NoCertificate(api.server().to_owned()));
    };
    let text = format!(
        "The homeserver at {} shows (SHA-256)\n  certificate  {}\n  public key   {}",
        api.server(),
        shown.certificate,
        shown.public_key
    );
    let value = json!({
        "server": api.server(), "certificate": shown.certificate, "public_key": shown.public_key,
        "trusted": answered.is_ok(),
    });
    output.result(&text, &value);
    Ok(answered?)
}

/// `keybox self-check`: whether this program is one that the server publishes the fingerprint of.
pub(super) async fn self_check(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let api = Api::new(&address(arguments)?)?;
    let path = std::env::current_exe().map_err(Failure::Input)?;
    let program = std::fs::read(&path).map_err(|source| Failure::File { path: path.clone(), source })?;
    let digest = hex(&sha256(&program));
    let releases = api.releases().await?;
    let Some(release) = releases.iter().find(|release| release.sha256 == digest) else {
        return Err(Failure::NotReleased { digest, server: api.server().to_owned() });
    };
    let text =
        format!("This program is {} (SHA-256 {digest}), as {} publishes it.", release.name, api.server());
    output.result(&text, &json!({ "sha256": digest, "name": release.name, "server": api.server() }));
    Ok(())
}
