//! The recovery key.

use clap::Subcommand;
use serde_json::json;

use super::failure::Failure;
use super::interchange::report;
use super::output::Output;
use super::secrets::given_or_asked;
use crate::client::Client;

/// What to do with the recovery key.
#[derive(Debug, Subcommand)]
pub(super) enum RecoveryAction {
    /// Say whether there is one, and whether this KeyBox adds to its backup
    Show,
    /// Make one, show it once, and back up all resource keys for it, those to come too
    Create,
    /// Take in all resource keys of the backup, for reading, and add to it from now on
    Restore {
        /// The recovery key: 17 groups of four digits; asked for if not given
        #[arg(env = "KEYBOX_RECOVERY_KEY", hide_env_values = true, value_name = "DIGITS")]
        recovery_key: Option<String>,
    },
    /// Have the homeserver delete the backup; the recovery key opens nothing any more
    Remove,
}

/// `keybox recovery-key`.
pub(super) async fn run(
    client: &mut Client,
    output: &Output,
    action: Option<&RecoveryAction>,
) -> Result<(), Failure> {
    match action {
        None | Some(RecoveryAction::Show) => show(client, output).await,
        Some(RecoveryAction::Create) => {
            let key = client.create_recovery_key().await?;
            let text = format!(
                "The recovery key; write it down, it is not shown again:\n\n    {}\n\nWho has it and gets into the account, or at the \
                 homeserver's database, reads everything.",
                *key
            );
            output.lines(&text, &json!({ "recovery_key": *key }));
            Ok(())
        }
        Some(RecoveryAction::Restore { recovery_key }) => {
            let key = given_or_asked(recovery_key.as_deref(), "Recovery key")?;
            report(output, &client.restore(&key).await?);
            Ok(())
        }
        Some(RecoveryAction::Remove) => {
            client.remove_recovery_key().await?;
            output.result("The recovery key opens nothing any more.", &json!({ "removed": true }));
            Ok(())
        }
    }
}

async fn show(client: &mut Client, output: &Output) -> Result<(), Failure> {
    let status = client.recovery_status().await?;
    let text = match (status.backed_up, status.kept_here) {
        (None, _) => "There is no recovery key.".to_owned(),
        (Some(count), true) => {
            format!("There is a recovery key for {count} resource key(s), and this KeyBox adds to them.")
        }
        (Some(count), false) => format!(
            "There is a recovery key for {count} resource key(s). This KeyBox does not add to them: keybox recovery-key restore"
        ),
    };
    output.result(&text, &json!({ "backed_up": status.backed_up, "kept_here": status.kept_here }));
    Ok(())
}
