//! `keystead demo`: two people talk through a server of their own, and we look at what it keeps of that.
//!
//! The server runs in this process; Alice and Bob use the `keybox` command line that lies beside this program, so
//! everything that is shown can be typed.

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
};

use keystead_store::rooms::{self, Bounds, Direction};
use ruma::OwnedRoomId;
use tokio::process::Command;

use crate::{
    api,
    app::{App, StartError},
    config::{Problems, Settings, reader::Environment},
    http::{
        listener::{ListenError, Listeners},
        service::Service,
    },
    telemetry::log::{self, LogError},
};

/// How many events of the room are shown as the database holds them.
const SHOWN_EVENTS: u64 = 100;
/// How many characters of an event's content are shown.
const SHOWN_CHARACTERS: usize = 150;

/// Why the demo ended early.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// There is no `keybox` beside this program.
    #[error("the demo needs the program keybox beside this one ({0}); `cargo build` makes both")]
    NoKeybox(PathBuf),
    /// A command failed.
    #[error("the command failed with {0}")]
    Command(std::process::ExitStatus),
    /// A program or a folder could not be used.
    #[error("a program could not be started or a folder not be made")]
    Io(#[from] io::Error),
    /// The settings of the demo contradict those of the environment.
    #[error("{0}")]
    Settings(Problems),
    /// Logging could not be set up.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A socket could not be set up.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The server could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The database could not be read at the end.
    #[error("the database cannot be read")]
    Store(#[from] keystead_store::Error),
}

/// One of the two, on a machine of their own.
struct Person<'a> {
    keybox: &'a Path,
    home: PathBuf,
    server: &'a str,
    user: &'static str,
    password: &'static str,
    passphrase: &'static str,
}

/// Plays the demo and removes its folder afterwards, unless `keep` names a folder to leave everything in.
///
/// # Errors
///
/// [`DemoError`] says what did not work.
pub async fn run(keep: Option<PathBuf>) -> Result<(), DemoError> {
    let keybox = keybox_beside_this_program()?;
    let kept = keep.is_some();
    let folder =
        keep.unwrap_or_else(|| std::env::temp_dir().join(format!("keystead-demo-{}", std::process::id())));
    std::fs::create_dir_all(&folder)?;
    let result = play(&keybox, &folder).await;
    if kept {
        println!("\nEverything is still in {}.", folder.display());
    } else {
        std::fs::remove_dir_all(&folder)?;
    }
    result
}

async fn play(keybox: &Path, folder: &Path) -> Result<(), DemoError> {
    let settings = settings(folder).map_err(DemoError::Settings)?;
    log::start(&settings.log)?;
    let listeners = Listeners::bind(&settings).await?;
    let server = listeners.addresses().first().map(|address| format!("http://{address}")).unwrap_or_default();
    let app = App::start(settings).await?;
    let serving = tokio::spawn(listeners.serve(Service::new(app.clone(), api::routes())));
    println!("A server runs at {server}, with its database in {}.", folder.display());

    let alice = Person {
        keybox,
        home: folder.join("alice"),
        server: &server,
        user: "alice",
        password: "Wonder-1and!",
        passphrase: "down the rabbit hole",
    };
    let bob = Person {
        keybox,
        home: folder.join("bob"),
        server: &server,
        user: "bob",
        password: "Bui1der-bob!",
        passphrase: "can we fix it",
    };
    let story = talk(&app, &alice, &bob).await;
    app.shutdown.begin();
    serving.abort();
    story
}

async fn talk(app: &App, alice: &Person<'_>, bob: &Person<'_>) -> Result<(), DemoError> {
    chapter("Two people make accounts. Each one's KeyBox makes its keys and publishes the public halves.");
    alice.run(&["register"]).await?;
    bob.run(&["register"]).await?;

    chapter("Alice makes an encrypted room and invites Bob.");
    let bob_id = format!("@bob:{}", app.settings.server.name);
    alice.run(&["create", "--name", "tea", "--invite", &bob_id]).await?;
    bob.run(&["join", "tea"]).await?;

    chapter(
        "Alice writes. Her KeyBox makes a resource key, wraps it for Bob's KeyBox and sends both through the server.",
    );
    alice.run(&["--verbose", "send", "tea", "Hello Bob, this is between the two of us."]).await?;
    bob.run(&["--verbose", "listen", "--until-messages", "1", "--timeout", "60"]).await?;

    chapter("Bob answers.");
    bob.run(&["send", "tea", "So nobody else can read it? Not even the server?"]).await?;
    alice.run(&["listen", "--until-messages", "1", "--timeout", "60"]).await?;

    chapter("What the server's database holds of that room:");
    let user = ruma::UserId::parse(&bob_id)
        .map_err(|error| DemoError::Store(keystead_store::Error::Setup(error.to_string())))?;
    let joined = app.tail.rooms_of(&user).await?;
    for (room_id, _) in joined.iter() {
        show_stored_events(app, room_id).await?;
    }
    println!(
        "\nThe contents of the messages (m.room.encrypted) are ciphertext. The keys to them went through the server wrapped, each copy for one KeyBox;\n\
         it only checked that those who exchanged them are in the room."
    );
    Ok(())
}

async fn show_stored_events(app: &App, room_id: &OwnedRoomId) -> Result<(), DemoError> {
    let bounds = Bounds { after: 0, upto: i64::MAX };
    let events = app
        .store
        .read("demo", |tx| async move {
            rooms::events_between(&tx, room_id, bounds, Direction::Forward, SHOWN_EVENTS).await
        })
        .await?;
    for event in events {
        let content: String = event.pdu.content.get().chars().take(SHOWN_CHARACTERS).collect();
        let more = if content.len() < event.pdu.content.get().len() { " …" } else { "" };
        println!("  {:4}  {:26} {content}{more}", event.position, event.pdu.event_type);
    }
    Ok(())
}

impl Person<'_> {
    /// Shows a command and runs it; what it prints is the person's to see.
    async fn run(&self, arguments: &[&str]) -> Result<(), DemoError> {
        let shown: Vec<String> = arguments.iter().map(|argument| quoted(argument)).collect();
        println!("\n{}$ keybox {}", self.user, shown.join(" "));
        let status = Command::new(self.keybox)
            .args(arguments)
            .env("KEYBOX_HOME", &self.home)
            .env("KEYBOX_SERVER", self.server)
            .env("KEYBOX_USER", self.user)
            .env("KEYBOX_PASSWORD", self.password)
            .env("KEYBOX_PASSPHRASE", self.passphrase)
            .stdin(Stdio::null())
            .status()
            .await?;
        if status.success() { Ok(()) } else { Err(DemoError::Command(status)) }
    }
}

fn quoted(argument: &str) -> String {
    if argument.contains(' ') { format!("'{argument}'") } else { argument.to_owned() }
}

fn chapter(text: &str) {
    println!("\n── {text}");
}

fn settings(folder: &Path) -> Result<Settings, Problems> {
    let database = format!("sqlite:{}", folder.join("keystead.db").display());
    let data = folder.join("data").display().to_string();
    Settings::from_environment(Environment::from([
        ("KEYSTEAD_SERVER_NAME", "demo.example"),
        ("KEYSTEAD_SERVER_LISTEN", "127.0.0.1:0"),
        ("KEYSTEAD_DATABASE_URL", database.as_str()),
        ("KEYSTEAD_DATA_DIR", data.as_str()),
        ("KEYSTEAD_REGISTRATION_OPEN", "true"),
        ("KEYSTEAD_LOG_FILTER", "warn"),
    ]))
}

fn keybox_beside_this_program() -> Result<PathBuf, DemoError> {
    let keybox = std::env::current_exe()?.with_file_name("keybox");
    if keybox.is_file() { Ok(keybox) } else { Err(DemoError::NoKeybox(keybox)) }
}
