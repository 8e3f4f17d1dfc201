//! Dependencies between the crates of the workspace point one way, and the specification names what the server answers.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// Each crate and the crates of the workspace that it may use.
const ALLOWED: &[(&str, &[&str])] = &[
    ("keystead-keybox", &[]),
    ("keystead-client", &["keystead-keybox"]),
    ("keystead-core", &["keystead-keybox"]),
    ("keystead-store", &["keystead-core"]),
    ("keystead-server", &["keystead-core", "keystead-store"]),
    ("keystead-chaos", &["keystead-load"]),
    ("keystead-load", &["keystead-keybox"]),
    (
        "keystead-tests",
        &["keystead-client", "keystead-core", "keystead-keybox", "keystead-server", "keystead-store"],
    ),
];

#[test]
fn arrows_point_one_way() {
    let packages = packages();
    let names: BTreeSet<_> = packages.iter().map(|(name, _)| name.as_str()).collect();
    let known: BTreeSet<_> = ALLOWED.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, known, "a crate came or went: give it its place in ALLOWED");

    for (name, dependencies) in &packages {
        let (_, allowed) = ALLOWED.iter().find(|(known, _)| known == name).expect("compared above");
        for dependency in dependencies.iter().filter(|dependency| names.contains(dependency.as_str())) {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn the_database_belongs_to_the_store_and_pure_crates_stay_pure() {
    for (name, dependencies) in packages() {
        for dependency in dependencies {
            if ["sea-orm", "sea-orm-migration", "sqlx"].contains(&dependency.as_str()) {
                assert_eq!(name, "keystead-store", "{dependency} belongs to the store alone");
            }
            if ["hyper", "tokio", "rand"].contains(&dependency.as_str()) {
                assert!(
                    !["keystead-core", "keystead-keybox"].contains(&name.as_str()),
                    "{name} uses {dependency}"
                );
            }
        }
    }
}

#[test]
fn the_specification_names_every_errcode_of_the_profile() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let spec = std::fs::read_to_string(root.join("profiles/keybox/SPEC.md")).expect("the specification");
    let (_, errors) = spec.split_once("### 30.1").expect("its list of errcodes");
    let mut codes = BTreeSet::new();
    for file in rust_files(&root.join("homeserver")) {
        let source = std::fs::read_to_string(&file).expect("a source file");
        for part in source.split("\"COM.TRUSTNER.").skip(1) {
            codes.insert(part.split('"').next().expect("a part").to_owned());
        }
    }
    assert!(codes.contains("KEYBOX_NOT_A_MEMBER"), "{codes:?}");
    for code in codes {
        assert!(errors.contains(&format!("`COM.TRUSTNER.{code}`")), "section 30.1 does not name {code}");
    }
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The workspace's packages with the names of all they depend on, whatever the kind of dependency.
fn packages() -> Vec<(String, Vec<String>)> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo metadata");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let name = |value: &Value| value["name"].as_str().expect("a name").to_owned();
    let list = |value: &Value| value.as_array().expect("a list").clone();
    list(&metadata["packages"])
        .iter()
        .map(|package| (name(package), list(&package["dependencies"]).iter().map(name).collect()))
        .collect()
}
