//! A homeserver that keeps the passphrases of one KeyBox, as `SPEC.md` says in section 22, and stops with its machine.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::{Machine, PASSWORD};

pub(super) struct Server {
    pub(super) address: String,
    /// Newest first.
    pub(super) kept: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Serves until the test's process ends.
    pub(super) fn start(machine: Arc<Machine>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let kept: Arc<Mutex<Vec<String>>> = Arc::default();
        let served = Arc::clone(&kept);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                serve(stream.unwrap(), &machine, &served);
            }
        });
        Self { address, kept }
    }
}

/// One request on each connection. Without an answer the client hears that the connection broke.
fn serve(mut stream: TcpStream, machine: &Machine, kept: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let mut head = line.split(' ').map(str::to_owned);
    let (Some(method), Some(path)) = (head.next(), head.next()) else { return };
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        if header.trim().is_empty() {
            break;
        }
        if let Some(value) = header.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    if !machine.step() {
        return;
    }
    let (status, answer) = handle(&method, &path, &body, &mut kept.lock().unwrap());
    if !machine.step() {
        return;
    }
    let answer = answer.to_string();
    let head =
        format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", answer.len());
    stream.write_all(format!("{head}{answer}").as_bytes()).ok();
}

fn handle(method: &str, path: &str, body: &Value, kept: &mut Vec<String>) -> (u16, Value) {
    match method {
        "GET" => (200, json!({ "unstable_features": { "com.trustner.keybox.passphrases": true } })),
        "POST" if body["password"] != PASSWORD => (403, json!({ "errcode": "M_FORBIDDEN" })),
        "POST" if kept.is_empty() => (404, json!({ "errcode": "M_NOT_FOUND" })),
        "POST" => (200, json!({ "com.trustner.keybox.passphrases": kept })),
        "PUT" => {
            assert!(path.ends_with("/keyboxes/ABC/passphrase"), "{path}");
            kept.truncate(usize::from(body["keep_previous"] == true));
            kept.insert(0, body["passphrase"].as_str().unwrap().to_owned());
            (200, json!({}))
        }
        "DELETE" => {
            kept.clear();
            (200, json!({}))
        }
        _ => (405, json!({ "errcode": "M_UNRECOGNIZED" })),
    }
}
