//! The command line `keybox`: results on standard output, progress and plain words on standard error.

mod account;
mod closing;
mod contacts;
mod failure;
mod files;
mod interchange;
mod log;
mod output;
mod passphrase;
mod people;
mod policy;
mod recovery;
mod registry;
mod rooms;
mod secrets;
mod trust;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use keystead_keybox::suite::Suite;

use crate::client::Client;
use crate::engine::Decision;
use failure::Failure;
use output::Output;

/// A KeyBox: end-to-end encrypted messages over a Matrix homeserver.
///
/// Exit status: 0 done, 1 failed, 2 wrong usage, 3 wrong password or passphrase, or logged out, 4 refused by the homeserver, 5 homeserver not
/// reached, 6 what was waited for did not come in time, 7 no such account or room here.
#[derive(Debug, Parser)]
#[command(name = "keybox", version)]
pub struct Arguments {
    /// Folder of the KeyBoxes of this installation [default: ~/.keybox]
    #[arg(long, global = true, env = "KEYBOX_HOME", value_name = "DIR")]
    home: Option<PathBuf>,
    /// Address of the homeserver, for register and login; remembered afterwards
    #[arg(
        long,
        global = true,
        env = "KEYBOX_SERVER",
        default_value = "http://127.0.0.1:8008",
        value_name = "URL"
    )]
    server: String,
    /// SHA-256 of the homeserver's certificate or its public key: nothing is sent to a server that shows another; remembered at register
    /// and login
    #[arg(long, global = true, env = "KEYBOX_PIN", value_name = "SHA256")]
    pin: Option<String>,
    /// Whose KeyBox: a user id, or its part before the colon; may be left out if there is only one
    #[arg(long, global = true, env = "KEYBOX_USER", value_name = "USER")]
    user: Option<String>,
    /// Which KeyBox of that user; may be left out if there is only one
    #[arg(long, global = true, value_name = "ID")]
    keybox: Option<String>,
    /// Passphrase that protects the private keys on this machine, in advanced mode; asked for if not given
    #[arg(long, global = true, env = "KEYBOX_PASSPHRASE", hide_env_values = true, value_name = "TEXT")]
    passphrase: Option<String>,
    /// Password of the account: for register, login and revoke, and in normal mode for every command; asked for if not given
    #[arg(long, global = true, env = "KEYBOX_PASSWORD", hide_env_values = true, value_name = "TEXT")]
    password: Option<String>,
    /// Results as JSON, one object a line
    #[arg(long, global = true)]
    json: bool,
    /// Say what the KeyBox does with keys
    #[arg(long, short, global = true)]
    verbose: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an account and its first KeyBox
    ///
    /// The private keys on this machine are sealed with a passphrase. With --passphrase it stays with you (advanced mode). Otherwise the
    /// program makes one and the homeserver keeps it (normal mode), if it offers that; it gives it for the account's password.
    Register {
        /// Who keeps the passphrase
        #[arg(long, value_enum)]
        mode: Option<passphrase::Mode>,
        /// Registration token, if the homeserver asks for one
        #[arg(long, value_name = "TOKEN")]
        token: Option<String>,
    },
    /// Log in to an account, which makes a new KeyBox of it
    ///
    /// Its passphrase is one of its own; as for register.
    Login {
        /// Who keeps the passphrase
        #[arg(long, value_enum)]
        mode: Option<passphrase::Mode>,
    },
    /// Log out and remove the KeyBox with its private keys
    Logout,
    /// List rooms and invitations
    Rooms,
    /// Make an encrypted room
    Create {
        /// Its name
        #[arg(long)]
        name: Option<String>,
        /// A user to invite; may be repeated
        #[arg(long, value_name = "USER_ID")]
        invite: Vec<String>,
        /// How it is encrypted: v1 (RSA, AES-OFB) or v2 (elliptic curves, AES-GCM)
        #[arg(long, default_value = "v1", value_parser = rooms::suite, value_name = "VERSION")]
        suite: &'static Suite,
    },
    /// Invite a user to a room
    Invite {
        /// Room id, or name of a room that you are in
        room: String,
        /// User id
        user_id: String,
    },
    /// Join a room, or accept an invitation
    Join {
        /// Room id, alias, or name of a room that you are invited to
        room: String,
    },
    /// Leave a room, or decline an invitation
    Leave {
        /// Room id or name
        room: String,
    },
    /// Send a text to a room, encrypted for everybody in it
    Send {
        /// Room id or name
        room: String,
        /// The text; `-` reads it from standard input
        text: String,
    },
    /// Send a file to a room, encrypted for everybody in it
    SendFile {
        /// Room id or name
        room: String,
        /// The file
        path: PathBuf,
    },
    /// Receive the file of a message; goes on where an earlier call broke off
    Download {
        /// Room id or name
        room: String,
        /// Event id of the message
        event_id: String,
        /// The file to write, or a folder [default: the sender's name for it, in the working folder]
        #[arg(long, short, value_name = "PATH")]
        output: Option<PathBuf>,
        /// The small version of a picture instead
        #[arg(long)]
        thumbnail: bool,
        /// How many seconds to wait for a missing resource key
        #[arg(long, default_value_t = 5, value_name = "SECONDS")]
        wait: u64,
    },
    /// Show messages as they arrive, beginning with those not shown yet
    Listen {
        /// Only this room: its id or name
        #[arg(long)]
        room: Option<String>,
        /// End after this many messages
        #[arg(long, value_name = "N")]
        until_messages: Option<usize>,
        /// End after this many seconds; with --until-messages that is a failure (status 6)
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
    },
    /// Show the last messages of a room
    History {
        /// Room id or name
        room: String,
        /// How many
        #[arg(long, default_value_t = 50)]
        limit: usize,
        /// How many seconds to wait for missing resource keys
        #[arg(long, default_value_t = 5, value_name = "SECONDS")]
        wait: u64,
    },
    /// List the KeyBoxes of a user (yours, if no one is named)
    Devices {
        /// User id
        user_id: Option<String>,
    },
    /// List your own KeyBoxes: name, when made, when and where last seen, suites, verified or not
    Keyboxes,
    /// Give one of your KeyBoxes a name
    Rename {
        /// KeyBox id
        keybox_id: String,
        /// What to call it; others see it, too
        name: String,
    },
    /// Take away a KeyBox of yours that is lost: its session, its keys and all that waits for it
    Revoke {
        /// KeyBox id
        keybox_id: String,
    },
    /// Show who keeps the passphrase of the private keys, and change it
    Passphrase {
        #[command(subcommand)]
        action: Option<passphrase::PassphraseAction>,
    },
    /// Show the fingerprints of a user's KeyBoxes, or mark one as verified
    Verify {
        /// User id
        user_id: String,
        /// KeyBox id, to mark that one
        keybox_id: Option<String>,
        /// The fingerprint as you heard or read it; marks the KeyBox if it is the right one
        #[arg(long, value_name = "DIGITS", requires = "keybox_id")]
        fingerprint: Option<String>,
        /// Take the mark back
        #[arg(long, requires = "keybox_id", conflicts_with = "fingerprint")]
        undo: bool,
    },
    /// Show or set to whom this KeyBox gives resource keys: `keybox policy ROOM POLICY`, either of which may be left out
    ///
    /// Policies: automatic (to every KeyBox of the room), verified_only (to those that you have verified), ask (each waits for
    /// `keybox approve`), never. For a room also: default (what holds for the account).
    Policy {
        /// Room id or name, policy, or both
        #[arg(num_args = 0..=2, value_name = "ROOM|POLICY")]
        words: Vec<String>,
    },
    /// List the KeyBoxes that wait for your approval to get resource keys
    Approvals {
        /// Those that were decided, too
        #[arg(long)]
        all: bool,
    },
    /// Give waiting KeyBoxes the resource keys that they wait for
    Approve {
        /// Numbers from `keybox approvals`
        #[arg(required = true)]
        ids: Vec<u64>,
        /// Also those of the room that are yet to come
        #[arg(long)]
        always: bool,
    },
    /// Give KeyBoxes no resource keys of the room, now and later
    Refuse {
        /// Numbers from `keybox approvals`
        #[arg(required = true)]
        ids: Vec<u64>,
    },
    /// Write resource keys into a file, sealed with a passphrase, to move or keep them
    ExportKeys {
        /// The file; must not be there yet
        file: PathBuf,
        /// Only of this room: its id or name; may be repeated
        #[arg(long = "room", value_name = "ROOM")]
        rooms: Vec<String>,
        /// Passphrase of the file, at least 12 characters; asked for if not given
        #[arg(long, env = "KEYBOX_FILE_PASSPHRASE", hide_env_values = true, value_name = "TEXT")]
        file_passphrase: Option<String>,
    },
    /// Take in resource keys from such a file, for reading
    ImportKeys {
        /// The file
        file: PathBuf,
        /// Its passphrase; asked for if not given
        #[arg(long, env = "KEYBOX_FILE_PASSPHRASE", hide_env_values = true, value_name = "TEXT")]
        file_passphrase: Option<String>,
    },
    /// Make, use or remove a recovery key: on paper, it brings all resource keys back when every KeyBox is lost
    RecoveryKey {
        #[command(subcommand)]
        action: Option<recovery::RecoveryAction>,
    },
    /// Show, set or clear the pin of the homeserver that this KeyBox remembers; needs no passphrase
    Pin {
        #[command(subcommand)]
        action: Option<trust::PinAction>,
    },
    /// Show the fingerprints of the homeserver's certificate and public key, to compare or to pin
    ServerFingerprint,
    /// Check that this program is one that the homeserver publishes the fingerprint of
    SelfCheck,
    /// Show this KeyBox's contact code, for others to scan
    Qr {
        /// Write it to this file, as PNG
        #[arg(long, value_name = "FILE")]
        png: Option<PathBuf>,
        /// Write it to this file, as SVG
        #[arg(long, value_name = "FILE", conflicts_with = "png")]
        svg: Option<PathBuf>,
        /// The terminal writes dark on light
        #[arg(long)]
        light: bool,
    },
    /// Read a contact code from an image (PNG or JPEG) and mark its KeyBox as verified
    Scan {
        /// The image
        image: PathBuf,
    },
    /// List everybody whose KeyBoxes are known here, and whether they are verified
    Contacts,
    /// Accept that somebody's keys have changed; until then nothing is sent to them
    Accept {
        /// User id
        user_id: String,
    },
    /// Show what happened to your KeyBoxes, and which resource keys were given, asked for and refused
    Log {
        /// What the homeserver has noted of all your KeyBoxes, not what this one saw itself
        #[arg(long)]
        homeserver: bool,
        /// Only resource keys of this room: its id or name
        #[arg(long)]
        room: Option<String>,
        /// Only what names this KeyBox, yours or somebody's
        #[arg(long = "of", value_name = "KEYBOX_ID")]
        of: Option<String>,
        /// Only what happened since then: a date and time in UTC (2026-01-31 or 2026-01-31T12:00:00)
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
    },
    /// Compare what this KeyBox saw with what the homeserver has noted, and name every difference
    Audit {
        /// The key that the homeserver signs its logs with was changed to the one of this fingerprint, as its administrator says
        #[arg(long, value_name = "FINGERPRINT")]
        accept_signing_key: Option<String>,
    },
    /// Take a room to the best suite, for good; older messages stay readable
    UpgradeSuite {
        /// Room id or name
        room: String,
        /// Do so even where KeyBoxes of members do not speak that suite: they read nothing of what comes after
        #[arg(long)]
        leave_behind: bool,
    },
    /// Close a room: nobody comes in, and no further KeyBox gets its keys
    ///
    /// The KeyBoxes that the members have now go on; whoever gets another one has to be let in with approve-keybox by who may send
    /// state in the room now, and so is the room opened again.
    Close {
        /// Room id or name
        room: String,
        /// How many members the room may have from then on, also when it is open again
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        limit: Option<u64>,
    },
    /// Open a room that is closed
    Open {
        /// Room id or name
        room: String,
        /// How many members it may have
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        limit: Option<u64>,
    },
    /// Let one more KeyBox of a member have the keys of a closed room
    ApproveKeybox {
        /// Room id or name
        room: String,
        /// User id
        user_id: String,
        /// KeyBox id
        keybox_id: String,
    },
    /// Name the messages of a room that were sent and have not come, as the counters of later ones tell
    Missing {
        /// Room id or name
        room: String,
    },
    /// Show the resource key, IV and ciphertext of a message, to decrypt it with openssl by hand
    #[command(hide = true)]
    ExportMessage {
        /// Room id or name
        room: String,
        /// Event id
        event_id: String,
    },
}

/// Carries out a command line; prints; says how it ended.
pub async fn run(arguments: Arguments) -> ExitCode {
    let output = Output { json: arguments.json, verbose: arguments.verbose };
    match dispatch(&arguments, &output).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.status())
        }
    }
}

async fn dispatch(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    match &arguments.command {
        Command::Register { mode, token } => {
            return account::register(arguments, output, *mode, token.as_deref()).await;
        }
        Command::Login { mode } => return account::login(arguments, output, *mode).await,
        Command::Passphrase { action } => return passphrase::run(arguments, output, action.as_ref()).await,
        Command::Pin { action } => return trust::pin(arguments, output, action.as_ref()).await,
        Command::ServerFingerprint => return trust::server_fingerprint(arguments, output).await,
        Command::SelfCheck => return trust::self_check(arguments, output).await,
        _ => {}
    }
    let mut client = account::open(arguments).await?;
    let done = with_client(arguments, &mut client, output).await;
    output.notices(client.take_notices());
    match done? {
        Next::Done => Ok(()),
        Next::Logout => account::logout(client, output).await,
    }
}

/// What remains to do with a client that only its owner can.
enum Next {
    Done,
    Logout,
}

async fn with_client(arguments: &Arguments, client: &mut Client, output: &Output) -> Result<Next, Failure> {
    match &arguments.command {
        Command::Register { .. }
        | Command::Login { .. }
        | Command::Passphrase { .. }
        | Command::Pin { .. }
        | Command::SelfCheck
        | Command::ServerFingerprint => {}
        Command::Logout => return Ok(Next::Logout),
        Command::Rooms => rooms::list(client, output).await?,
        Command::Create { name, invite, suite } => {
            rooms::create(client, output, name.as_deref(), suite, invite).await?;
        }
        Command::Invite { room, user_id } => rooms::invite(client, output, room, user_id).await?,
        Command::Join { room } => rooms::join(client, output, room).await?,
        Command::Leave { room } => rooms::leave(client, output, room).await?,
        Command::Send { room, text } => rooms::send(client, output, room, text).await?,
        Command::SendFile { room, path } => files::send(client, output, room, path).await?,
        Command::Download { room, event_id, output: to, thumbnail, wait } => {
            let what = files::Wanted { event_id, thumbnail: *thumbnail, to: to.as_deref(), wait: *wait };
            files::download(client, output, room, what).await?;
        }
        Command::Listen { room, until_messages, timeout } => {
            rooms::listen(client, output, room.as_deref(), *until_messages, *timeout).await?;
        }
        Command::History { room, limit, wait } => rooms::history(client, output, room, *limit, *wait).await?,
        Command::Devices { user_id } => people::devices(client, output, user_id.as_deref()).await?,
        Command::Keyboxes => registry::list(client, output).await?,
        Command::Rename { keybox_id, name } => registry::rename(client, output, keybox_id, name).await?,
        Command::Revoke { keybox_id } => {
            registry::revoke(client, output, keybox_id, arguments.password.as_deref()).await?;
        }
        Command::Verify { user_id, keybox_id, fingerprint, undo } => {
            let marking = people::Marking { fingerprint: fingerprint.as_deref(), undo: *undo };
            people::verify(client, output, user_id, keybox_id.as_deref(), marking).await?;
        }
        Command::Policy { words } => policy::policy(client, output, words).await?,
        Command::Approvals { all } => policy::approvals(client, output, *all).await?,
        Command::Approve { ids, always } => {
            policy::decide(client, output, ids, always.then_some(Decision::Approved)).await?;
        }
        Command::Refuse { ids } => {
            policy::decide(client, output, ids, Some(Decision::Refused)).await?;
        }
        Command::ExportKeys { file, rooms, file_passphrase } => {
            interchange::export(client, output, file, rooms, file_passphrase.as_deref()).await?;
        }
        Command::ImportKeys { file, file_passphrase } => {
            interchange::import(client, output, file, file_passphrase.as_deref()).await?;
        }
        Command::RecoveryKey { action } => recovery::run(client, output, action.as_ref()).await?,
        Command::Qr { png, svg, light } => {
            let file = contacts::CodeFile { png: png.as_deref(), svg: svg.as_deref(), light: *light };
            contacts::show_code(client, output, &file)?;
        }
        Command::Scan { image } => contacts::scan(client, output, image).await?,
        Command::Contacts => contacts::list(client, output).await?,
        Command::Accept { user_id } => contacts::accept(client, output, user_id).await?,
        Command::Log { homeserver, room, of, since } => {
            let wanted = log::Wanted { room: room.as_deref(), of: of.as_deref(), since: since.as_deref() };
            log::show(client, output, *homeserver, &wanted).await?;
        }
        Command::Audit { accept_signing_key } => {
            log::audit(client, output, accept_signing_key.as_deref()).await?;
        }
        Command::UpgradeSuite { room, leave_behind } => {
            rooms::upgrade_suite(client, output, room, *leave_behind).await?;
        }
        Command::Close { room, limit } => closing::close(client, output, room, *limit).await?,
        Command::Open { room, limit } => closing::open(client, output, room, *limit).await?,
        Command::ApproveKeybox { room, user_id, keybox_id } => {
            closing::approve(client, output, room, user_id, keybox_id).await?;
        }
        Command::Missing { room } => rooms::missing(client, output, room).await?,
        Command::ExportMessage { room, event_id } => rooms::export(client, output, room, event_id).await?,
    }
    Ok(Next::Done)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    /// clap does not notice: the global option would be read from what the command's own option holds, and panic.
    #[test]
    fn no_command_has_an_option_of_the_name_of_a_global_one() {
        fn check(command: &clap::Command, globals: &[&clap::Id]) {
            for sub in command.get_subcommands() {
                for argument in sub.get_arguments() {
                    assert!(
                        !globals.contains(&argument.get_id()),
                        "{} of {}",
                        argument.get_id(),
                        sub.get_name()
                    );
                }
                check(sub, globals);
            }
        }
        let command = Arguments::command();
        let globals: Vec<_> = command
            .get_arguments()
            .filter(|argument| argument.is_global_set())
            .map(clap::Arg::get_id)
            .collect();
        assert!(!globals.is_empty());
        check(&command, &globals);
    }

    #[test]
    fn the_log_is_shown_from_either_side() {
        for (arguments, of_homeserver) in
            [(&["keybox", "log"][..], false), (&["keybox", "log", "--homeserver", "--json"], true)]
        {
            let parsed = Arguments::try_parse_from(arguments).unwrap();
            assert!(matches!(parsed.command, Command::Log { homeserver, .. } if homeserver == of_homeserver));
        }
    }
}
