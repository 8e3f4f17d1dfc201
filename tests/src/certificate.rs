//! Certificates for servers of this machine.

use std::{
    path::Path,
    process::{Command, Stdio},
};

/// Makes a certificate for `localhost` and 127.0.0.1 that signs itself, and its key: `certificate.pem` and `key.pem` in a folder.
pub fn make(folder: &Path) {
    let request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost \
        -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout key.pem -out certificate.pem";
    let made =
        Command::new("openssl").args(request.split(' ')).current_dir(folder).stderr(Stdio::null()).status();
    assert!(made.expect("openssl").success());
}
