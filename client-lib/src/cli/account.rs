//! Accounts on this machine.

use std::path::PathBuf;

use serde_json::json;
use zeroize::Zeroizing;

use super::Arguments;
use super::failure::Failure;
use super::output::Output;
use super::passphrase::{Mode, wanted};
use super::secrets::given_or_asked;
use crate::api::{Api, Registration, with_pin};
use crate::client::{Client, ClientError, Passphrase};
use crate::store::{Account, PassphraseMode, Store};

fn home(arguments: &Arguments) -> PathBuf {
    arguments
        .home
        .clone()
        .unwrap_or_else(|| std::env::home_dir().unwrap_or_else(|| PathBuf::from(".")).join(".keybox"))
}

pub(super) async fn register(
    arguments: &Arguments,
    output: &Output,
    mode: Option<Mode>,
    token: Option<&str>,
) -> Result<(), Failure> {
    let user = arguments.user.as_deref().ok_or(Failure::NoUser)?;
    let address = given_address(arguments)?;
    let passphrase = wanted(arguments, &Api::new(&address)?, mode).await?;
    let password = given_or_asked(arguments.password.as_deref(), "Password of the new account")?;
    output.progress("Making keys and registering …");
    let registration =
        Registration { username: local_part(user), password: &password, token, display_name: "KeyBox" };
    let passphrase = passphrase.as_ref().map_or(Passphrase::Kept, |own| Passphrase::Own(own));
    let client = Client::register(&home(arguments), &address, &registration, passphrase).await?;
    welcome(client, output)
}

pub(super) async fn login(arguments: &Arguments, output: &Output, mode: Option<Mode>) -> Result<(), Failure> {
    let user = arguments.user.as_deref().ok_or(Failure::NoUser)?;
    let address = given_address(arguments)?;
    let passphrase = wanted(arguments, &Api::new(&address)?, mode).await?;
    let password = given_or_asked(arguments.password.as_deref(), "Password of the account")?;
    output.progress("Making keys and logging in …");
    let passphrase = passphrase.as_ref().map_or(Passphrase::Kept, |own| Passphrase::Own(own));
    let client = Client::login(&home(arguments), &address, user, &password, passphrase).await;
    welcome(client.map_err(login_refused)?, output)
}

fn login_refused(error: ClientError) -> Failure {
    match error.errcode() {
        Some("M_FORBIDDEN") => Failure::LoginRefused(error),
        _ => error.into(),
    }
}

fn welcome(mut client: Client, output: &Output) -> Result<(), Failure> {
    output.notices(client.take_notices());
    let (account, fingerprint) = (client.account().clone(), client.fingerprint());
    let mode = Mode::of(client.passphrase_mode()?);
    let text = format!(
        "You are {}, with the KeyBox {}. Its fingerprint:\n{fingerprint}\n{}",
        account.user_id,
        account.keybox_id,
        mode.words()
    );
    let value = json!({
        "user_id": account.user_id, "keybox_id": account.keybox_id,
        "server": account.server, "fingerprint": fingerprint, "passphrase_mode": mode.name(),
    });
    output.lines(&text, &value);
    Ok(())
}

pub(super) async fn logout(client: Client, output: &Output) -> Result<(), Failure> {
    let account = client.account().clone();
    client.logout().await?;
    let text = format!("The KeyBox {} of {} is gone.", account.keybox_id, account.user_id);
    output.result(&text, &json!({ "user_id": account.user_id, "keybox_id": account.keybox_id }));
    Ok(())
}

/// The homeserver's address as given, with the pin if there is one.
fn given_address(arguments: &Arguments) -> Result<String, Failure> {
    match &arguments.pin {
        Some(pin) => Ok(with_pin(&arguments.server, pin)?),
        None => Ok(arguments.server.clone()),
    }
}

/// The address of the homeserver of the account that is meant; without one here, the one given.
pub(super) fn address(arguments: &Arguments) -> Result<String, Failure> {
    let accounts = Store::accounts(&home(arguments)).map_err(ClientError::from)?;
    match (choose(accounts, arguments.user.as_deref(), arguments.keybox.as_deref()), &arguments.pin) {
        (Ok(account), None) => Ok(account.server),
        (Ok(account), Some(pin)) => Ok(with_pin(&account.server, pin)?),
        (Err(_), _) => given_address(arguments),
    }
}

/// The KeyBox that the arguments mean, and the folder that it is in.
pub(super) fn chosen(arguments: &Arguments) -> Result<(PathBuf, Account), Failure> {
    let home = home(arguments);
    let accounts = Store::accounts(&home).map_err(ClientError::from)?;
    let account = choose(accounts, arguments.user.as_deref(), arguments.keybox.as_deref())?;
    Ok((home, account))
}

/// Opens the KeyBox that the arguments mean.
pub(super) async fn open(arguments: &Arguments) -> Result<Client, Failure> {
    unlock(arguments).await.map(|(client, _)| client)
}

/// The same, with the passphrase that its private keys are sealed with: in normal mode the homeserver's, for the account's password.
pub(super) async fn unlock(arguments: &Arguments) -> Result<(Client, Zeroizing<String>), Failure> {
    let (home, mut account) = chosen(arguments)?;
    if let Some(pin) = &arguments.pin {
        account.server = with_pin(&account.server, pin)?;
    }
    match Store::passphrase_mode(&home, &account).map_err(ClientError::from)? {
        PassphraseMode::Advanced => {
            let prompt = format!("Passphrase of {}", account.user_id);
            let passphrase = given_or_asked(arguments.passphrase.as_deref(), &prompt)?;
            Ok((Client::open(&home, account, &passphrase)?, passphrase))
        }
        PassphraseMode::Normal => {
            let prompt = format!("Password of {}", account.user_id);
            let password = given_or_asked(arguments.password.as_deref(), &prompt)?;
            Client::unlock(&home, account, &password).await.map_err(login_refused)
        }
    }
}

fn choose(accounts: Vec<Account>, user: Option<&str>, keybox: Option<&str>) -> Result<Account, Failure> {
    if accounts.is_empty() {
        return Err(Failure::NoAccount);
    }
    let meant = |account: &Account| {
        user.is_none_or(|user| user == account.user_id || user == local_part(&account.user_id))
            && keybox.is_none_or(|keybox| keybox == account.keybox_id)
    };
    let mut meant: Vec<_> = accounts.into_iter().filter(meant).collect();
    let named = || [user, keybox].into_iter().flatten().collect::<Vec<_>>().join(" ");
    match meant.pop() {
        None => Err(Failure::NoSuchAccount(named())),
        Some(account) if meant.is_empty() => Ok(account),
        Some(account) => {
            meant.push(account);
            let list = meant.iter().map(|account| format!("{} {}", account.user_id, account.keybox_id));
            Err(Failure::Ambiguous(list.collect::<Vec<_>>().join(", ")))
        }
    }
}

/// `alice` of `@alice:example.org`, and of `alice`.
fn local_part(user: &str) -> &str {
    let user = user.strip_prefix('@').unwrap_or(user);
    user.split_once(':').map_or(user, |(local, _)| local)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(user_id: &str, keybox_id: &str) -> Account {
        Account { server: String::new(), user_id: user_id.to_owned(), keybox_id: keybox_id.to_owned() }
    }

    #[test]
    fn the_account_that_is_meant_is_found() {
        let all = vec![account("@alice:x", "A1"), account("@bob:x", "B1"), account("@bob:x", "B2")];
        let choose = |user, keybox| choose(all.clone(), user, keybox);
        assert_eq!(choose(Some("alice"), None).unwrap().keybox_id, "A1");
        assert_eq!(choose(Some("@bob:x"), Some("B2")).unwrap().keybox_id, "B2");
        assert_eq!(choose(None, Some("B1")).unwrap().keybox_id, "B1");
        assert!(matches!(choose(Some("bob"), None), Err(Failure::Ambiguous(_))));
        assert!(matches!(choose(None, None), Err(Failure::Ambiguous(_))));
        assert!(matches!(choose(Some("carol"), None), Err(Failure::NoSuchAccount(_))));
        assert!(matches!(super::choose(Vec::new(), None, None), Err(Failure::NoAccount)));
    }
}
