//! Settings that can be used and should not.

use std::{os::unix::fs::PermissionsExt as _, path::Path};

use super::Finding;
use crate::config::{Settings, registration::PasswordPolicy};

/// The least cost of a password hash that slows down those who stole the database.
const LEAST_BCRYPT_COST: u32 = 10;

/// Judges the settings by themselves.
pub(super) fn judge(settings: &Settings) -> Vec<Finding> {
    let mut findings = reachability(settings);
    let is_local = settings.server.listen.iter().all(|address| address.ip().is_loopback());
    let registration = &settings.registration;
    if registration.open && !is_local {
        findings.push(Finding::warning(
            "config.registration_open",
            "Anybody who reaches the server may register, without a token.",
            "Set registration.open to false and give people tokens (`keystead admin registration-token create`), unless that is meant.",
        ));
    }
    if registration.password_policy == PasswordPolicy::None && !is_local {
        findings.push(Finding::warning(
            "config.password_policy",
            "Any password is taken, even one of a single character.",
            "Set registration.password_policy to bsi.",
        ));
    }
    if settings.auth.bcrypt_cost < LEAST_BCRYPT_COST && !is_local {
        findings.push(Finding::warning(
            "config.password_hashing",
            format!(
                "Password hashes have a cost of {}: whoever steals the database tries passwords quickly.",
                settings.auth.bcrypt_cost
            ),
            "Set auth.bcrypt_cost to 12; passwords that are set from then on have it.",
        ));
    }
    if !settings.limits.rate_limits && !is_local {
        findings.push(Finding::warning(
            "config.rate_limits",
            "Nobody is slowed down, not even whoever tries passwords.",
            "Set limits.rate_limits to true.",
        ));
    }
    if settings.log.filter.contains("trace") || settings.log.filter.contains("debug") {
        findings.push(Finding::warning(
            "config.log_filter",
            format!("Logs are written at a level for developers (log.filter is {}).", settings.log.filter),
            "Set log.filter to info: at debug and trace, libraries tell of every packet, which fills disks and slows the server.",
        ));
    }
    findings
}

/// Whether clients can reach the server under the name and the address that it gives them.
fn reachability(settings: &Settings) -> Vec<Finding> {
    let server = &settings.server;
    if server.listen.iter().all(|address| address.ip().is_loopback())
        && !server.public_base_url.starts_with("https:")
    {
        // For this machine alone.
        return Vec::new();
    }
    let mut findings = Vec::new();
    let host =
        url::Url::parse(&server.public_base_url).ok().and_then(|url| url.host_str().map(str::to_owned));
    let is_local = |host: &str| ["localhost", "127.0.0.1", "[::1]", "0.0.0.0"].contains(&host);
    if host.as_deref().is_none_or(is_local) {
        findings.push(Finding::error(
            "config.base_url",
            format!(
                "The server tells clients to reach it at {}, which leads other machines to themselves.",
                server.public_base_url
            ),
            "Set server.public_base_url to the address that clients use, such as https://chat.example.org.",
        ));
    } else if server.public_base_url.starts_with("http:") {
        findings.push(Finding::error(
            "config.plain_http",
            "Clients are told to use http: passwords and messages travel for everybody on the way to read.",
            "Set server.public_base_url to an https address, and server.tls_certificate with server.tls_private_key, or a proxy that speaks TLS.",
        ));
    }
    if is_local(server.name.host()) {
        findings.push(Finding::warning(
            "config.server_name",
            format!("The server's name is {}, though it is not only for this machine.", server.name),
            "User ids end with it for ever: choose a name of your own (server.name) and begin with a new database, before people register.",
        ));
    }
    findings
}

/// Files with secrets that others than the server may read or change.
pub(super) fn secret_files(settings: &Settings, config_file: Option<&Path>) -> Vec<Finding> {
    let tls_key = settings.server.tls.as_ref().map(|tls| tls.private_key.as_path());
    let files = settings.secret_files.iter().map(AsRef::as_ref).chain(tls_key).chain(config_file);
    files.filter_map(secret_file).collect()
}

fn secret_file(path: &Path) -> Option<Finding> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o777;
    // The group may read: that is how Kubernetes hands secrets to a process that is not root.
    (mode & 0o027 != 0).then(|| {
        Finding::error(
            "config.secret_file",
            format!(
                "The file {} with a secret has the permissions {mode:o}: others can read or change it.",
                path.display()
            ),
            format!("chmod 600 {}, and change the secret if others may have read it.", path.display()),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::reader::Environment, doctor::tests::names};

    fn judged<const N: usize>(environment: [(&str, &str); N]) -> Vec<&'static str> {
        let settings = Settings::from_environment(Environment::from(environment)).unwrap();
        names(&judge(&settings))
    }

    const PUBLIC: [(&str, &str); 3] = [
        ("KEYSTEAD_SERVER_LISTEN", "0.0.0.0:8008"),
        ("KEYSTEAD_SERVER_NAME", "example.org"),
        ("KEYSTEAD_SERVER_PUBLIC_BASE_URL", "https://chat.example.org"),
    ];

    #[test]
    fn nothing_is_said_of_the_defaults_nor_of_a_careful_server() {
        assert!(judged([]).is_empty());
        assert!(judged(PUBLIC).is_empty());
        assert!(judged([("KEYSTEAD_REGISTRATION_OPEN", "true")]).is_empty(), "on this machine alone");
    }

    #[test]
    fn each_weak_setting_of_a_public_server_is_named() {
        let [listen, name, url] = PUBLIC;
        let with = |setting, value| judged([listen, name, url, (setting, value)]);
        assert_eq!(with("KEYSTEAD_REGISTRATION_OPEN", "true"), ["config.registration_open"]);
        assert_eq!(with("KEYSTEAD_REGISTRATION_PASSWORD_POLICY", "none"), ["config.password_policy"]);
        assert_eq!(with("KEYSTEAD_AUTH_BCRYPT_COST", "4"), ["config.password_hashing"]);
        assert_eq!(with("KEYSTEAD_LIMITS_RATE_LIMITS", "false"), ["config.rate_limits"]);
        assert_eq!(with("KEYSTEAD_LOG_FILTER", "info,hyper=trace"), ["config.log_filter"]);
        assert_eq!(judged([listen, name]), ["config.base_url"]);
        assert_eq!(judged([listen, url]), ["config.server_name"]);
        let plain = ("KEYSTEAD_SERVER_PUBLIC_BASE_URL", "http://chat.example.org");
        assert_eq!(judged([listen, name, plain]), ["config.plain_http"]);
    }

    #[test]
    fn a_secret_that_others_can_read_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, "hush\n").unwrap();
        let environment = [("KEYSTEAD_REGISTRATION_SHARED_SECRET_FILE", path.to_str().unwrap())];
        let settings = Settings::from_environment(Environment::from(environment)).unwrap();
        for (mode, expected) in [(0o600, 0), (0o440, 0), (0o644, 1), (0o660, 1)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let found = secret_files(&settings, None);
            assert_eq!(names(&found).len(), expected, "{mode:o}: {found:?}");
        }
    }
}
