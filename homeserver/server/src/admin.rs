//! `keystead admin`: what is done to a server from its own machine, beside the running replicas.

mod media;
mod reports;
mod restore;

use std::{
    io::{self, BufRead as _},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use clap::{Args, Subcommand};
use keystead_core::keybox::master_key::CannotOpen;
use keystead_store::{Error, registration as tokens, registration::RegistrationToken, users};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedUserId, UInt};
use serde_json::json;

use crate::{
    accounts::{
        password_policy,
        registration::{self, NewAccount},
        sessions,
    },
    app::{App, StartError},
    config::Settings,
    http::error::ApiError,
    keyboxes::{
        Actor,
        passphrases::{self, CannotReseal, Rotated, RotationError},
    },
    media::place::PlaceError,
    signing_keys,
};

use self::{media::MediaCommand, reports::ReportsCommand, restore::AfterRestore};

/// Characters of a password that is made up here: 120 random bits.
const PASSWORD_LENGTH: usize = 24;
/// Characters of a registration token that is made up here.
const TOKEN_LENGTH: usize = 16;
/// Characters that a registration token may have.
/// <https://spec.matrix.org/v1.19/client-server-api/#token-authenticated-registration>
const MAX_TOKEN_LENGTH: usize = 64;

/// What an administrator may ask for.
#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// Make a database that was restored from a backup fit to serve again; to be run before the first replica starts
    AfterRestore(AfterRestore),
    /// Copy the database while it serves; SQLite only (for PostgreSQL there is pg_dump)
    Backup(restore::Backup),
    /// Make an account; without --password-stdin a password is made up and printed
    CreateUser(CreateUser),
    /// Look after the files that users uploaded
    #[command(subcommand)]
    Media(MediaCommand),
    /// Look at what users reported: events, rooms and users
    #[command(subcommand)]
    Reports(ReportsCommand),
    /// Give an account another password, and end its sessions
    ResetPassword(ResetPassword),
    /// Seal all passphrases that the server keeps under the first of the configured master keys
    RotateMasterKey,
    /// The key that the server signs events and logs with
    #[command(subcommand)]
    SigningKey(SigningKeyCommand),
    /// Tokens with which people may register while registration is closed
    #[command(subcommand)]
    RegistrationToken(TokenCommand),
}

#[derive(Debug, Args)]
pub(crate) struct CreateUser {
    /// The part of the user id before the colon
    name: String,
    /// Let the account use the administration endpoints
    #[arg(long)]
    admin: bool,
    /// What the user is called at first
    #[arg(long, value_name = "NAME")]
    display_name: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ResetPassword {
    /// The part of the user id before the colon
    name: String,
    /// Leave the user logged in
    #[arg(long)]
    keep_sessions: bool,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SigningKeyCommand {
    /// Put a new key in force; the one before is published as an old one. Then restart all replicas
    Rotate,
    /// Show the fingerprint of the key in force, for people whose `keybox audit` says that it was changed
    Show,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token
    Create(CreateToken),
    /// List all tokens, the newest first
    List(ListTokens),
}

#[derive(Debug, Args)]
pub(crate) struct CreateToken {
    /// The token; made up if absent
    #[arg(long)]
    token: Option<String>,
    /// How many accounts it may make; any number if absent
    #[arg(long, value_name = "NUMBER")]
    uses: Option<u32>,
    /// How long it is valid; for ever if absent
    #[arg(long, value_name = "HOURS")]
    valid_for_hours: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct ListTokens {
    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// Why an administrator's command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    #[error("standard input cannot be read")]
    Input(#[source] io::Error),
    #[error("{0} is there already: a backup overwrites nothing")]
    BackupExists(PathBuf),
    #[error(
        "the database is PostgreSQL, which has tools of its own for this (pg_dump, continuous archiving): see docs/operations/backup.md"
    )]
    BackupOfPostgres,
    #[error("no medium of this server has the address {0}")]
    NoSuchMedium(String),
    #[error("there is no report {0}; nothing was deleted")]
    NoSuchReport(String),
    #[error("the passphrases of {0} KeyBox(es) could not be sealed anew: see the list above")]
    NotAllResealed(usize),
    #[error("no such account, or it is closed")]
    NoSuchUser,
    #[error(
        "{0} other process(es) of keystead use this database: stop all replicas first, what they remember is of the past before"
    )]
    OthersServe(u64),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Refused(#[from] ApiError),
    #[error(transparent)]
    Rotation(#[from] RotationError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Store(#[from] Error),
    #[error("a token has 1 to 64 of the characters A-Z a-z 0-9 . _ ~ -")]
    TokenForm,
    #[error("there is a token of this name")]
    TokenTaken,
}

/// Does what an administrator asks for.
pub(crate) async fn run(settings: Settings, command: AdminCommand) -> Result<(), AdminError> {
    let app = App::start(settings).await?;
    let done = match command {
        AdminCommand::AfterRestore(args) => restore::after_restore(&app, &args).await,
        AdminCommand::Backup(args) => restore::backup(&app, &args).await,
        AdminCommand::CreateUser(args) => create_user(&app, &args).await,
        AdminCommand::Media(command) => media::run(&app, command).await,
        AdminCommand::Reports(command) => reports::run(&app, command).await,
        AdminCommand::ResetPassword(args) => reset_password(&app, &args).await,
        AdminCommand::RotateMasterKey => rotate_master_key(&app).await,
        AdminCommand::SigningKey(SigningKeyCommand::Rotate) => rotate_signing_key(&app).await,
        AdminCommand::SigningKey(SigningKeyCommand::Show) => show_signing_key(&app).await,
        AdminCommand::RegistrationToken(TokenCommand::Create(args)) => create_token(&app, args).await,
        AdminCommand::RegistrationToken(TokenCommand::List(args)) => list_tokens(&app, &args).await,
    };
    app.store.close().await;
    done
}

async fn create_user(app: &Arc<App>, args: &CreateUser) -> Result<(), AdminError> {
    let user_id = registration::user_id(app, Some(&args.name))?;
    let password = Password::choose(app, args.password_stdin)?;
    let account = NewAccount {
        user_id: &user_id,
        password: password.text(),
        display_name: args.display_name.as_deref(),
        is_admin: args.admin,
        token: None,
        session: None,
    };
    registration::register(app, &account, app.clock.now()).await?;
    println!("Made the account {user_id}.");
    password.show_if_made_up();
    Ok(())
}

async fn reset_password(app: &Arc<App>, args: &ResetPassword) -> Result<(), AdminError> {
    let user_id: &OwnedUserId = &registration::user_id(app, Some(&args.name))?;
    let password = Password::choose(app, args.password_stdin)?;
    password_policy::check(app.settings.registration.password_policy, password.text())?;
    let hash = &app.passwords.hash(&*app.entropy, password.text()).await?;
    let is_known = app
        .store
        .write("admin_password", |tx| async move { users::set_password(&tx, user_id, hash).await })
        .await?;
    if !is_known {
        return Err(AdminError::NoSuchUser);
    }
    if !args.keep_sessions {
        sessions::end(app, user_id, Actor::administrator(app.clock.now()), |_| true).await?;
    }
    println!("Changed the password of {user_id}.");
    password.show_if_made_up();
    Ok(())
}

async fn rotate_master_key(app: &App) -> Result<(), AdminError> {
    let Rotated { resealed, current, failed } = passphrases::rotate(app).await?;
    println!(
        "Passphrases of {resealed} KeyBox(es) sealed anew, of {current} already under the first master key, of {} failed.",
        failed.len()
    );
    if failed.is_empty() {
        println!(
            "Once every replica runs with this key as the first, and this command has run after that, master keys \
             after the first are not needed any more."
        );
        return Ok(());
    }
    for (user_id, keybox_id, reason) in &failed {
        println!("Failed: KeyBox {keybox_id} of {user_id}: {reason}. {}", what_to_do(reason));
    }
    println!("Keep all master keys until this command reports no failure.");
    Err(AdminError::NotAllResealed(failed.len()))
}

async fn rotate_signing_key(app: &App) -> Result<(), AdminError> {
    let signing_keys::Rotated { old, new, fingerprint } =
        signing_keys::rotate(&app.store, app.clock.now()).await?;
    println!(
        "The server signs with {new} from now on; {old} is published as an old key (/_matrix/key/v2/server).\n\
         Restart all replicas now, one after the other: until then they go on with {old}. `keystead doctor` names those that still do.\n\
         Tell people the new key's fingerprint, by another way than this server, for `keybox audit --accept-signing-key`:\n{fingerprint}"
    );
    Ok(())
}

async fn show_signing_key(app: &App) -> Result<(), AdminError> {
    let (id, fingerprint) = signing_keys::current(&app.store).await?;
    println!("The server signs with {id}. Its fingerprint:\n{fingerprint}");
    Ok(())
}

/// What an administrator can do about a passphrase that could not be sealed anew.
fn what_to_do(reason: &CannotReseal) -> &'static str {
    match reason {
        CannotReseal::Open(CannotOpen::UnknownKey) => {
            "Add that master key after the first and run this command again; if it is lost, so is this passphrase: \
             the owner has to revoke the KeyBox and make another."
        }
        CannotReseal::Open(_) | CannotReseal::NoUser => {
            "Look for the row (table keybox_passphrases) in a backup of the database; if there is none that is whole, \
             this passphrase is lost: the owner has to revoke the KeyBox and make another."
        }
        CannotReseal::Changed | CannotReseal::Seal(_) => "Run this command again.",
    }
}

async fn create_token(app: &Arc<App>, args: CreateToken) -> Result<(), AdminError> {
    let now = app.clock.now();
    let token = args.token.unwrap_or_else(|| app.entropy.readable(TOKEN_LENGTH));
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._~-".contains(c);
    if token.is_empty() || token.len() > MAX_TOKEN_LENGTH || !token.chars().all(is_allowed) {
        return Err(AdminError::TokenForm);
    }
    let lifetime = args.valid_for_hours.map(|hours| Duration::from_secs(u64::from(hours) * 3600));
    let token = &RegistrationToken {
        token,
        uses_allowed: args.uses,
        uses: 0,
        expires_ts: lifetime.map(|lifetime| {
            let millis = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
            MilliSecondsSinceUnixEpoch(UInt::new_saturating(u64::from(now.get()).saturating_add(millis)))
        }),
    };
    let is_new = app
        .store
        .write("admin_token", |tx| async move { tokens::insert_token(&tx, token, now).await })
        .await?;
    if !is_new {
        return Err(AdminError::TokenTaken);
    }
    println!("{}", token.token);
    Ok(())
}

async fn list_tokens(app: &Arc<App>, args: &ListTokens) -> Result<(), AdminError> {
    let now = app.clock.now();
    let tokens = app.store.read("admin_tokens", |tx| async move { tokens::tokens(&tx).await }).await?;
    if args.json {
        let list: Vec<_> = tokens
            .iter()
            .map(|token| {
                json!({
                    "token": token.token,
                    "uses_allowed": token.uses_allowed,
                    "uses": token.uses,
                    "expires_ts": token.expires_ts,
                    "valid": token.is_valid(now),
                })
            })
            .collect();
        println!("{:#}", serde_json::Value::from(list));
        return Ok(());
    }
    for token in tokens {
        let allowed = token.uses_allowed.map_or_else(|| "any number".to_owned(), |uses| uses.to_string());
        let state = if token.is_valid(now) { "valid" } else { "over" };
        println!("{}  {state}, used {} of {allowed}", token.token, token.uses);
    }
    Ok(())
}

/// A password from standard input, or one that is made up and then shown once.
enum Password {
    Given(String),
    MadeUp(String),
}

impl Password {
    fn choose(app: &App, from_stdin: bool) -> Result<Self, AdminError> {
        if !from_stdin {
            return Ok(Self::MadeUp(app.entropy.readable(PASSWORD_LENGTH)));
        }
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line).map_err(AdminError::Input)?;
        Ok(Self::Given(line.trim_end_matches(['\r', '\n']).to_owned()))
    }

    fn text(&self) -> &str {
        match self {
            Self::Given(text) | Self::MadeUp(text) => text,
        }
    }

    fn show_if_made_up(&self) {
        if let Self::MadeUp(text) = self {
            println!("Its password is {text} - this is the only time that it is shown.");
        }
    }
}
