//! The passphrase of the private keys: who keeps it, and another one.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use zeroize::Zeroizing;

use super::Arguments;
use super::account::{chosen, unlock};
use super::failure::Failure;
use super::output::Output;
use super::secrets::chosen_secret;
use crate::api::Api;
use crate::client::{ClientError, Passphrase};
use crate::store::{PassphraseMode, Store};

const PROMPT: &str = "New passphrase for the private keys on this machine";

/// Who keeps the passphrase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Mode {
    /// The homeserver: every command asks for the account's password instead
    Normal,
    /// You, and nobody else: the homeserver never sees it
    Advanced,
}

/// What to do with the passphrase.
#[derive(Debug, Subcommand)]
pub(super) enum PassphraseAction {
    /// Say who keeps it
    Show,
    /// Change it: for one that you choose, or in normal mode for a new one that nobody has to know
    Change(NewPassphrase),
    /// Go over to normal or to advanced mode
    Mode {
        /// Who is to keep it
        mode: Mode,
        #[command(flatten)]
        new: NewPassphrase,
    },
}

/// The passphrase that the owner chooses.
#[derive(Debug, Args)]
pub(super) struct NewPassphrase {
    /// The new passphrase, in advanced mode; asked for if not given
    #[arg(long, env = "KEYBOX_NEW_PASSPHRASE", hide_env_values = true, value_name = "TEXT")]
    new_passphrase: Option<String>,
}

impl Mode {
    pub(super) fn of(mode: PassphraseMode) -> Self {
        match mode {
            PassphraseMode::Advanced => Self::Advanced,
            PassphraseMode::Normal => Self::Normal,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Advanced => "advanced",
        }
    }

    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Normal => {
                "Normal mode: the homeserver keeps the passphrase, and gives it for the account's password."
            }
            Self::Advanced => {
                "Advanced mode: you keep the passphrase, and nobody else. Without it the private keys are lost."
            }
        }
    }
}

/// The passphrase for the keys of a new KeyBox: one that the owner gives or chooses, or `None` for one that the homeserver keeps. Without a
/// word about it, normal mode, where the homeserver offers it.
pub(super) async fn wanted(
    arguments: &Arguments,
    api: &Api,
    mode: Option<Mode>,
) -> Result<Option<Zeroizing<String>>, Failure> {
    let given = arguments.passphrase.as_deref();
    let kept = match (mode, given) {
        (Some(Mode::Normal), Some(_)) => return Err(Failure::PassphraseNotWanted),
        (Some(Mode::Normal), None) => true,
        (Some(Mode::Advanced), _) | (None, Some(_)) => false,
        (None, None) => api.keeps_passphrases().await?,
    };
    if kept { Ok(None) } else { chosen_secret(given, PROMPT).map(Some) }
}

/// `keybox passphrase`.
pub(super) async fn run(
    arguments: &Arguments,
    output: &Output,
    action: Option<&PassphraseAction>,
) -> Result<(), Failure> {
    let (home, account) = chosen(arguments)?;
    let mode = Mode::of(Store::passphrase_mode(&home, &account).map_err(ClientError::from)?);
    let (to, new) = match action {
        None | Some(PassphraseAction::Show) => {
            output.result(mode.words(), &json!({ "mode": mode.name() }));
            return Ok(());
        }
        Some(PassphraseAction::Change(new)) => (mode, new),
        Some(PassphraseAction::Mode { mode: to, .. }) if *to == mode => {
            output.result(mode.words(), &json!({ "mode": mode.name(), "changed": false }));
            return Ok(());
        }
        Some(PassphraseAction::Mode { mode: to, new }) => (*to, new),
    };
    let (mut client, current) = unlock(arguments).await?;
    let settled = match to {
        Mode::Normal if new.new_passphrase.is_some() => return Err(Failure::PassphraseNotWanted),
        Mode::Normal => client.change_passphrase(&current, Passphrase::Kept).await?,
        Mode::Advanced => {
            let chosen = chosen_secret(new.new_passphrase.as_deref(), PROMPT)?;
            client.change_passphrase(&current, Passphrase::Own(&chosen)).await?
        }
    };
    let text = format!("The private keys are sealed with a new passphrase. {}", to.words());
    output.result(&text, &json!({ "mode": to.name(), "changed": true, "settled": settled }));
    if !settled {
        output.progress(
            "The homeserver could not be told to forget the passphrase of before; the next command that reaches it will do so.",
        );
    }
    Ok(())
}
