use super::*;

fn read(toml: &str, environment: Environment) -> Result<Settings, Vec<String>> {
    Settings::read(toml.parse().unwrap(), environment)
        .map_err(|problems| problems.0.into_iter().map(|problem| problem.setting).collect())
}

#[test]
fn the_defaults_are_those_that_tools_rely_on() {
    let settings = read("", Environment::default()).unwrap();
    assert_eq!(settings.server.name, "localhost:8008");
    assert_eq!(settings.server.listen, ["127.0.0.1:8008".parse().unwrap()]);
    assert_eq!(settings.server.public_base_url, "http://127.0.0.1:8008");
    assert_eq!(settings.database.url.expose(), "sqlite:data/keystead.db");
    assert_eq!(settings.data_dir, Path::new("data"));
    assert!(
        matches!(&settings.media.place, media::MediaPlace::Folder(folder) if folder == Path::new("data/media"))
    );
    assert_eq!((settings.media.max_upload_bytes, settings.media.user_quota_bytes), (1 << 30, None));
    assert!(!settings.registration.open);
    assert_eq!(settings.registration.password_policy, registration::PasswordPolicy::Bsi);
    assert!(settings.limits.rate_limits);
    assert!(!settings.url_preview.enabled);
    assert_eq!(settings.auth.bcrypt_cost, 12);
    assert_eq!(settings.rooms.default_version.as_str(), "12");
    assert_eq!((settings.log.format, settings.log.filter.as_str()), (log::LogFormat::Text, "info"));
}

#[test]
fn the_environment_stands_over_the_file() {
    let file = "data_dir = \"/from/file\"\n[server]\nname = \"file.example\"\nlisten = [\"127.0.0.1:1\"]";
    let environment = Environment::from([
        ("KEYSTEAD_SERVER_NAME", "env.example"),
        ("KEYSTEAD_SERVER_LISTEN", "127.0.0.1:2, [::1]:3"),
        ("KEYSTEAD_REGISTRATION_OPEN", "true"),
        ("KEYSTEAD_LOG_FORMAT", "json"),
        ("KEYSTEAD_URL_PREVIEW_ALLOWED_NETWORKS", "10.0.0.0/8, ::1"),
    ]);
    let settings = read(file, environment).unwrap();
    assert_eq!(settings.server.name, "env.example");
    assert_eq!(settings.server.listen.len(), 2);
    assert_eq!(settings.data_dir, Path::new("/from/file"));
    assert_eq!(settings.url_preview.allowed_networks.len(), 2);
    assert!(settings.registration.open);
    assert_eq!(settings.log.format, log::LogFormat::Json);
}

#[test]
fn every_problem_is_reported_at_once() {
    let file = "colour = 1\n[server]\nname = 5\ntls_certificate = \"c.pem\"\nnmae = \"x\"\n[auth]\nbcrypt_cost = 99\n[nope]\na = 1";
    let environment = Environment::from([("KEYSTEAD_LIMITS_RATE_LIMITS", "maybe"), ("KEYSTEAD_PORT", "1")]);
    let mut problems = read(file, environment).unwrap_err();
    problems.sort();
    assert_eq!(
        problems,
        [
            "KEYSTEAD_LIMITS_RATE_LIMITS",
            "KEYSTEAD_PORT",
            "auth.bcrypt_cost",
            "colour",
            "nope.a",
            "server.name",
            "server.nmae",
            "server.tls_private_key",
        ]
    );
}

#[test]
fn a_secret_comes_inline_or_from_a_file_and_never_shows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    std::fs::write(&path, "hush\n").unwrap();
    let path = path.to_str().unwrap();
    let settings = read("", Environment::from([("KEYSTEAD_REGISTRATION_SHARED_SECRET_FILE", path)])).unwrap();
    assert_eq!(settings.registration.shared_secret.as_ref().unwrap().expose(), "hush");
    assert!(!format!("{settings:?}").contains("hush"));

    let both = Environment::from([
        ("KEYSTEAD_REGISTRATION_SHARED_SECRET_FILE", path),
        ("KEYSTEAD_REGISTRATION_SHARED_SECRET", "inline"),
    ]);
    assert_eq!(read("", both).unwrap_err(), ["registration.shared_secret"]);
}

#[test]
fn the_problems_read_as_text() {
    let text = Settings::read("x = 1".parse().unwrap(), Environment::default()).unwrap_err().to_string();
    assert_eq!(text, "the configuration has 1 problem(s)\n  x: there is no such setting");
}

#[test]
fn a_bucket_is_whole_and_travels_encrypted_unless_told_otherwise() {
    let bucket = |more: &str| {
        let file = format!("[media]\ns3_bucket = \"files\"\n{more}");
        let settings = read(&file, Environment::from([("KEYSTEAD_MEDIA_S3_SECRET_ACCESS_KEY", "hush")]))?;
        match settings.media.place {
            media::MediaPlace::Bucket(bucket) => Ok::<_, Vec<String>>(bucket),
            media::MediaPlace::Folder(folder) => panic!("{}", folder.display()),
        }
    };
    assert_eq!(bucket("").unwrap_err(), ["media.s3_access_key_id"]);
    let amazon = bucket("s3_access_key_id = \"me\"").unwrap();
    assert_eq!((amazon.endpoint_of_bucket(), amazon.region.as_str()), (None, "us-east-1"));
    assert!(!format!("{amazon:?}").contains("hush"));

    let at = |url: &str, more: &str| {
        bucket(&format!("s3_access_key_id = \"me\"\ns3_endpoint = \"{url}\"\n{more}"))
    };
    for url in ["http://minio:9000", "ftp://x", "minio:9000", "https://"] {
        assert_eq!(at(url, "").unwrap_err(), ["media.s3_endpoint"], "{url}");
    }
    let own = at("http://minio:9000/", "s3_allow_http = true").unwrap();
    assert_eq!(own.endpoint_of_bucket().unwrap(), "http://minio:9000");
    let own = at("https://s3.example", "s3_path_style = false").unwrap();
    assert_eq!(own.endpoint_of_bucket().unwrap(), "https://files.s3.example");

    let both = bucket("s3_access_key_id = \"me\"\nfolder = \"/media\"");
    assert_eq!(both.unwrap_err(), ["media.folder"]);
    let stray = read("[media]\ns3_region = \"eu\"", Environment::default());
    assert_eq!(stray.unwrap_err(), ["media.s3_bucket"]);
}

/// Whoever runs the server finds each setting in the table of the README. What the settings are is taken from their own documentation.
#[test]
fn the_readme_has_every_setting() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(top.join("../../README.md")).unwrap();
    let mut settings = Vec::new();
    for file in std::fs::read_dir(top.join("src/config")).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let documented = text.lines().filter_map(|line| line.trim().strip_prefix("/// `")?.split_once("`: "));
        settings.extend(documented.flat_map(|(names, _)| names.split('`').map(str::to_owned)));
    }
    settings.retain(|name| name.contains('.') && !name.contains(' '));
    assert!(settings.len() > 30, "{settings:?}");
    settings.retain(|name| !readme.contains(&format!("`{name}`")));
    assert!(settings.is_empty(), "the README lacks {settings:?}");
}
