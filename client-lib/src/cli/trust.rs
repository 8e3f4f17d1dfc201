//! What there is to trust besides people: the server's certificate, and this program itself.

use clap::Subcommand;
use serde_json::json;

use keystead_keybox::encoding::hex;
use keystead_keybox::sha256;

use super::Arguments;
use super::account::{address, chosen};
use super::failure::Failure;
use super::output::Output;
use crate::api::{Api, with_pin};
use crate::client::ClientError;
use crate::store::Store;

/// What to do with the pin that is remembered.
#[derive(Debug, Subcommand)]
pub(super) enum PinAction {
    /// Show it, and what the homeserver shows now
    Show,
    /// Remember another one: nothing is sent to a server that shows another from then on
    Set {
        /// SHA-256 of the homeserver's certificate or, better, its public key [default: the public key that it shows now]
        sha256: Option<String>,
        /// Do not ask the server whether it fits: it is to show that certificate in the future only
        #[arg(long, requires = "sha256")]
        unchecked: bool,
    },
    /// Forget it; the usual checks of the certificate remain
    Clear,
}

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
    output.lines(&text, &value);
    Ok(answered?)
}

/// `keybox pin`.
pub(super) async fn pin(
    arguments: &Arguments,
    output: &Output,
    action: Option<&PinAction>,
) -> Result<(), Failure> {
    let (home, account) = chosen(arguments)?;
    let api = Api::new(&account.server)?;
    let (address, text) = match action {
        None | Some(PinAction::Show) => return show_pin(&api, output).await,
        Some(PinAction::Clear) => {
            let text = format!("Nothing is pinned for {} any more.", api.server());
            (api.server().to_owned(), text)
        }
        Some(PinAction::Set { sha256, unchecked }) => {
            let sha256 = match sha256 {
                Some(sha256) => sha256.clone(),
                // By way of the pin that holds until now, if there is one: who is in between cannot set another.
                None => shown_key(&api).await?,
            };
            let address = with_pin(api.server(), &sha256)?;
            let pinned = Api::new(&address)?;
            if !unchecked {
                pinned.reach().await?;
            }
            let text = format!(
                "Nothing is sent to {} any more unless it shows {}.",
                api.server(),
                pinned.pin().unwrap_or_default()
            );
            (address, text)
        }
    };
    let account = Store::set_server(&home, &account, address).map_err(ClientError::from)?;
    let api = Api::new(&account.server)?;
    output.result(&text, &json!({ "server": api.server(), "pin": api.pin() }));
    Ok(())
}

/// The SHA-256 of the public key that the server shows now.
async fn shown_key(api: &Api) -> Result<String, Failure> {
    api.reach().await?;
    let shown = api.server_fingerprint();
    Ok(shown.ok_or_else(|| Failure::NoCertificate(api.server().to_owned()))?.public_key)
}

/// Shows the pin although the server may not be there.
async fn show_pin(api: &Api, output: &Output) -> Result<(), Failure> {
    let answered = api.reach().await;
    let shown = api.server_fingerprint();
    let fits = match (api.pin(), &shown) {
        (Some(pin), Some(shown)) => Some(shown.fits(pin)),
        _ => None,
    };
    let verdict = match (api.pin(), fits) {
        (None, _) => "nothing is pinned".to_owned(),
        (Some(pin), None) => format!("pinned {pin}"),
        (Some(pin), Some(true)) => format!("pinned {pin}, which it shows"),
        (Some(pin), Some(false)) => format!("pinned {pin}, WHICH IT DOES NOT SHOW"),
    };
    let value = json!({
        "server": api.server(), "pin": api.pin(), "fits": fits,
        "certificate": shown.as_ref().map(|shown| &shown.certificate),
        "public_key": shown.as_ref().map(|shown| &shown.public_key),
    });
    output.result(&format!("{}: {verdict}", api.server()), &value);
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
